"""Short ways to decode token ids on a tiny model."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from heedful.answer import Answer, Request, capacity_for
from heedful.decode import Decoder
from heedful.directer import Directer
from heedful.engine import Engine
from heedful.recipe import Recipe


def request(
    ids: Sequence[int], recipe: Recipe | None = None, span: Sequence[int] = (), new: int = 16, **more: Any
) -> Request:
    marked = tuple(span) if recipe is not None else ()
    return Request(tuple(ids), new, recipe, marked, (1.0,) * len(marked), **more)


def run(engine: Engine, requests: Sequence[Request], num_slots: int | None = None) -> list[Answer]:
    """All answers, in order."""
    capacity = max(capacity_for(r, engine.num_layers) for r in requests)
    decoder = Decoder(engine, num_slots or len(requests), capacity)
    answers = [decoder.submit(r) for r in requests]
    steps: dict[Answer, list[Any]] = {answer: [] for answer in answers}
    while not decoder.is_idle:
        for emitted in decoder.step():
            steps[emitted.answer].append(emitted.step)
    for answer in answers:
        assert [step.token_id for step in steps[answer]] == new_tokens(answer)
        answer.steps = steps[answer]  # type: ignore[attr-defined]
    return answers


def new_tokens(answer: Answer) -> list[int]:
    return answer.token_ids[len(answer.request.token_ids) :]


def directer(strength: float = 100.0, threshold: float = 0.5, **more: Any) -> Recipe:
    return Directer(strength, threshold, **more).recipe()


def ungated(strength: float) -> Recipe:
    return replace(directer(strength), gate=None)
