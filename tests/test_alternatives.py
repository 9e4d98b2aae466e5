"""What the decoder tells of the tokens that might have come, and of the layers' sensitivity."""

import math

import pytest
import torch

import families
from heedful.answer import Emitted, capacity_for
from heedful.contrast import ContextAware
from heedful.decode import Decoder
from heedful.engine import Engine
from heedful.recipe import Recipe
from heedful.steerers import KeyScaling
from helpers import directer, request


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(families.build("llama"))


def emitted(engine: Engine, recipe: Recipe | None, count: int = 4) -> list[Emitted]:
    one = request(families.prompt(), recipe, families.SPAN, new=40, num_alternatives=count)
    decoder = Decoder(engine, one.num_slots, capacity_for(one, engine.num_layers))
    decoder.submit(one)
    found: list[Emitted] = []
    while not decoder.is_idle:
        found += decoder.step()
    return found


def test_a_gated_step_tells_both_distributions(engine: Engine) -> None:
    found = emitted(engine, directer())
    decisions = {one.step.decision for one in found}
    assert decisions == {"skipped", "accepted", "rejected"}
    for one in found:
        step, told = one.step, {other.token_id: other for other in one.alternatives}
        raw = [other.p_raw for other in one.alternatives if other.p_raw is not None]
        assert math.isclose(max(raw), step.p_top, rel_tol=1e-4)
        assert math.isclose(told[step.token_id].p_raw or 0, step.p_raw, rel_tol=1e-4)
        steered = {token: other.p_steered for token, other in told.items()}
        if step.decision == "skipped":
            assert set(steered.values()) == {None}
            continue
        likeliest = max(steered, key=lambda token: steered[token] or 0.0)
        if step.decision == "accepted":
            assert likeliest == step.token_id
        else:
            assert likeliest != step.token_id
            assert (told[likeliest].p_raw or 0) < 0.5 * step.p_top
    assert any(one.step.changed for one in found)


def test_sensitivity_is_what_the_layers_are_ranked_by(engine: Engine) -> None:
    answer = emitted(engine, directer())[0].answer
    scores = torch.tensor(answer.sensitivity)
    assert len(scores) == engine.num_layers
    assert tuple(torch.argsort(scores, descending=True).tolist()) == answer.ranking
    assert emitted(engine, KeyScaling(3.0).recipe())[0].answer.sensitivity == ()


def test_what_there_is_none_of_is_none(engine: Engine) -> None:
    plain = emitted(engine, None)
    assert {other.p_steered for one in plain for other in one.alternatives} == {None}
    ungated = emitted(engine, KeyScaling(3.0).recipe())
    assert {other.p_raw for one in ungated for other in one.alternatives} == {None}
    assert all(one.alternatives[0].token_id == one.step.token_id for one in ungated)
    contrast = emitted(engine, ContextAware(1.0).recipe())
    assert all(None not in (other.p_raw, other.p_steered) for one in contrast for other in one.alternatives)
    assert all(one.alternatives == () for one in emitted(engine, directer(), count=0))
