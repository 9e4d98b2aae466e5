"""Design §2's identities as properties over random tiny models, prompts, spans and settings."""

from functools import cache

import hypothesis.strategies as st
import torch
from hypothesis import given, settings

import families
from heedful.bench import sequential
from heedful.engine import Engine
from heedful.sampling import Sampling
from helpers import directer, new_tokens, request, run

PROMPTS = st.lists(st.integers(0, families.VOCAB - 1), min_size=4, max_size=30)
FAMILIES = st.sampled_from(["llama", "qwen3", "mistral", "gemma2", "gpt_oss"])
slowly = settings(max_examples=15, deadline=None, derandomize=True)


@cache
def engine_of(name: str, seed: int) -> Engine:
    return Engine(families.build(name, seed))


def spans(prompt: list[int], bits: int) -> list[int]:
    return [i for i in range(len(prompt)) if bits >> i & 1] or [0]


@slowly
@given(FAMILIES, st.integers(0, 2), PROMPTS, st.integers(1, 2**30), st.floats(0, 1.0))
def test_strength_one_is_raw(name: str, seed: int, prompt: list[int], bits: int, threshold: float) -> None:
    engine = engine_of(name, seed)
    plain, steered = run(engine, [request(prompt), request(prompt, directer(1.0, threshold), spans(prompt, bits))])
    assert new_tokens(plain) == new_tokens(steered)


@slowly
@given(FAMILIES, st.integers(0, 2), PROMPTS, st.integers(1, 2**30), st.floats(1.001, 10))
def test_threshold_above_one_is_raw(name: str, seed: int, prompt: list[int], bits: int, threshold: float) -> None:
    engine = engine_of(name, seed)
    plain, steered = run(engine, [request(prompt), request(prompt, directer(100, threshold), spans(prompt, bits))])
    assert new_tokens(plain) == new_tokens(steered)
    assert steered.stats.gated == 0


@slowly
@given(FAMILIES, st.integers(0, 2), PROMPTS, st.integers(1, 2**30))
def test_threshold_zero_takes_the_first_trial(name: str, seed: int, prompt: list[int], bits: int) -> None:
    engine = engine_of(name, seed)
    (answer,) = run(engine, [request(prompt, directer(20, 0.0), spans(prompt, bits))])
    assert {(step.decision, step.layers) for step in answer.steps} == {("accepted", engine.num_layers)}


@slowly
@given(FAMILIES, st.integers(0, 2), PROMPTS, st.integers(1, 2**30), st.floats(0.5, 200), st.floats(0, 1))
def test_fused_is_sequential(
    name: str, seed: int, prompt: list[int], bits: int, strength: float, threshold: float
) -> None:
    engine, span = engine_of(name, seed), spans(prompt, bits)
    (answer,) = run(engine, [request(prompt, directer(strength, threshold), span, 10)])
    options = {"strength": strength, "threshold": threshold, "max_new_tokens": 10}
    oracle = sequential.directer(engine.model, prompt, span, ranking=list(answer.ranking), **options)
    assert new_tokens(answer) == oracle.token_ids


@slowly
@given(st.integers(0, 2), PROMPTS, st.integers(1, 2**30), st.integers(0, 1000), st.floats(0.3, 2.0))
def test_a_seed_gives_one_text_in_any_company(
    seed: int, prompt: list[int], bits: int, draw_seed: int, heat: float
) -> None:
    engine = engine_of("llama", seed)
    sampled = request(prompt, directer(), spans(prompt, bits), sampling=Sampling(heat, top_k=40, seed=draw_seed))
    alone = new_tokens(run(engine, [sampled])[0])
    others = [request(families.prompt(i, 9 + i), directer(), [1, 2], 5 + i) for i in range(3)]
    assert new_tokens(run(engine, [*others, sampled], 3)[3]) == alone


@slowly
@given(FAMILIES, st.integers(0, 2), PROMPTS, st.integers(1, 2**30), st.sampled_from([1e-5, 1e-9, 1e-300]))
def test_no_temperature_is_greedy(name: str, seed: int, prompt: list[int], bits: int, heat: float) -> None:
    engine, span = engine_of(name, seed), spans(prompt, bits)
    cold = request(prompt, directer(), span, sampling=Sampling(heat, seed=1))
    assert new_tokens(run(engine, [cold])[0]) == new_tokens(run(engine, [request(prompt, directer(), span)])[0])


def test_a_sampled_step_stays_plausible() -> None:
    """What an accepted trial gives lies in V_β, and not always on its argmax."""
    engine = engine_of("llama", 0)
    steps = []
    for seed in range(12):
        heat = Sampling(1.5, seed=seed)
        (answer,) = run(engine, [request(families.prompt(7), directer(10, 0.2), families.SPAN, 24, sampling=heat)])
        steps += [step for step in answer.steps if step.decision == "accepted"]
    assert steps
    assert all(step.p_raw >= 0.2 * step.p_top * (1 - 1e-5) for step in steps)
    assert any(step.changed for step in steps)


def test_weight_zero_is_raw_and_weights_are_exponents() -> None:
    from dataclasses import replace

    engine, ids = engine_of("llama", 0), families.prompt()
    marked = request(ids, directer(100.0, 0.0), families.SPAN)
    plain, off = run(engine, [request(ids), replace(marked, weights=(0.0,) * len(families.SPAN))])
    assert new_tokens(plain) == new_tokens(off)
    half = replace(marked, weights=(0.5,) * len(families.SPAN))
    ten = request(ids, directer(10.0, 0.0), families.SPAN)
    a, b = run(engine, [half, ten])
    assert new_tokens(a) == new_tokens(b)


def test_rankings_differ_and_hold_all_layers() -> None:
    engine, ids = engine_of("llama", 0), families.prompt()
    orders = {}
    for name in ("paper", "released", "reversed", "random", "random:5", (2, 0)):
        (answer,) = run(engine, [request(ids, directer(ranking=name), families.SPAN, 4)])
        orders[name] = answer.ranking
    assert orders["reversed"] == orders["paper"][::-1]
    assert orders["random"] != orders["random:5"]
    assert orders[(2, 0)] == (2, 0)
    assert all(sorted(order) == list(range(5)) for name, order in orders.items() if isinstance(name, str))


def test_generation_config_may_name_several_eos() -> None:
    engine, ids = engine_of("llama", 0), families.prompt()
    (free,) = run(engine, [request(ids)])
    third, seventh = new_tokens(free)[2], new_tokens(free)[6]
    (answer,) = run(engine, [request(ids, eos_ids=frozenset({third, seventh}))])
    assert new_tokens(answer)[-1] in (third, seventh)
    assert answer.finish_reason == "eos"
    assert new_tokens(answer) == new_tokens(free)[: len(new_tokens(answer))]
    assert torch.is_inference_mode_enabled() is False
