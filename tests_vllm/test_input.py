"""What cannot be steered is refused in one line that names the field, and the engine lives on."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.exceptions import VLLMValidationError

import heedful
import tiny
from heedful.errors import UnsupportedModelError
from heedful.vllm import read, support
from heedful.vllm.host import HOST
from heedful.vllm.steered import SteeredPass
from tiny import case, generated

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


@pytest.mark.parametrize(
    "more",
    [
        {"presence_penalty": 1.0},
        {"frequency_penalty": 1.0},
        {"repetition_penalty": 1.1},
        {"min_p": 0.1, "temperature": 1.0},
    ],
)
def test_what_cannot_be_combined(llm: Any, more: Any) -> None:
    with pytest.raises(VLLMValidationError, match=f"heedful: {next(iter(more))} cannot be combined"):
        llm.generate([case(0).vllm_prompt], [case(0).params(**more)], use_tqdm=False)


def test_the_engine_lives_on_and_a_wrong_count_ends_its_request_alone(llm: Any) -> None:
    good, wrong = case(0), case(1)
    params = wrong.params(ignore_eos=False, stop_token_ids=[7])
    params.extra_args["heedful"]["prompt_tokens"] = 39
    outputs = llm.generate([good.vllm_prompt, wrong.vllm_prompt], [good.params(), params], use_tqdm=False)
    assert list(outputs[0].outputs[0].token_ids) == generated(llm, [good])[0]
    assert list(outputs[1].outputs[0].token_ids) == [7]


def test_a_layer_that_the_model_lacks_ends_its_request(llm: Any) -> None:
    one = case(0, method=heedful.Directer(ranking=(0, 1, 99)))
    outputs = llm.generate([one.vllm_prompt], [one.params(ignore_eos=False, stop_token_ids=[7])], use_tqdm=False)
    assert list(outputs[0].outputs[0].token_ids) == [7]


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
    parallel |= {key: more.pop(key) for key in list(more) if key in parallel}
    fields = {
        "model_config": SimpleNamespace(use_mla=more.pop("use_mla", False)),
        "parallel_config": SimpleNamespace(**parallel),
        "cache_config": SimpleNamespace(cache_dtype=more.pop("cache_dtype", "auto")),
        "speculative_config": None,
        "lora_config": None,
        "compilation_config": SimpleNamespace(),
        "device_config": SimpleNamespace(device_type="cpu"),
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
        ({"use_v2_model_runner": True}, "VLLM_USE_V2_MODEL_RUNNER=0"),
        (
            {
                "device_config": SimpleNamespace(device_type="cuda"),
                "compilation_config": SimpleNamespace(cudagraph_mode=SimpleNamespace(has_full_cudagraphs=lambda: True)),
            },
            "PIECEWISE",
        ),
    ],
)
def test_configurations(more: Any, says: str) -> None:
    support.refuse_config(config())
    with pytest.raises(UnsupportedModelError, match=f"{says}.*HEEDFUL_VLLM=off"):
        support.refuse_config(config(**more))


def test_a_sliding_window_is_refused_at_start(tmp_path: Path) -> None:
    model = tiny.build("mistral")
    model.config.sliding_window = 16
    model.save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match="sliding window"):
        tiny.llm(tmp_path)


def test_switched_off_vllm_is_vllm(path: Path, monkeypatch: pytest.MonkeyPatch, llm: Any) -> None:
    monkeypatch.setenv("HEEDFUL_VLLM", "off")
    with pytest.raises(VLLMValidationError, match="steering is off"):
        generated(llm, [case(0)])


@pytest.mark.parametrize("fault", ["skipped", "kept", "half"])
def test_the_self_check_sees_hooks_that_do_not_steer(llm: Any, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    from heedful.vllm import selfcheck, steered

    selfcheck.check(HOST)
    if fault == "skipped":
        monkeypatch.setattr(SteeredPass, "_changes", lambda self, index, candidate, previous: False)
    elif fault == "kept":
        monkeypatch.setattr(steered._Stored, "put_back", lambda self, key, value: None)
    else:
        monkeypatch.setattr(selfcheck, "STRENGTH", 50.0)
        whole = SteeredPass.__post_init__

        def halved(self: Any) -> None:
            whole(self)
            self._factors = torch.where(self._factors == 50.0, 25.0, self._factors)

        monkeypatch.setattr(SteeredPass, "__post_init__", halved)
    with pytest.raises(UnsupportedModelError, match="self-check failed"):
        selfcheck.check(HOST)


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
