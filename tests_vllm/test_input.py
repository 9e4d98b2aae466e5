"""What cannot be steered is refused in one line that names the field, and the engine lives on."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.exceptions import VLLMValidationError

import heedful
import tiny
from heedful.errors import UnsupportedModelError
from heedful.vllm import processor, read, support
from heedful.vllm.decide import Decider, State
from heedful.vllm.layout import learn
from heedful.vllm.steered import SteeredPass
from tiny import case, generated, plainly

GOOD: dict[str, Any] = {"spans": [[2, 5]], "prompt_tokens": 40}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    tiny.build("llama").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llm(path: Path) -> Any:
    return tiny.llm(path)


BAD = [
    ([1], "heedful must be an object"),
    ("{", "heedful must be an object|heedful is no JSON"),
    ({**GOOD, "spans": [[2, 41]]}, "heedful.spans: 2:41 lies outside the prompt"),
    ({**GOOD, "spans": [[5, 5]]}, "heedful.spans holds the empty range"),
    ({**GOOD, "spans": [[-1, 5]]}, "heedful.spans must be a whole number of at least 0"),
    ({**GOOD, "spans": [[2, 5], [4, 6]]}, "overlaps another range"),
    ({"spans": [[0, 2**40]], "prompt_tokens": 2**40}, "prompt_tokens must be a whole number of at most"),
    ({**GOOD, "spans": []}, "heedful.spans must be a list"),
    ({**GOOD, "spans": [[1, 2, "x"]]}, "token weights"),
    ({"spans": [[2, 5]]}, "heedful.prompt_tokens is missing"),
    ({**GOOD, "prompt_tokens": 0}, "heedful.prompt_tokens must be"),
    ({**GOOD, "rank_at": 4}, "heedful.rank_at must be a whole number of at least 5"),
    ({**GOOD, "rank_at": 41}, "heedful.rank_at must be a whole number of at most 40"),
    ({**GOOD, "rank_at": "late"}, "heedful.rank_at must be a whole number"),
    ({**GOOD, "method": "nosuch"}, "heedful.method: unknown method 'nosuch'"),
    ({**GOOD, "method": 3}, "heedful.method must be a name"),
    ({**GOOD, "method": "spotlight"}, "kernels take no bias"),
    ({**GOOD, "method": "instaboost-gated"}, "kernels take no bias"),
    ({**GOOD, "method": 'pasta:heads={"0":[1]}'}, "kernels take no bias"),
    ({**GOOD, "method": "pasta:profile=/etc/passwd"}, "cannot name a profile"),
    ({**GOOD, "method": "anchoring"}, "second prompt"),
    ({**GOOD, "strength": -1}, "strength must be finite, at least 0"),
    ({**GOOD, "strength": "much"}, "strength must be a number"),
    ({**GOOD, "threshold": float("nan")}, "threshold must be finite"),
    ({**GOOD, "sense": 1}, "heedful.sense is unknown"),
]


@pytest.mark.parametrize(("asked", "says"), BAD, ids=lambda value: str(value)[:60])
def test_bad_arguments(llm: Any, asked: Any, says: str) -> None:
    from vllm import SamplingParams

    one = case(0)
    for given in (asked, json.dumps(asked)):
        with pytest.raises(VLLMValidationError, match=says):
            llm.generate([one.vllm_prompt], [SamplingParams(extra_args={"heedful": given})], use_tqdm=False)


def refused(llm: Any, one: tiny.Case, says: str, **more: Any) -> None:
    """The request is refused in one line, and the engine lives on."""
    params = one.params()
    params.extra_args["heedful"].update(more)
    with pytest.raises(VLLMValidationError, match=says):
        llm.generate([one.vllm_prompt], [params], use_tqdm=False)
    assert generated(llm, [case(0, new=2)])


def test_what_does_not_fit_the_prompt_or_the_model(llm: Any) -> None:
    one = case(1)
    refused(llm, one, "heedful.prompt_tokens is 39, but the prompt has 40 tokens", prompt_tokens=39)
    refused(llm, one, "prompt_tokens is 100000", spans=[[90000, 90010]], prompt_tokens=100000)
    refused(llm, one, "heedful.digest: vLLM renders the prompt into other tokens", digest=7)
    refused(llm, one, "heedful.digest must be", digest=-7)
    refused(llm, one, "heedful.salted must be", salted="yes")
    refused(llm, case(0, method=heedful.Directer(ranking=(0, 1, 99))), "heedful.method: layer 99 is not in the model")
    refused(llm, case(0, method=heedful.KeyScaling(layers=(7,))), "heedful.method: layer 7 is not in the model")


def test_what_the_worker_finds_ends_its_request_alone(llm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no caller's variables tell, spans far outside the prompt end the request before they index anything."""
    monkeypatch.setattr(processor, "_asking", lambda: (llm.llm_engine.vllm_config, None))
    good, wrong = case(0, method=None), case(1)
    params = wrong.params(ignore_eos=False, stop_token_ids=[7])
    params.extra_args["heedful"].update(spans=[[90000, 90010]], prompt_tokens=100000)
    outputs = llm.generate([good.vllm_prompt, wrong.vllm_prompt], [good.params(), params], use_tqdm=False)
    monkeypatch.undo()
    assert list(outputs[0].outputs[0].token_ids) == generated(llm, [good])[0]
    assert list(outputs[1].outputs[0].token_ids) == [7]


