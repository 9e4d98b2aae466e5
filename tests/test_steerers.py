"""Every steerer against a slow reference that edits the whole attention matrix by hand, and what must hold of each."""

import math
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch

import eager
import families
import heedful
from heedful.engine import Chunk, Edit, Engine, Row
from heedful.errors import OptionError
from heedful.recipe import Recipe, SpanView
from heedful.schedule import Halving
from helpers import new_tokens, request, run

every_family = pytest.mark.parametrize("name", families.NAMES)
some_families = pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "gemma3", "gpt_oss"])
NEW = 8
HEADS = {0: [1], 1: [0, 3], 3: [2]}
SPAN = tuple(families.SPAN)
FRONT = tuple(range(17))  # some rows, or all of a narrow window's, see nothing else
SCATTERED = (3, 4, 9, 12, 13, 19)  # the last prompt token too


@cache
def engine_of(name: str) -> Engine:
    return Engine(families.build(name))


def methods(span: tuple[int, ...], prompt: int) -> dict[str, tuple[Any, dict[str, Any]]]:
    """A method, and the same for the reference."""
    return {
        "static": (
            heedful.KeyScaling(4.0, layers=(0, 2)),
            {"before_cap": eager.only_in((0, 2), lambda row: row >= prompt - 1, eager.key_scaling(span, 4.0))},
        ),
        "instaboost": (
            heedful.InstABoost(5.0),
            {"after_mask": eager.only_in(None, lambda row: True, eager.instaboost(span, 5.0))},
        ),
        "pasta": (
            heedful.Pasta(HEADS, 0.05),
            {"after_mask": eager.only_in(None, lambda row: True, eager.pasta(span, prompt, HEADS, 0.05))},
        ),
        "spotlight": (
            heedful.SpotLight(0.6),
            {"after_mask": eager.only_in(None, lambda row: True, eager.spotlight(span, 0.6))},
        ),
        "spotlight, some layers": (
            heedful.SpotLight(0.4, layers=(1,)),
            {"after_mask": eager.only_in((1,), lambda row: True, eager.spotlight(span, 0.4))},
        ),
    }


def seen_logits(engine: Engine, wanted: Any) -> tuple[list[int], list[torch.Tensor]]:
    """The tokens of an answer, and the logits that they were taken from."""
    noted: list[torch.Tensor] = []

    def note(token_ids: Any, logits: torch.Tensor) -> torch.Tensor:
        noted.append(logits.clone())
        return logits

    (answer,) = run(engine, [replace(wanted, process=note)])
    return new_tokens(answer), noted


@every_family
@pytest.mark.parametrize("span", [SPAN, SCATTERED, FRONT], ids=["one run", "scattered", "front"])
@pytest.mark.parametrize("kind", list(methods(SPAN, 1)))
def test_as_published_is_the_edited_matrix(name: str, kind: str, span: tuple[int, ...]) -> None:
    engine, ids = engine_of(name), families.prompt(1)
    method, edits = methods(span, len(ids))[kind]
    tokens, logits = seen_logits(engine, request(ids, method.recipe(), span, NEW))
    reference, plain = eager.Reference(engine.model, **edits), eager.Reference(engine.model)
    for step, got in enumerate(logits):
        expected = reference.logits(ids + tokens[:step])
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-5)
    if kind.startswith("spotlight") and span == FRONT:
        return  # the span's share is above ψ already
    assert not torch.allclose(logits[0], plain.logits(ids), atol=1e-3)  # the edit does something


@some_families
@pytest.mark.parametrize("kind", list(methods(SPAN, 1)))
def test_one_row_is_exact(name: str, kind: str) -> None:
    """The attention of a steered row itself, before any layer can widen a rounding error."""
    engine, ids = engine_of(name), families.prompt(2)
    method, edits = methods(SPAN, len(ids))[kind]
    first = min(layers) if (layers := method.recipe().layers) else 0
    _, logits = seen_logits(engine, request(ids, replace(method.recipe(), layers=(first,)), SPAN, 1))
    one_layer = {stage: lambda s, at, edit=edit: edit(s, at) if at == first else None for stage, edit in edits.items()}
    expected = eager.Reference(engine.model, **one_layer).logits(ids)
    assert float((logits[0] - expected).abs().max()) <= 1e-5 * max(1.0, float(expected.abs().max()))


