"""vLLM with the plug-in gives, token for token, what the core gives on the same weights in float32."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import heedful
import tiny
from heedful.vllm.decide import filtered
from heedful.vllm.steered import Part
from tiny import case, expected, generated, plainly


class Pair:
    """A tiny model in the core, and its folder for vLLM."""

    def __init__(self, model: Any, path: Path) -> None:
        self.model, self.path = model, path


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return saved("llama", tmp_path_factory.mktemp("llama"))


def saved(name: str, path: Path) -> Pair:
    model = tiny.build(name)
    model.save_pretrained(path)
    return Pair(model, path)


@pytest.fixture(scope="module")
def llm(llama: Pair) -> Any:
    return tiny.llm(llama.path, max_num_batched_tokens=512)


def test_48_requests_steered_and_plain_in_one_batch(llama: Pair, llm: Any) -> None:
    steered = [case(seed, 40 + seed % 7) for seed in range(48)]
    mixed = [replace(one, method=None) if at % 3 == 0 else one for at, one in enumerate(steered)]
    wanted, plain = expected(llama.model, mixed), expected(llama.model, plainly(mixed))
    assert sum(a != b for a, b in zip(wanted, plain, strict=True)) > 20  # steering matters here
    assert generated(llm, mixed) == wanted


def test_candidate_sets_share_one_forward(llm: Any) -> None:
    host = tiny.host(llm)
    before = host.num_forwards
    generated(llm, [case(seed, new=12) for seed in range(6)])
    assert 2 <= host.num_forwards - before <= 1 + 12  # ranking once, then at most one a step for all six


def test_what_does_not_fit_one_forward_takes_several(llama: Pair, llm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("heedful.vllm.decide.ROWS", 7)
    monkeypatch.setattr("heedful.vllm.steered.LARGEST", 1)
    cases = [case(seed, 30 + seed, new=12) for seed in range(6)]
    host = tiny.host(llm)
    before = host.num_forwards
    assert generated(llm, cases) == expected(llama.model, cases)
    assert host.num_forwards - before > 1 + 12


@pytest.mark.one_runner
def test_what_is_shared_is_steered_in_one_forward(llama: Pair, llm: Any) -> None:
    """Requests that read the same stored tokens and scale them differently: nothing stored is changed for either."""
    parts = [case(seed) for seed in range(2)]
    span = torch.arange(5, 12)

    def part(one: Any, factor: float) -> Part:
        table = torch.ones(1, dtype=torch.int32)  # the block that the first request was stored in
        return Part(one.prompt[-1], 39, table, 39, span, torch.full((7,), factor), (frozenset([0, 1]), frozenset()))

    host = tiny.host(llm)
    generated(llm, plainly(parts))
    with torch.inference_mode():
        together = host.forward([part(parts[0], 3.0), part(parts[0], 50.0)])
        apart = [host.forward([part(parts[0], factor)])[:, 0] for factor in (3.0, 50.0)]
    assert torch.allclose(together, torch.stack(apart, 1), atol=1e-5)
    assert not torch.allclose(together[0, 0], together[0, 1], atol=1e-3)
    assert torch.allclose(together[1, 0], together[1, 1], atol=1e-5)


@pytest.mark.parametrize(
    "method",
    [
        heedful.Directer(strength=30.0, threshold=0.2),
        heedful.Directer(compat="released", ranking="released"),
        heedful.Directer(ranking=[3, 0, 4, 1, 2]),
        heedful.Directer(threshold=0.0),
        heedful.KeyScaling(50.0, layers=(1, 3), gate=heedful.Plausibility(0.3)),
        heedful.KeyScaling(3.0),
        heedful.KeyScaling(5.0, level=1),
    ],
    ids=str,
)
def test_methods(llama: Pair, llm: Any, method: Any) -> None:
    cases = [case(seed, method=method) for seed in range(3)]
    wanted = expected(llama.model, cases)
    assert wanted != expected(llama.model, plainly(cases))
    assert generated(llm, cases) == wanted


def test_layers_are_ranked_where_the_marks_came_to_be(llama: Pair, llm: Any) -> None:
    """In a conversation that has gone on since: with the tokens that were read by then, in the core as in vLLM."""
    late = [case(seed, length=90 + seed, new=20) for seed in range(12)]
    early = [replace(one, rank_at=30 + seed) for seed, one in enumerate(late)]
    wanted = expected(llama.model, early)
    assert wanted != expected(llama.model, late)
    assert generated(llm, early) == wanted
    levels = [replace(one, method=heedful.KeyScaling(5.0, level=1)) for one in early]
    assert generated(llm, levels) == expected(llama.model, levels)


def test_sampling_draws_what_the_core_draws(llama: Pair, llm: Any) -> None:
    sampling = heedful.Sampling(temperature=0.8, top_k=20, top_p=0.9, seed=7)
    cases = [case(seed, sampling=replace(sampling, seed=seed)) for seed in range(4)]
    wanted = expected(llama.model, cases)
    assert wanted != expected(llama.model, [replace(one, sampling=heedful.Sampling()) for one in cases])
    assert generated(llm, [*cases, *plainly(cases)])[:4] == wanted


def test_penalties_bind_raw_and_steered_tokens_alike(llama: Pair, llm: Any) -> None:
    """vLLM applies them behind its logits processors, and by default where the model's generation config names them."""
    kinds = ({"repetition": 1.3}, {"presence": 1.5}, {"frequency": 0.8, "repetition": 0.9, "presence": -0.5})
    cases = [replace(case(seed), **kind) for seed, kind in enumerate(kinds * 3)]
    cases += [replace(case(9, sampling=heedful.Sampling(temperature=0.9, seed=4)), repetition=1.2)]
    wanted = expected(llama.model, cases)
    assert sum(a != b for a, b in zip(wanted, expected(llama.model, plainly(cases)), strict=True)) > 5
    bare = [replace(one, presence=0.0, frequency=0.0, repetition=1.0) for one in cases]
    assert sum(a != b for a, b in zip(wanted, expected(llama.model, bare), strict=True)) > 5
    assert generated(llm, [*cases, *bare])[: len(cases)] == wanted


