"""What a long-lived decoder does besides: requests leave, long prompts are read in pieces, prefixes are reused."""

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest
import torch

import families
from heedful import InstABoost, KeyScaling, NumericError, OptionError, SpotLight
from heedful.answer import Answer, Request, capacity_for
from heedful.contrast import Anchoring, ContextAware
from heedful.decode import Decoder
from heedful.engine import Engine
from heedful.gate import Plausibility
from heedful.held import Held, num_shared
from heedful.sampling import Sampling
from helpers import directer, new_tokens, request, run

PROMPT, SPAN = families.prompt(), families.SPAN
LONG = families.prompt(1, length=120)


@cache
def engine() -> Engine:
    return Engine(families.build("llama"))


def decoder(num_slots: int = 2, **more: Any) -> Decoder:
    return Decoder(engine(), num_slots, 320, **more)


def drained(one: Decoder, *requests: Request) -> list[Answer]:
    answers = [one.submit(r) for r in requests]
    while not one.is_idle:
        one.step()
    return answers


def alone(r: Request) -> list[int]:
    return new_tokens(run(engine(), [r], r.num_slots)[0])


def alone_answer(r: Request) -> Answer:
    return run(engine(), [r])[0]


KINDS = {
    "plain": request(PROMPT),
    "directer": request(PROMPT, directer(), SPAN),
    "contrast": request(PROMPT, ContextAware().recipe(), SPAN),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_steps", [0, 1, 4])
def test_leaving_frees_all_slots_at_once(kind: str, num_steps: int) -> None:
    one = decoder()
    answer = one.submit(KINDS[kind])
    for _ in range(num_steps):
        one.step()
    assert one.num_running == min(num_steps, 1)
    one.finish(answer)
    assert (one.num_running, one.is_idle, one._free) == (0, True, [0, 1])
    assert new_tokens(drained(one, KINDS["directer"])[0]) == alone(KINDS["directer"])


@pytest.mark.parametrize("recipe", [directer(), KeyScaling(3.0, level=1).recipe()], ids=["gated", "level"])
@pytest.mark.parametrize("num_read", [len(PROMPT), 95, 120])
def test_layers_are_ranked_where_the_marks_came_to_be(recipe: Any, num_read: int) -> None:
    """By the tokens up to there, in whatever pieces the prompt is read, and whatever a slot holds of it."""
    asked = request(LONG, recipe, SPAN, rank_at=num_read)
    then = alone_answer(request(LONG[:num_read], recipe, SPAN))
    late = alone_answer(request(LONG, recipe, SPAN))
    known = request(LONG, replace(recipe, ranking=then.ranking), SPAN)
    for pieces in (5, 32, 2048):
        one = decoder(prefill_tokens=pieces, reuses_prefixes=True)
        for number in range(2):
            answer, beside = drained(one, asked, KINDS["directer"])
            assert (answer.ranking, answer.sensitivity) == (then.ranking, pytest.approx(then.sensitivity, abs=1e-5))
            assert new_tokens(answer) == alone(known)
            assert new_tokens(beside) == alone(KINDS["directer"])
            assert answer.num_reused == (len(LONG) - 1 if number else 0)
    passes = [alone_answer(r).stats.forward_passes for r in (asked, known)]
    assert passes[0] == passes[1] + (recipe.gate is None)  # ranking costs none, but steers the last token afterwards
    assert num_read == len(LONG) or then.ranking != late.ranking


@pytest.mark.parametrize("rank_at", [0, SPAN[-1], len(LONG) + 1])
def test_layers_cannot_be_ranked_just_anywhere(rank_at: int) -> None:
    with pytest.raises(OptionError, match="rank_at must lie behind the marked tokens"):
        decoder().submit(request(LONG, directer(), SPAN, rank_at=rank_at))


def test_room() -> None:
    one = decoder(3, max_running=2)
    assert one.has_room(KINDS["contrast"])
    first = one.submit(KINDS["contrast"])
    assert one.has_room(KINDS["plain"])
    assert not one.has_room(KINDS["contrast"])
    one.step()
    assert not one.has_room(KINDS["contrast"])
    one.submit(KINDS["plain"])
    assert not one.has_room(KINDS["plain"])
    one.finish(first)
    assert one.has_room(KINDS["contrast"])


def test_reset_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    one = decoder()
    for kind in (*KINDS.values(), KINDS["plain"]):
        one.submit(kind)
    one.step()
    with monkeypatch.context() as patch:
        patch.setattr(engine(), "forward", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            one.step()
    one.reset()
    assert (one.is_idle, one._free) == (True, [0, 1])
    assert new_tokens(drained(one, KINDS["directer"])[0]) == alone(KINDS["directer"])


@pytest.mark.parametrize("recipe", [None, directer()])
def test_a_long_prompt_holds_nobody_up(recipe: Any) -> None:
    """While 120 tokens are read 8 at a time, whoever decodes goes on at every step; the answers are the same."""
    short, long = request(PROMPT, new=40), request(LONG, recipe, range(20, 26), new=8)
    one = decoder(prefill_tokens=8)
    running = one.submit(short)
    while not new_tokens(running):
        one.step()
    late = one.submit(long)
    steps = 0
    while not new_tokens(late):
        before = len(running.token_ids)
        one.step()
        steps += 1
        assert len(running.token_ids) > before
    assert steps >= 15
    while not one.is_idle:
        one.step()
    assert new_tokens(running) == alone(short)
    assert new_tokens(late) == alone(long)


def test_ranking_counts_against_what_a_step_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fifteen prompts that come at once: a step has at most one ranking more than it may, and none waits for ever."""
    one = Decoder(engine(), 15, 320, prefill_tokens=16)
    num_probes = engine().num_layers + 1
    sizes: list[int] = []
    forward = engine().forward

    def noted(slots: Any, rows: Any, chunks: Any = (), **more: Any) -> Any:
        sizes.append(len(rows) + sum(len(chunk.tokens) for chunk in chunks))
        return forward(slots, rows, chunks, **more)

    asked = [request(families.prompt(seed, length=9), directer(), SPAN, new=1) for seed in range(15)]
    expected = [alone(r) for r in asked]
    monkeypatch.setattr(engine(), "forward", noted)
    answers = [one.submit(r) for r in asked]
    first: list[int] = []
    while not one.is_idle:
        first += [answers.index(emitted.answer) for emitted in one.step()]
    assert first == list(range(15))
    assert max(sizes) <= 16 + num_probes
    assert len(sizes) <= 15
    assert [new_tokens(answer) for answer in answers] == expected


def test_gated_pooled_steering_is_read_in_pieces_too() -> None:
    recipe = SpotLight(pooled=True, gate=Plausibility(0.5)).recipe()
    one = decoder(prefill_tokens=8)
    late = one.submit(request(LONG, recipe, range(20, 26), new=8))
    one.step()
    assert one.slots.lengths[late.slot] == 8
    while not one.is_idle:
        one.step()
    assert new_tokens(late) == alone(late.request)


@pytest.mark.parametrize("kind", KINDS)
def test_likeliest_tokens(kind: str) -> None:
    one, wanted = decoder(), replace(KINDS[kind], num_top=4)
    one.submit(wanted)
    seen = []
    while not one.is_idle:
        seen += one.step()
    for emitted in seen:
        chances = torch.tensor([value for _, value in emitted.top]).exp()
        assert len(emitted.top) == 4
        assert chances[0].item() == pytest.approx(emitted.step.p_top, rel=1e-4)
        told = dict(emitted.top)
        if emitted.step.token_id in told:
            assert told[emitted.step.token_id] == pytest.approx(torch.tensor(emitted.step.p_raw).log().item(), abs=1e-4)
    assert any(emitted.step.changed for emitted in seen) == (kind != "plain")


# -- numbers that are not finite


class Poison(KeyScaling):
    """Makes the keys and values of what it steers NaN, as an overflow does."""

    def edit(self, scores: Any, span: Any, layer: int) -> None:
        scores[span.active.expand_as(scores)] = torch.nan


@dataclass(frozen=True)
class BadContrast(ContextAware):
    """Overflows."""

    def combine(self, logits: Any, hidden: Any) -> Any:
        return logits + torch.inf * (logits - hidden)


POISONS = {
    "always": Poison().recipe(),
    "gated": replace(directer(threshold=0.0), steerer=Poison()),
    "contrast": BadContrast().recipe(),
    "gated contrast": BadContrast(gate=Plausibility(0.0)).recipe(),
}


@pytest.mark.parametrize("kind", POISONS)
@pytest.mark.parametrize("drawn", [Sampling(), Sampling(1.0, seed=1)])
def test_what_is_not_finite_ends_one_answer_alone(kind: str, drawn: Sampling) -> None:
    one = decoder(5, reuses_prefixes=True)
    others = {name: one.submit(asked) for name, asked in KINDS.items()}
    bad = one.submit(request(LONG, POISONS[kind], SPAN, sampling=drawn))
    errors = []
    while not one.is_idle:
        errors += [emitted.error for emitted in one.step() if emitted.error]
    assert [type(error) for error in errors] == [NumericError]
    assert bad.finish_reason == "error"
    assert one._free == list(range(5))
    for name, answer in others.items():
        assert new_tokens(answer) == alone(KINDS[name])
    again = drained(one, request(LONG, directer(), SPAN))[0]
    assert again.num_reused == 0
    assert new_tokens(again) == alone(again.request)


def test_a_slot_is_clean_after_an_answer_that_was_not_finite() -> None:
    """A short answer where NaN lie above it, beside a longer one: masked columns are read all the same."""
    one = decoder(2)
    long = one.submit(request(LONG, new=60))
    bad = one.submit(request(families.prompt(1, length=100), Poison().recipe(), SPAN, new=30))
    while bad.finish_reason is None:
        one.step()
    short = request(PROMPT, new=20)
    after = one.submit(short)
    while not one.is_idle:
        one.step()
    assert after.slot == bad.slot
    assert new_tokens(after) == alone(short)
    assert new_tokens(long) == alone(long.request)


def test_an_answer_that_is_not_finite_raises_where_it_is_read() -> None:
    asked = request(LONG, Poison().recipe(), SPAN)
    with pytest.raises(NumericError, match="are not finite; steer it less"):
        run(engine(), [asked])


class Broken(KeyScaling):
    """Raises in mid-forward."""

    def edit(self, scores: Any, span: Any, layer: int) -> None:
        raise OverflowError("its own fault")


@dataclass(frozen=True)
class BrokenContrast(ContextAware):
    """Raises where tokens are settled."""

    def combine(self, logits: Any, hidden: Any) -> Any:
        raise OverflowError("its own fault")


BROKEN = {
    "always": Broken().recipe(),
    "prefill": replace(InstABoost().recipe(), steerer=Broken()),
    "gated": replace(directer(threshold=0.0), steerer=Broken()),
    "contrast": BrokenContrast().recipe(),
}


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("num_steps", [0, 5])
def test_who_raises_ends_alone(kind: str, num_steps: int) -> None:
    one = decoder(6, reuses_prefixes=True, fails_alone=True, prefill_tokens=16)
    others = {name: one.submit(asked) for name, asked in KINDS.items()}
    for _ in range(num_steps):
        one.step()
    bad = one.submit(request(LONG, BROKEN[kind], SPAN))
    errors = []
    while not one.is_idle:
        errors += [emitted.error for emitted in one.step() if emitted.error]
    assert [str(error) for error in errors] == [
        "the logits of token 1 of the answer cannot be computed (OverflowError); steer it less strongly"
    ]
    assert bad.finish_reason == "error"
    assert one._free == list(range(6))
    for name, answer in others.items():
        assert new_tokens(answer) == alone(KINDS[name])


def test_where_all_fail_it_is_nobodys_own_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    one = decoder(6, fails_alone=True)
    for kind in KINDS.values():
        one.submit(kind)
    one.step()
    monkeypatch.setattr(engine(), "forward", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        one.step()


@pytest.mark.parametrize("make", [ContextAware, Anchoring])
def test_strengths_are_bounded(make: Any) -> None:
    for strength in (1e300, 1.1e6):
        with pytest.raises(OptionError, match="at most 1e"):
            make(strength)
    asked = request(PROMPT, make(1e6).recipe(), SPAN, sampling=Sampling(1.0, seed=1))
    assert drained(decoder(), asked)[0].finish_reason == "length"


# -- prefixes


@pytest.mark.parametrize("recipe", [None, directer(), ContextAware().recipe()])
def test_a_next_turn_reads_only_what_is_new(recipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    one = decoder(4, reuses_prefixes=True)
    first = drained(one, request(LONG, recipe, SPAN, new=12))[0]
    # the last token was never computed: nothing is stored of it
    turn = request([*first.token_ids[:-1], *families.prompt(2, length=9)], recipe, SPAN, new=12)
    chunks, forward = [], engine().forward

    def noted(slots: Any, rows: Any, parts: Any = (), **more: Any) -> Any:
        chunks.extend(parts)
        return forward(slots, rows, parts, **more)

    monkeypatch.setattr(engine(), "forward", noted)
    second = drained(one, turn)[0]
    assert second.num_reused == len(first.token_ids) - 1
    if second.twin is None:
        assert second.slot == first.slot
        assert sum(len(chunk.tokens) for chunk in chunks) <= 9
    assert new_tokens(second) == alone(turn)
    assert second.ranking == run(engine(), [turn], turn.num_slots)[0].ranking


@pytest.mark.parametrize(
    ("method", "prompt_reused", "answer_reused"),
    [(KeyScaling(2.0), True, False), (InstABoost(), False, False)],
)
def test_steered_keys_are_not_reused(method: Any, prompt_reused: bool, answer_reused: bool) -> None:
    recipe = method.recipe()
    one = decoder(1, reuses_prefixes=True)
    first = drained(one, request(LONG, recipe, SPAN, new=12))[0]
    turn = request([*first.token_ids, *families.prompt(2, length=9)], new=6)
    second = drained(one, turn)[0]
    assert second.num_reused == (len(LONG) - 1 if prompt_reused else 0)
    assert new_tokens(second) == alone(turn)
    again = request([*second.token_ids, 1, 2, 3], recipe, SPAN, new=6)
    third = drained(one, again)[0]
    assert (third.num_reused > 0) == prompt_reused
    assert new_tokens(third) == alone(again)


def test_a_request_that_left_leaves_what_it_read() -> None:
    one = decoder(1, prefill_tokens=32, reuses_prefixes=True)
    answer = one.submit(request(LONG, directer(), SPAN))
    for _ in range(2):
        one.step()
    one.finish(answer)
    again = request(LONG, directer(), SPAN)
    second = drained(one, again)[0]
    assert second.num_reused == 64
    assert new_tokens(second) == alone(again)
    third = drained(one, again)[0]
    assert third.num_reused == len(LONG) - 1  # the last token's logits are wanted
    assert new_tokens(third) == alone(again)


def test_which_slot_is_taken() -> None:
    held = Held(3)
    assert held.best([0, 1, 2], range(50)) == (0, 0)
    held.keep(0, range(40))
    held.keep(1, range(30))
    held.keep(2, [7] * 40)
    assert held.best([0, 1, 2], range(50)) == (0, 40)
    assert held.best([1, 2], range(50)) == (1, 30)
    assert held.best([0, 1, 2], [9, 9]) == (0, 0)  # the oldest
    assert held.best([0, 1, 2], range(15)) == (0, 0)  # too little to keep
    held.keep(1, [*range(24), *[5] * 200])
    assert held.best([1, 2], range(24)) == (2, 0)  # a template's tokens are not worth a conversation
    assert held.best([1], range(24)) == (1, 24)
    assert held.best([1, 2], [*range(24), *[5] * 88]) == (1, 112)
    held.keep(0, [])
    assert held.best([0, 1, 2], range(24)) == (0, 0)  # an empty one first, however lately it was used
    assert num_shared([1, 2, 3], [1, 2, 4, 5]) == 2
    assert num_shared([], [1]) == 0


def test_capacity_holds_whatever_fits_the_context() -> None:
    from heedful.serve.storage import sized

    for context in (64, 100, 512):
        capacity = sized(engine(), 1, context).capacity
        for prompt in range(1, context):
            assert capacity_for(request([1] * prompt, new=context - prompt), engine().num_layers) <= capacity