@some_families
@pytest.mark.parametrize("kind", ["pasta", "spotlight", "instaboost"])
def test_gated_is_the_edited_last_row(name: str, kind: str) -> None:
    """Raw prefill and cache; a trial edits the current token's row alone, in its candidate set's layers."""
    engine, ids, gate = engine_of(name), families.prompt(1), heedful.Plausibility(0.3)
    method = replace(methods(SPAN, len(ids))[kind][0], gate=gate)
    (answer,) = run(engine, [request(ids, method.recipe(), SPAN, NEW)])
    raw = eager.Reference(engine.model)
    tokens = list(ids)
    kept = [layer for layer in answer.ranking if method.recipe().layers is None or layer in method.recipe().layers]
    for step in answer.steps:
        p = raw.logits(tokens).softmax(-1)
        best, second = p.topk(2).values.tolist()
        token, decision, layers = int(p.argmax()), "skipped", 0
        if second >= gate.threshold * best:
            decision = "rejected"
            for chosen in Halving().candidate_sets(kept):
                trial = int(steered(engine, kind, tokens, len(ids), chosen).logits(tokens).argmax())
                if p[trial] >= gate.threshold * best:
                    token, decision, layers = trial, "accepted", len(chosen)
                    break
        assert (step.token_id, step.decision, step.layers) == (token, decision, layers)
        tokens.append(token)
    assert any(step.decision != "skipped" for step in answer.steps)


def steered(engine: Engine, kind: str, tokens: list[int], prompt: int, layers: Any) -> eager.Reference:
    edit = {
        "pasta": eager.pasta(SPAN, prompt, HEADS, 0.05),
        "spotlight": eager.spotlight(SPAN, 0.6),
        "instaboost": eager.instaboost(SPAN, 5.0),
    }[kind]
    last = len(tokens) - 1
    return eager.Reference(engine.model, after_mask=eager.only_in(layers, lambda row: row == last, edit))


@every_family
def test_boosting_twice_is_storing_twice(name: str) -> None:
    engine, ids = engine_of(name), families.prompt(4)
    tokens, logits = seen_logits(engine, request(ids, heedful.InstABoost(2.0).recipe(), SPAN, NEW))
    twice = eager.Reference(engine.model, repeated=SPAN)
    for step, got in enumerate(logits):
        torch.testing.assert_close(got, twice.logits(ids + tokens[:step]), atol=1e-4, rtol=1e-5)


@some_families
@pytest.mark.parametrize("gate", [None, heedful.Plausibility(0.0)])
@pytest.mark.parametrize(
    "method",
    [
        heedful.KeyScaling(1.0),
        heedful.Pasta(HEADS, 1.0),
        heedful.InstABoost(1.0),
        heedful.SpotLight(0.0),
        heedful.ContextAware(0.0),
        heedful.Anchoring(1.0),
    ],
)
def test_neutral_strength_is_plain(name: str, method: Any, gate: Any) -> None:
    engine, ids = engine_of(name), families.prompt(6)
    plain, neutral = run(engine, [request(ids), request(ids, replace(method, gate=gate).recipe(), SPAN)])
    assert new_tokens(plain) == new_tokens(neutral)


@some_families
@pytest.mark.parametrize("kind", ["pasta", "spotlight", "instaboost"])
def test_a_later_token_never_changes_an_earlier_row(name: str, kind: str) -> None:
    engine, ids = engine_of(name), families.prompt(8)
    steerer = methods(SPAN, len(ids))[kind][0]
    stored = []
    for last in (ids[-1], (ids[-1] + 1) % families.VOCAB):
        slots = engine.slots(1, 64)
        slots.open(0, len(ids), SPAN, [1.0] * len(SPAN))
        edit = Edit(steerer, frozenset(range(engine.num_layers)))
        engine.forward(slots, [], [Chunk(0, [*ids[:-1], last], 0, edit=edit)])
        stored.append(torch.stack([k[0, :, : len(ids)].clone() for k in slots.keys]))
    torch.testing.assert_close(stored[0][:, :, :-1], stored[1][:, :, :-1], atol=0, rtol=0)
    assert not torch.equal(stored[0][:, :, -1], stored[1][:, :, -1])