def test_min_p_keeps_the_likely_tokens(llama: Pair, llm: Any) -> None:
    """At 1 it leaves the likeliest alone: greedy, however hot."""
    cold = [case(seed) for seed in range(4)]
    hot = [replace(one, sampling=heedful.Sampling(temperature=1.5, seed=5)) for one in cold]
    for asked, wanted in ((cold, generated(llm, cold)), (plainly(cold), generated(llm, plainly(cold)))):
        found = llm.generate(
            [one.vllm_prompt for one in asked],
            [replace(one, sampling=hot[0].sampling).params(min_p=1.0) for one in asked],
            use_tqdm=False,
        )
        assert [list(output.outputs[0].token_ids) for output in found] == wanted


@pytest.mark.one_runner
@pytest.mark.parametrize("top_p", [0.9, 0.3, 0.9999])
def test_a_nucleus_is_found_without_sorting(top_p: float) -> None:
    sampling = heedful.Sampling(temperature=1.3, top_p=top_p, seed=0)
    logits = torch.randn(5000, generator=torch.Generator().manual_seed(0)) * 3
    assert torch.equal(filtered(sampling, logits), sampling.filter(logits))


def test_weighted_spans_and_a_span_at_the_prompts_end(llama: Pair, llm: Any) -> None:
    one = replace(case(3), span=(30, 38, 39))
    assert generated(llm, [one]) == expected(llama.model, [one])


def test_nothing_stored_is_changed(llm: Any) -> None:
    """Directer with a strength of 1 is plain decoding, whatever it tried on the way."""
    cases = [case(seed, method=heedful.Directer(strength=1.0)) for seed in range(4)]
    assert generated(llm, cases) == generated(llm, plainly(cases))


@pytest.mark.one_runner
def test_two_engines_in_one_process(llama: Pair, llm: Any, tmp_path: Path) -> None:
    """Each is steered through its own model, whichever was loaded last."""
    other = tiny.build("llama", seed=1)
    other.save_pretrained(tmp_path)
    second = tiny.llm(tmp_path)
    cases = [case(seed) for seed in range(3)]
    for _ in range(2):
        assert generated(llm, cases) == expected(llama.model, cases)
        assert generated(second, cases) == expected(other, cases)