def test_an_unknown_caller_is_refused(llm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "_asking", lambda: (None, None))
    with pytest.raises(VLLMValidationError, match="in a way that Heedful does not know"):
        generated(llm, [case(0)])
    assert generated(llm, plainly([case(0)]))


def test_a_batch_that_was_not_told_is_no_raw_token(llm: Any) -> None:
    host = tiny.host(llm)
    state = State(read({"heedful": GOOD}), range(40), [], heedful.Sampling(), {}, is_masked=False, ends=())
    with pytest.raises(RuntimeError, match="not told of vLLM's batch"):
        Decider(host, {0: state}, counts=False).decide(torch.zeros(1, 128), None)


def test_a_batch_is_told_of_once(llm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What vLLM's tensors hold in the next step is another's."""
    host = tiny.host(llm)
    monkeypatch.setattr(host, "is_wanted", True)
    starts, lengths = torch.tensor([0, 2, 3]), torch.tensor([9, 4])
    host.note(SimpleNamespace(query_start_loc=starts, seq_lens=lengths, block_table_tensor=torch.ones(2, 1)))
    assert host.batch() is None  # no tokens went by
    host.note(SimpleNamespace(query_start_loc=starts, seq_lens=lengths, block_table_tensor=torch.ones(2, 1)))
    host.note_tokens(torch.tensor([5, 6, 7]))
    batch = host.batch()
    assert batch is not None
    assert (batch.tokens, batch.seq_lens) == ([6, 7], [9, 4])
    assert host.batch() is None


def test_a_cache_that_was_exchanged_is_learnt_anew(llm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    host = tiny.host(llm)
    before, cache = host.layout, host.layers[0].kv_cache
    assert host.layout is before
    monkeypatch.setattr(host.layers[0], "kv_cache", cache[:4])
    assert host.layout is not before


def test_a_negative_seed_is_a_seed(llm: Any) -> None:
    one = case(0, new=12)
    answers = [
        llm.generate([one.vllm_prompt], [one.params(temperature=1.0, seed=seed)], use_tqdm=False)[0]
        .outputs[0]
        .token_ids
        for seed in (-5, -5, 5)
    ]
    assert answers[0] == answers[1] != answers[2]


def test_none_asks_for_nothing() -> None:
    assert read(None) is None
    assert read({"heedful": {**GOOD, "method": "none"}}) is None


def test_logit_bias_and_forbidden_tokens_bind_steered_tokens_too(llm: Any) -> None:
    cases = [case(seed) for seed in range(4)]
    usual = {token for answer in generated(llm, cases) for token in answer}
    allowed = sorted(usual)[::2]
    for more in ({"allowed_token_ids": allowed}, {"logit_bias": dict.fromkeys(allowed, 50.0)}):
        outputs = llm.generate(
            [one.vllm_prompt for one in cases], [one.params(**more) for one in cases], use_tqdm=False
        )
        assert {token for output in outputs for token in output.outputs[0].token_ids} <= set(allowed)


def test_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    support.refuse_version("0.32.4+cpu")
    for version in ("0.31.9", "0.33.0", "1.0.0"):
        with pytest.raises(UnsupportedModelError, match="HEEDFUL_VLLM_ANY_VERSION=1"):
            support.refuse_version(version)
    monkeypatch.setenv("HEEDFUL_VLLM_ANY_VERSION", "1")
    support.refuse_version("0.33.0")


def config(**more: Any) -> Any:
    parallel = {"pipeline_parallel_size": 1, "data_parallel_size": 1, "enable_expert_parallel": False}
    parallel |= {"enable_batch_sharded_sampling": None, "use_ubatching": False}
    parallel |= {key: more.pop(key) for key in list(more) if key in parallel}
    fields = {
        "model_config": SimpleNamespace(
            use_mla=more.pop("use_mla", False),
            enable_prompt_embeds=more.pop("enable_prompt_embeds", False),
            architectures=["LlamaForCausalLM"],
        ),
        "parallel_config": SimpleNamespace(**parallel),
        "cache_config": SimpleNamespace(cache_dtype=more.pop("cache_dtype", "auto")),
        "speculative_config": None,
        "lora_config": None,
        "compilation_config": SimpleNamespace(),
        "device_config": SimpleNamespace(device_type="cpu"),
        "use_v2_model_runner": False,
    }
    return SimpleNamespace(**{**fields, **more})


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"pipeline_parallel_size": 2}, "pipeline"),
        ({"cache_dtype": "fp8_e4m3"}, "fp8"),
        ({"use_mla": True}, "latent"),
        ({"speculative_config": object()}, "speculative"),
        ({"lora_config": object()}, "LoRA"),
        ({"device_config": SimpleNamespace(device_type="tpu")}, "any device but CPUs and CUDA"),
        ({"enable_batch_sharded_sampling": True}, "sharded"),
        ({"use_ubatching": True}, "dual-batch"),
        ({"enable_prompt_embeds": True}, "embeddings"),
        (
            {
                "device_config": SimpleNamespace(device_type="cuda"),
                "compilation_config": SimpleNamespace(cudagraph_mode=SimpleNamespace(has_full_cudagraphs=lambda: True)),
            },
            "V1 model runner.*PIECEWISE",
        ),
    ],
)
def test_configurations(more: Any, says: str) -> None:
    support.refuse_config(config())
    with pytest.raises(UnsupportedModelError, match=f"{says}.*HEEDFUL_VLLM=off"):
        support.refuse_config(config(**more))


def test_an_unknown_vllm_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    import vllm

    from heedful.vllm import registration

    monkeypatch.setattr(vllm, "__version__", "0.99.0")
    monkeypatch.setattr(vllm, "ModelRegistry", None)  # nothing is registered
    registration.register()
    assert "untested" in support.why_not(config())


def test_switched_off_vllm_is_vllm(path: Path, monkeypatch: pytest.MonkeyPatch, llm: Any) -> None:
    monkeypatch.setenv("HEEDFUL_VLLM", "off")
    with pytest.raises(VLLMValidationError, match="steering is off"):
        generated(llm, [case(0)])


@pytest.mark.parametrize("fault", ["skipped", "kept", "half", "raw"])
def test_the_self_check_sees_hooks_that_do_not_steer(llm: Any, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    from heedful.vllm import selfcheck

    def changed(self: SteeredPass) -> None:
        whole(self)
        if fault == "kept":
            self.keeps = True
        else:
            self._factors = torch.where(self._factors == 50.0, 25.0 if fault == "half" else 1.0, self._factors)

    selfcheck.check(tiny.host(llm))
    whole = SteeredPass.__post_init__
    if fault == "raw":
        monkeypatch.setattr(Decider, "decide", lambda self, logits, batch: logits)
    else:
        monkeypatch.setattr(selfcheck, "STRENGTH", 50.0)
        monkeypatch.setattr(SteeredPass, "__post_init__", changed)
    with pytest.raises(UnsupportedModelError, match="self-check failed"):
        selfcheck.check(tiny.host(llm))


@pytest.mark.parametrize("is_even", [True, False])
def test_keys_are_read_in_whatever_order_they_are_stored(is_even: bool) -> None:
    size, heads, dim = 4, 2, 3
    count = size * heads * dim * 2
    order = torch.arange(count) if is_even else torch.randperm(count, generator=torch.Generator().manual_seed(0))
    cache = torch.zeros(3, count)

    def store(key: torch.Tensor, value: torch.Tensor, slots: torch.Tensor) -> None:
        both = torch.cat([key.flatten(1), value.flatten(1)], 1)
        for slot, numbers in zip(slots.tolist(), both, strict=True):
            cache[slot // size, order.view(size, -1)[slot % size]] = numbers

    layout = learn(cache, size, heads, (dim, dim), store)
    assert (layout._places[0].steps is not None) == is_even
    cache.copy_(torch.randn(3, count, generator=torch.Generator().manual_seed(1)))
    keys, values = layout.blocks(cache, torch.tensor([2, 1]))
    wanted = layout.read(cache, torch.tensor([*range(8, 12), *range(4, 8)]))
    assert torch.equal(keys.permute(0, 3, 1, 2).flatten(0, 1), wanted[0])
    assert torch.equal(values.permute(0, 2, 1, 3).flatten(0, 1), wanted[1])


def test_metrics_count_what_is_decided(llm: Any) -> None:
    from prometheus_client import REGISTRY

    def counted() -> dict[str, float]:
        names = [("heedful_tokens_total", {"decision": d}) for d in ("skipped", "accepted", "rejected")]
        names += [("heedful_extra_forwards_total", {}), ("heedful_changed_tokens_total", {})]
        return {str(labels) + name: REGISTRY.get_sample_value(name, labels) or 0 for name, labels in names}

    before = counted()
    generated(llm, [case(seed, new=20) for seed in range(3)])
    skipped, accepted, rejected, forwards, changed = (counted()[key] - before[key] for key in before)
    assert skipped + accepted + rejected == 60
    assert min(skipped, accepted, rejected, changed) > 0
    assert forwards <= 21


# From here on each test has an engine of its own: as one goes, vLLM takes what all engines of a process share.


def test_static_steering_beside_prefix_caching(path: Path) -> None:
    """Its keys are stored, so its prompt needs a salt: refused without, and with it nobody else reads them."""
    llm = tiny.llm(path, enable_prefix_caching=True, block_size=32)
    other = tiny.llm(path)
    static = case(0, 90, method=heedful.KeyScaling(3.0), new=40)
    plain = plainly([static])
    before = generated(llm, plain)
    refused(llm, static, "heedful: static steering stores steered keys.*cache_salt")
    refused(llm, static, "static steering stores steered keys", salted=True)
    params = static.params()
    params.extra_args["heedful"]["salted"] = True
    salted = llm.generate([{**static.vllm_prompt, "cache_salt": "mine"}], [params], use_tqdm=False)
    assert list(salted[0].outputs[0].token_ids) == generated(other, [static])[0] != before[0]
    assert generated(llm, plain) == before
    again = replace(static, prompt=(*static.prompt, *salted[0].outputs[0].token_ids), method=None)
    assert generated(llm, [again]) == generated(other, [again])


def test_what_cannot_be_steered_runs_plain(tmp_path: Path) -> None:
    """vLLM starts and answers; only a request to be steered is refused."""
    model = tiny.build("mistral")
    model.config.sliding_window = 16
    model.save_pretrained(tmp_path / "mistral")
    llm = tiny.llm(tmp_path / "mistral")
    assert len(generated(llm, plainly([case(0)]))[0]) == 24
    assert "sliding window" in tiny.host(llm).refused
    outputs = llm.generate(
        [case(0).vllm_prompt], [case(0).params(ignore_eos=False, stop_token_ids=[7])], use_tqdm=False
    )
    assert list(outputs[0].outputs[0].token_ids) == [7]
    llama = tmp_path / "llama"
    tiny.build("llama").save_pretrained(llama)
    (llama / "config.json").write_text(
        (llama / "config.json").read_text().replace("LlamaForCausalLM", "InternLM3ForCausalLM")
    )
    llm = tiny.llm(llama)
    assert len(generated(llm, plainly([case(0)]))[0]) == 24
    with pytest.raises(VLLMValidationError, match=r"heedful: .*InternLM3ForCausalLM is not supported"):
        generated(llm, [case(0)])


@pytest.mark.parametrize("fault", [{"enter": lambda self, index, tensor: tensor * 0}, {"attend": lambda *_: None}])
def test_a_failed_self_check_leaves_vllm_alone(path: Path, monkeypatch: pytest.MonkeyPatch, fault: Any) -> None:
    for name, broken in fault.items():
        monkeypatch.setattr(SteeredPass, name, broken)
    llm = tiny.llm(path)
    ended = llm.generate([case(0).vllm_prompt], [case(0).params(stop_token_ids=[7])], use_tqdm=False)[0].outputs[0]
    assert list(ended.token_ids) == [
        7
    ]  # the check runs in the first steered request's own step: it is not answered unsteered
    assert len(generated(llm, plainly([case(0)]))[0]) == 24
    assert "self-check failed" in tiny.host(llm).refused


def test_a_rank_that_steers_nothing_stops_the_others(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("heedful.vllm.selfcheck.is_so_anywhere", lambda is_so: True)
    llm = tiny.llm(path)
    asked = case(0).params(ignore_eos=False, stop_token_ids=[7])
    ended = llm.generate([case(0).vllm_prompt], [asked], use_tqdm=False)[0].outputs[0]
    assert list(ended.token_ids) == [7]
    assert "another tensor-parallel rank" in tiny.host(llm).refused