@some_families
@pytest.mark.parametrize("kind", list(methods(SPAN, 1)))
def test_pieces_and_company_change_nothing(name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The prompt in chunks, other slots, other methods beside it, few score floats at a time: the same tokens."""
    engine = engine_of(name)
    wanted = [
        request(families.prompt(seed, 20 + 3 * seed), methods(SPAN, 20 + 3 * seed)[other][0].recipe(), SPAN, 6 + seed)
        for seed, other in enumerate([kind, "static", kind, "pasta", "instaboost", "spotlight"])
    ]
    alone = [new_tokens(run(engine, [r])[0]) for r in wanted]
    assert [new_tokens(a) for a in run(engine, [*wanted, request(families.prompt(9))], 4)][:-1] == alone
    monkeypatch.setattr("heedful.decode.PREFILL_TOKENS", 7)
    monkeypatch.setattr("heedful.engine.attention.MAX_SCORES", 64)
    assert [new_tokens(a) for a in run(engine, wanted, 3)] == alone


def share(engine: Engine, edit: Edit | None, ids: list[int], weights: Any = None) -> torch.Tensor:
    """The share of the last layer's attention on the span, as an edit of its own sees it: (heads,)."""
    seen: list[torch.Tensor] = []

    class Spy(heedful.InstABoost):
        def edit(self, scores: torch.Tensor, span: SpanView, layer: int) -> None:
            if edit is not None and layer in edit.layers:
                edit.steerer.edit(scores, span, layer)
            seen.append(scores.softmax(-1)[..., span.start : span.stop].mul(span.weights > 0).sum(-1).flatten())

    slots = engine.slots(1, 64)
    slots.open(0, len(ids), SPAN, weights or [1.0] * len(SPAN))
    engine.forward(slots, [], [Chunk(0, ids[:-1], 0)])
    engine.forward(slots, [Row(ids[-1], len(ids) - 1, 0, Edit(Spy(), frozenset([0])))])
    return seen[0]


@pytest.mark.parametrize("name", ["llama", "qwen3", "phi3"])
def test_share_rises_with_strength(name: str) -> None:
    engine, ids = engine_of(name), families.prompt(3)
    here = frozenset([0])
    plain = share(engine, None, ids)
    boosts = [share(engine, Edit(heedful.InstABoost(m), here), ids) for m in (0.5, 1.0, 2.0, 8.0)]
    assert all(bool((a < b).all()) for a, b in pairwise(boosts))
    lowered = [share(engine, Edit(heedful.Pasta({0: [0, 1, 2, 3]}, a), here), ids) for a in (1.0, 0.3, 0.01)]
    assert all(bool((a < b).all()) for a, b in pairwise(lowered))
    for target in (0.05, 0.3, 0.9):
        lifted = share(engine, Edit(heedful.SpotLight(target), here), ids)
        torch.testing.assert_close(lifted, plain.clamp_min(target), atol=1e-5, rtol=1e-5)


def test_pooled_spotlight_lifts_all_heads_by_one_bias() -> None:
    engine, ids = engine_of("llama"), families.prompt(3)
    plain = share(engine, None, ids)
    target = float(plain.mean()) * 1.5
    lifted = share(engine, Edit(heedful.SpotLight(target, pooled=True), frozenset([0])), ids)
    odds = torch.logit(lifted) - torch.logit(plain)
    torch.testing.assert_close(odds, torch.full_like(odds, math.log(1.5)), atol=1e-4, rtol=1e-4)
    unmoved = share(engine, Edit(heedful.SpotLight(float(plain.mean()) * 0.9, pooled=True), frozenset([0])), ids)
    torch.testing.assert_close(unmoved, plain)


@some_families
def test_pooled_spotlight_in_a_prefill_is_the_edited_matrix(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, ids, target = engine_of(name), families.prompt(2), 0.5

    def by_hand(scores: torch.Tensor, layer: int) -> None:
        for rows in (slice(0, -1), slice(-1, None)):  # the prompt's last token is a pass of its own
            inside = scores[:, rows].softmax(-1)[..., list(SPAN)].sum(-1)
            if 0 < float(inside.mean()) < target:
                scores[:, rows, SPAN[0] : SPAN[-1] + 1] += math.log(target / float(inside.mean()))

    monkeypatch.setattr("heedful.engine.attention.MAX_SCORES", 64)
    recipe = heedful.SpotLight(target, pooled=True).recipe()
    _, logits = seen_logits(engine, request(ids, recipe, SPAN, 1))
    expected = eager.Reference(engine.model, after_mask=by_hand).logits(ids)
    torch.testing.assert_close(logits[0], expected, atol=1e-4, rtol=1e-5)


def test_weights_scale_what_is_added() -> None:
    engine, ids = engine_of("llama"), families.prompt(1)
    half = (0.5,) * len(SPAN)
    pairs = [
        (heedful.InstABoost(9.0), heedful.InstABoost(3.0)),
        (heedful.KeyScaling(9.0), heedful.KeyScaling(3.0)),
    ]
    for strong, weak in pairs:
        _, a = seen_logits(engine, replace(request(ids, strong.recipe(), SPAN, 1), weights=half))
        _, b = seen_logits(engine, request(ids, weak.recipe(), SPAN, 1))
        torch.testing.assert_close(a, b)
    off = replace(request(ids, heedful.Pasta(HEADS, 0.1).recipe(), SPAN, 1), weights=(0.0,) * len(SPAN))
    nothing = eager.Reference(
        engine.model, after_mask=eager.only_in(None, lambda row: True, eager.pasta((), len(ids), HEADS, 0.1))
    )
    torch.testing.assert_close(seen_logits(engine, off)[1][0], nothing.logits(ids), atol=1e-4, rtol=1e-5)


def test_the_ladder_steers_the_top_of_the_ranking() -> None:
    engine, ids = engine_of("llama"), families.prompt(1)
    (ranked,) = run(engine, [request(ids, heedful.Directer(4.0).recipe(), SPAN, 1)])
    for level, size in enumerate((5, 2, 1)):
        layers = ranked.ranking[:size]
        a, b = run(
            engine,
            [
                request(ids, heedful.KeyScaling(4.0, level=level).recipe(), SPAN, NEW),
                request(ids, heedful.KeyScaling(4.0, layers=tuple(layers)).recipe(), SPAN, NEW),
            ],
        )
        assert new_tokens(a) == new_tokens(b)
        assert {step.layers for step in a.steps} == {size}
    with pytest.raises(OptionError, match="levels 0 to 2"):
        heedful.KeyScaling(level=3).recipe().check(engine.shape)


@some_families
@pytest.mark.parametrize("gate", [None, heedful.Plausibility(0.2)])
@pytest.mark.parametrize("kind", ["context-aware", "anchoring"])
def test_contrast_is_two_models_side_by_side(name: str, kind: str, gate: Any) -> None:
    engine, ids = engine_of(name), families.prompt(1)
    if kind == "context-aware":
        method: Any = heedful.ContextAware(1.5, gate=gate)
        other = [token for at, token in enumerate(ids) if at not in SPAN]
    else:
        method = heedful.Anchoring(2.5, gate=gate)
        other = [engine.neutral_id if at in SPAN else token for at, token in enumerate(ids)]
    (answer,) = run(engine, [request(ids, method.recipe(), SPAN, NEW)], num_slots=2)
    raw, new = eager.Reference(engine.model), []
    for step in answer.steps:
        with_it, without = raw.logits(ids + new), raw.logits(other + new)
        combined = with_it + 1.5 * (with_it - without)
        p = with_it.softmax(-1)
        best, second = p.topk(2).values.tolist()
        token, decision = int(combined.argmax()), "accepted"
        if gate is not None and second < gate.threshold * best:
            token, decision = int(with_it.argmax()), "skipped"
        elif gate is not None and float(p[token]) < gate.threshold * best:
            token, decision = int(with_it.argmax()), "rejected"
        assert (step.token_id, step.decision) == (token, decision)
        assert step.changed == (token != int(with_it.argmax()))
        new.append(token)
    assert answer.stats.forward_passes == NEW  # no pass of its own for the second reading


def test_contrast_shares_a_batch() -> None:
    engine = engine_of("llama")
    recipes = [heedful.ContextAware(1.0).recipe(), None, heedful.Directer().recipe(), heedful.Anchoring(3.0).recipe()]
    wanted = [request(families.prompt(s, 14 + s), r, range(2, 7), 5 + s) for s, r in enumerate([*recipes, *recipes])]
    alone = [new_tokens(run(engine, [r], 2)[0]) for r in wanted]
    for num_slots in (2, 3, 5, 16):
        assert [new_tokens(a) for a in run(engine, wanted, num_slots)] == alone


def test_contrast_of_a_prompt_that_is_all_instruction() -> None:
    engine = engine_of("llama")
    (answer,) = run(engine, [request([5, 6, 7], heedful.ContextAware().recipe(), [0, 1, 2], 4)], 2)
    assert len(new_tokens(answer)) == 4


def test_a_span_of_everything_and_weights_of_spotlight_and_pasta() -> None:
    engine, ids = engine_of("llama"), families.prompt(3)
    gated = replace(heedful.SpotLight(0.5), gate=heedful.Plausibility(0.0)).recipe()
    (answer,) = run(engine, [request(ids, gated, range(len(ids)), 4)])
    assert all(0 < step.p_top <= 1 and step.decision == "accepted" for step in answer.steps)
    here, weights = frozenset([0]), [0.5] * len(SPAN)
    plain = share(engine, None, ids)
    whole = share(engine, Edit(heedful.SpotLight(0.9), here), ids)
    half = share(engine, Edit(heedful.SpotLight(0.9), here), ids, weights)
    torch.testing.assert_close(torch.logit(half) - torch.logit(plain), (torch.logit(whole) - torch.logit(plain)) / 2)
    lowered = heedful.Pasta({0: [0, 1, 2, 3]}, 0.01)
    halved = share(engine, Edit(lowered, here), ids, weights)  # span by α^½, rest by α: odds by α^-½
    odds = torch.logit(halved) - torch.logit(plain)
    torch.testing.assert_close(odds, torch.full_like(odds, math.log(10.0)), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("kind", ["spotlight", "spotlight, some layers"])
@pytest.mark.parametrize("span", [SPAN, FRONT])
@some_families
def test_spotlight_over_many_rows_is_the_edited_matrix(
    name: str, span: tuple[int, ...], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("heedful.steerers.FEW_SCORES", 0)
    test_as_published_is_the_edited_matrix(name, kind, span)


def test_pooling_does_not_depend_on_company(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("heedful.decode.PREFILL_TOKENS", 32)
    engine, recipe = engine_of("llama"), heedful.SpotLight(0.5, pooled=True).recipe()
    wanted = [request(families.prompt(s, 20 + 7 * s), recipe, SPAN, 3) for s in range(5)]
    alone = [seen_logits(engine, r)[1] for r in wanted]
    noted: list[list[torch.Tensor]] = [[] for _ in wanted]

    def note(which: int) -> Any:
        return lambda ids, logits: (noted[which].append(logits.clone()), logits)[1]

    run(engine, [replace(r, process=note(i)) for i, r in enumerate(wanted)])
    for one, together in zip(alone, noted, strict=True):
        torch.testing.assert_close(one, together, atol=1e-4, rtol=1e-5)


def test_contrast_in_all_its_ways() -> None:
    """Processors, EOS, sampling with and without a gate, and statistics that count the second reading."""
    engine, ids = engine_of("llama"), families.prompt(1)
    recipe = heedful.ContextAware(3.0).recipe()
    (free,) = run(engine, [request(ids, recipe, SPAN, NEW)], 2)
    banned = new_tokens(free)[0]

    def ban(_: Any, logits: torch.Tensor) -> torch.Tensor:
        return logits.index_fill(0, torch.tensor([banned]), -torch.inf)

    (kept,) = run(engine, [request(ids, recipe, SPAN, NEW, process=ban)], 2)
    assert banned not in new_tokens(kept)
    third = new_tokens(free)[2]
    (ended,) = run(engine, [request(ids, recipe, SPAN, NEW, eos_ids=frozenset({third}))], 2)
    assert ended.finish_reason == "eos"
    assert new_tokens(ended) == new_tokens(free)[: new_tokens(free).index(third) + 1]
    heat = [
        run(engine, [request(ids, recipe, SPAN, NEW, sampling=heedful.Sampling(1.5, seed=s))], 2)[0] for s in (1, 2)
    ]
    assert len({tuple(new_tokens(a)) for a in [free, *heat]}) == 3
    gated = heedful.ContextAware(3.0, gate=heedful.Plausibility(0.2)).recipe()
    for seed in range(6):
        (drawn,) = run(engine, [request(ids, gated, SPAN, NEW, sampling=heedful.Sampling(2.0, seed=seed))], 2)
        assert all(s.p_raw >= 0.2 * s.p_top * (1 - 1e-5) for s in drawn.steps if s.decision == "accepted")
    assert free.stats.rows == 2 * (NEW - 1)
    assert free.stats.forward_passes == NEW


def test_a_contrast_counts_the_passes_of_both_readings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("heedful.decode.PREFILL_TOKENS", 8)
    engine, calls = engine_of("llama"), []
    real = engine.forward
    monkeypatch.setattr(engine, "forward", lambda *a, **k: (calls.append(1), real(*a, **k))[1])
    (answer,) = run(engine, [request(families.prompt(1, 30), heedful.Anchoring().recipe(), SPAN, 3)], 2)
    assert answer.stats.forward_passes == len(calls)


def test_no_more_answers_at_a_time_than_asked_for() -> None:
    from heedful.decode import Decoder

    engine, contrast = engine_of("llama"), heedful.ContextAware().recipe()
    decoder, most = Decoder(engine, 4, 128, max_running=2), 0
    for seed in range(5):
        decoder.submit(request(families.prompt(seed), contrast if seed == 4 else None, SPAN, 3))
    while not decoder.is_idle:
        decoder.step()
        most = max(most, sum(answer.leader is None for answer in decoder._running))
    assert most == 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: heedful.SpotLight(1.0), "below 1"),
        (lambda: heedful.SpotLight(-0.1), "at least 0"),
        (lambda: heedful.SpotLight(float("nan")), "finite"),
        (lambda: heedful.InstABoost(0.0), "above 0"),
        (lambda: heedful.InstABoost(float("inf")), "finite"),
        (lambda: heedful.Pasta({0: [1]}, strength=0.0), "above 0"),
        (lambda: heedful.Pasta({}), "needs heads"),
        (lambda: heedful.Pasta({0: [-1]}), "at least 0"),
        (lambda: heedful.Anchoring(0.5), "at least 1"),
        (lambda: heedful.ContextAware(-1), "at least 0"),
        (lambda: heedful.KeyScaling(level=-1), "at least 0"),
        (lambda: heedful.KeyScaling(level=1, gate=heedful.Plausibility()), "without|static"),
        (lambda: Recipe(), "exactly one"),
        (lambda: heedful.KeyScaling(layers=()), "at least one layer"),
        (lambda: heedful.KeyScaling(layers=3), "list of whole numbers"),
        (lambda: heedful.KeyScaling("7"), "must be a number"),
        (lambda: heedful.SpotLight(pooled="no"), "true or false"),
        (lambda: heedful.SpotLight(gate=0.5), "gate must be"),
        (lambda: heedful.ContextAware(gate=1), "gate must be"),
        (lambda: heedful.Pasta({0: 1}), "list of whole numbers"),
        (lambda: heedful.Pasta(3), "heads must be"),
        (lambda: heedful.Directer(ranking=3), "ranking must be"),
        (lambda: heedful.Directer(ranking=None), "ranking must be"),
        (lambda: heedful.Sampling(1.0, seed=10**30), "at most"),
        (lambda: heedful.Directer(ranking="random:" + "9" * 30), "unknown ranking"),
        (lambda: heedful.ContextAware().recipe().span([1], [0.5], 9), "0 or 1 only"),
    ],
)
def test_bad_values(make: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        make()


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (heedful.Pasta({5: [0]}), "layer 5 .* 0 to 4"),
        (heedful.Pasta({0: [4]}), "head 4 .* 0 to 3"),
        (heedful.SpotLight(layers=(7,)), "layer 7 .* 0 to 4"),
        (heedful.KeyScaling(layers=(5,)), "layer 5 .* 0 to 4"),
        (heedful.Directer(ranking=(0, 9)), "layer 9 .* 0 to 4"),
    ],
)
def test_unknown_layers_and_heads(method: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        method.recipe().check(engine_of("llama").shape)