# From here on each test has an engine of its own: as one goes, vLLM takes what all engines of a process share.


def test_a_generation_config_with_a_penalty(llama: Pair, tmp_path: Path) -> None:
    """Qwen 2.5's has one, and vLLM's server fills it in where a client names none."""
    llama.model.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"repetition_penalty": 1.3}')
    llm = tiny.llm(tmp_path)
    one = replace(case(0), repetition=llm.get_default_sampling_params().repetition_penalty)
    assert one.repetition == 1.3
    assert generated(llm, [one]) == expected(llama.model, [one])


def test_chunked_prefill_and_prefix_caching_and_preemption(llama: Pair) -> None:
    """Few blocks, small chunks: requests wait, are thrown out and come back, and read what others stored."""
    llm = tiny.llm(
        llama.path,
        enable_prefix_caching=True,
        block_size=32,
        max_num_batched_tokens=64,
        max_num_seqs=8,
        max_model_len=256,
        num_gpu_blocks_override=16,
    )
    shared = tuple(case(99, 64).prompt)
    cases = [replace(case(seed, 90, new=60), prompt=shared + case(seed, 26).prompt) for seed in range(8)]
    cases += [replace(one, span=(*range(3, 9), *range(70, 76))) for one in cases[:3]]
    cases += [replace(one, method=None) for one in cases[:2]]
    wanted = expected(llama.model, cases)
    assert generated(llm, cases) == wanted
    assert generated(llm, cases) == wanted  # now all of it is read from the cache
    metrics = {metric.name: metric for metric in llm.get_metrics()}
    assert metrics["vllm:num_preemptions"].value > 0
    assert metrics["vllm:prefix_cache_hits"].value > 0


def test_sampling_and_static_steering_go_on_after_a_preemption(llama: Pair) -> None:
    llm = tiny.llm(llama.path, block_size=32, max_num_seqs=8, max_model_len=256, num_gpu_blocks_override=12)
    cases = [case(seed, 40, new=60, sampling=heedful.Sampling(temperature=1.0, seed=seed)) for seed in range(6)]
    cases += [case(seed, 40, new=60, method=heedful.KeyScaling(3.0)) for seed in range(3)]
    assert generated(llm, cases) == expected(llama.model, cases)
    assert {metric.name: metric for metric in llm.get_metrics()}["vllm:num_preemptions"].value > 0


@pytest.mark.parametrize(
    "name",
    [
        "gemma",
        "mixtral",
        *(
            pytest.param(name, marks=pytest.mark.one_runner)
            for name in ("qwen2", "qwen3", "mistral", "qwen3_moe", "phi3")
        ),
    ],
)
def test_families(name: str, tmp_path: Path) -> None:
    pair = saved(name, tmp_path)
    cases = [case(seed) for seed in range(6)]
    wanted = expected(pair.model, cases)
    assert wanted != expected(pair.model, plainly(cases))
    assert generated(tiny.llm(tmp_path), cases) == wanted


def test_compiled(llama: Pair) -> None:
    cases = [case(seed) for seed in range(4)]
    llm = tiny.llm(llama.path, enforce_eager=False)
    assert generated(llm, cases) == expected(llama.model, cases)
    assert torch.get_num_threads() == 1


def test_two_tensor_parallel_ranks(llama: Pair) -> None:
    """Every rank must decide alike, and draw alike where a request has no seed."""
    llm = tiny.llm(llama.path, tensor_parallel_size=2, distributed_executor_backend="mp")
    try:
        cases = [case(seed, new=16) for seed in range(4)]
        cases += [replace(one, sampling=heedful.Sampling(temperature=1.0, seed=3)) for one in cases[:2]]
        assert generated(llm, cases) == expected(llama.model, cases)
        unseeded = [replace(cases[0], sampling=heedful.Sampling(temperature=1.0))]
        assert len(generated(llm, unseeded)[0]) == 16
    finally:
        llm.llm_engine.engine_core.shutdown()
