"""Directer, one forward pass at a time: slow, independent of the engine, plain enough to check by eye.

It is the oracle of the tests and a contender in the benchmark. It follows the design's section 2 literally: a copy of
the raw cache for every trial, stored keys multiplied in that copy, eager attention, batch 1, greedy. It imports nothing
of Heedful but the errors, so no mistake of the engine can repeat itself here. It does not sample, batch or stream.

Positions and layers count from 0. `trials[t]` is the number of steered passes run at step t.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from heedful.errors import OptionError, SpanError, UnsupportedModelError

Factors = Mapping[int, float]  # prompt position -> what its stored keys are multiplied by


@dataclass
class SequentialResult:
    """The new tokens and what was decided at each; `layers` is 0 unless a trial was accepted."""

    token_ids: list[int] = field(default_factory=list)
    decisions: list[str] = field(default_factory=list)  # "skipped" | "accepted" | "rejected"
    layers: list[int] = field(default_factory=list)
    trials: list[int] = field(default_factory=list)
    ranking: list[int] = field(default_factory=list)
    num_forward_passes: int = 0


@dataclass(frozen=True)
class Choice:
    """One step's outcome."""

    token_id: int
    decision: str
    num_layers: int
    num_trials: int


@dataclass(frozen=True)
class Probe:
    """What every attention block read and wrote in one pass: `before` and `after`, each (layers, hidden), float32."""

    before: Tensor
    after: Tensor


class Passes:
    """Runs the model on one sequence and counts the forward passes."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.count = 0

    @torch.no_grad()
    def __call__(self, token_ids: Sequence[int], cache: DynamicCache) -> Tensor:
        """The last token's logits (vocab,), float32; the tokens' keys and values are appended to `cache`."""
        self.count += 1
        ids = torch.tensor([list(token_ids)], device=self.model.device)
        logits: Tensor = self.model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        return logits[0, -1].float()


def plain(
    model: PreTrainedModel, token_ids: Sequence[int], max_new_tokens: int, eos_ids: Collection[int] = ()
) -> SequentialResult:
    """Greedy decoding with nothing steered."""
    forward, result = Passes(model), SequentialResult()
    with eager_attention(model):
        cache, token = prefill(forward, token_ids), token_ids[-1]
        while is_unfinished(result, max_new_tokens, eos_ids):
            token = int(forward([token], cache).argmax())
            record(result, Choice(token, "skipped", 0, 0))
    result.num_forward_passes = forward.count
    return result


def directer(
    model: PreTrainedModel,
    token_ids: Sequence[int],
    positions: Collection[int],
    *,
    strength: float = 100.0,
    threshold: float = 0.5,
    weights: Sequence[float] | None = None,
    ranking: str | Sequence[int] = "paper",
    compat: str | None = None,
    max_new_tokens: int,
    eos_ids: Collection[int] = (),
) -> SequentialResult:
    """Greedy Directer; `weights` go with `positions` one to one, `compat="released"` acts as the authors' code does."""
    if compat not in (None, "released"):
        raise OptionError(f"compat is {compat!r}; it can be None or 'released'")
    factors = span_factors(positions, weights, strength)
    if compat == "released":
        factors = one_past_each_run(factors, len(token_ids))
    check_positions(factors, len(token_ids))
    forward, result = Passes(model), SequentialResult()
    with eager_attention(model):
        cache, token = prefill(forward, token_ids), token_ids[-1]
        result.ranking = rank(forward, cache, token, factors, ranking)
        schedule = halving(result.ranking, has_single=compat is None)
        accepts = accepts_above if compat == "released" else accepts_from
        while is_unfinished(result, max_new_tokens, eos_ids):
            raw = deepcopy(cache)  # `cache` stays as it was before the current token; `raw` is kept for the next step
            logits = forward([token], raw)
            choice = choose(forward, cache, token, logits, schedule, factors, threshold, accepts)
            record(result, choice)
            cache, token = raw, choice.token_id
    result.num_forward_passes = forward.count
    return result


def choose(
    forward: Passes,
    cache: DynamicCache,
    token: int,
    raw_logits: Tensor,
    schedule: Sequence[Sequence[int]],
    factors: Factors,
    threshold: float,
    accepts: Callable[[float, float], bool],
) -> Choice:
    """The pre-check, then the trials, strongest first; `cache` holds the raw tokens before the current one."""
    p = raw_logits.softmax(-1)
    p1, p2 = p.topk(2).values.tolist()
    if p2 < threshold * p1:
        return Choice(int(raw_logits.argmax()), "skipped", 0, 0)
    for trial, layers in enumerate(schedule, start=1):
        candidate = int(forward([token], steered_copy(cache, layers, factors)).argmax())
        if accepts(float(p[candidate]), threshold * p1):
            return Choice(candidate, "accepted", len(layers), trial)
    return Choice(int(raw_logits.argmax()), "rejected", 0, len(schedule))


def accepts_from(probability: float, least: float) -> bool:
    """The paper's acceptance."""
    return probability >= least


def accepts_above(probability: float, least: float) -> bool:
    """The released code's acceptance."""
    return probability > least


def halving(ranking: Sequence[int], *, has_single: bool = True) -> list[list[int]]:
    """All L layers, then the first L // 2, L // 4, … of the ranking down to one (or, without `has_single`, to two)."""
    sizes = [len(ranking) >> k for k in range(len(ranking).bit_length())]
    return [list(ranking[:size]) for size in sizes if size > 1 or has_single]


def prefill(forward: Passes, token_ids: Sequence[int]) -> DynamicCache:
    """A raw cache of all tokens but the last.

    Built without a config on purpose: every layer then keeps all its tokens, sliding-window layers too (their mask
    still hides what has left the window), so that entry i of a layer is the key of position i.
    """
    cache = DynamicCache()
    if len(token_ids) > 1:
        forward(token_ids[:-1], cache)
    return cache


def steered_copy(cache: DynamicCache, layers: Collection[int], factors: Factors) -> DynamicCache:
    """A deep copy of `cache` in which the span's stored keys are scaled in `layers`."""
    copy = deepcopy(cache)
    for layer in layers if copy.get_seq_length() else ():
        stored: Any = copy.layers[layer]
        keys = stored.keys  # (1, kv_heads, tokens, head_dim)
        for position, factor in factors.items():
            if position < keys.shape[2]:  # the current token's own key is not stored yet: it is never scaled
                keys[:, :, position] *= factor
    return copy


def span_factors(positions: Collection[int], weights: Sequence[float] | None, strength: float) -> dict[int, float]:
    """Each span position's factor: strength ** weight, a weight being 1 where none is given."""
    weights = [1.0] * len(positions) if weights is None else weights
    if len(weights) != len(positions):
        raise OptionError(f"{len(weights)} weights were given for {len(positions)} positions; give one for each")
    return {position: strength**weight for position, weight in zip(positions, weights, strict=True)}


def one_past_each_run(factors: Factors, num_prompt_tokens: int) -> dict[int, float]:
    """`factors`, and the position after each contiguous run too (with its last factor) where the prompt has one."""
    after = {position + 1: factor for position, factor in factors.items() if position + 1 < num_prompt_tokens}
    return after | dict(factors)


def check_positions(factors: Factors, num_prompt_tokens: int) -> None:
    """Refuse positions outside the prompt."""
    outside = [position for position in factors if not 0 <= position < num_prompt_tokens]
    if outside:
        raise SpanError(f"positions {outside} lie outside the prompt's {num_prompt_tokens} tokens")


def rank(forward: Passes, cache: DynamicCache, token: int, factors: Factors, ranking: str | Sequence[int]) -> list[int]:
    """The layers, most sensitive first: as given, or probed with the last prompt token."""
    num_layers = forward.model.config.get_text_config().num_hidden_layers
    if not isinstance(ranking, str):
        if sorted(ranking) != list(range(num_layers)):
            raise OptionError(f"the ranking {list(ranking)} must name each of the {num_layers} layers once")
        return list(ranking)
    if ranking not in FORMULAS:
        raise OptionError(f"ranking is {ranking!r}; it can be {', '.join(map(repr, FORMULAS))} or a list of layers")
    raw = probe(forward, deepcopy(cache), token)
    rows = [probe(forward, steered_copy(cache, [layer], factors), token) for layer in range(num_layers)]
    scores = FORMULAS[ranking](raw, rows)
    return sorted(range(num_layers), key=lambda layer: (-scores[layer], layer))


def paper_scores(raw: Probe, rows: Sequence[Probe]) -> list[float]:
    """Sensitivity(l) = mean over j of D_j(l): how far steering layer l moves every block's input from its output."""
    undisturbed = distance(raw.before, raw.after)  # (layers,), over j, as are all below
    scores = []
    for row in rows:
        to_after = distance(raw.before, row.after) - undisturbed
        from_before = distance(row.before, raw.after) - undisturbed
        scores.append(float((to_after + from_before).mean()))
    return scores


def released_scores(raw: Probe, rows: Sequence[Probe]) -> list[float]:
    """The released code's score of layer j: a mean over the probed layers, the undisturbed distance not subtracted."""
    sums = [distance(raw.before, row.after) + distance(raw.after, row.before) for row in rows]
    scores: list[float] = torch.stack(sums).clamp(min=0).mean(0).tolist()
    return scores


FORMULAS: Mapping[str, Callable[[Probe, Sequence[Probe]], list[float]]] = {
    "paper": paper_scores,
    "released": released_scores,
}


def distance(left: Tensor, right: Tensor) -> Tensor:
    """Cosine distance, row by row."""
    return 1 - nn.functional.cosine_similarity(left, right, dim=-1)


def probe(forward: Passes, cache: DynamicCache, token: int) -> Probe:
    """Run one token through `cache` and capture every attention block's input and output."""
    before: dict[int, Tensor] = {}
    after: dict[int, Tensor] = {}

    def capture(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        before[module.layer_idx] = hidden[0, -1].float().clone()
        after[module.layer_idx] = output[0][0, -1].float().clone()

    blocks = attention_blocks(forward.model)
    with ExitStack() as hooks:
        for block in blocks:
            hooks.callback(block.register_forward_hook(capture, with_kwargs=True).remove)
        forward([token], cache)
    layers = range(len(blocks))
    return Probe(torch.stack([before[j] for j in layers]), torch.stack([after[j] for j in layers]))


def attention_blocks(model: PreTrainedModel) -> list[Any]:
    """The attention modules, one a layer: those that say their layer and call themselves Attention."""
    blocks: list[Any] = [
        m for m in model.modules() if hasattr(m, "layer_idx") and type(m).__name__.endswith("Attention")
    ]
    num_layers = model.config.get_text_config().num_hidden_layers
    if sorted(block.layer_idx for block in blocks) != list(range(num_layers)):
        raise UnsupportedModelError(
            f"found {len(blocks)} attention modules for {num_layers} layers; one each is needed"
        )
    return blocks


def is_unfinished(result: SequentialResult, max_new_tokens: int, eos_ids: Collection[int]) -> bool:
    """Whether another token is due."""
    return len(result.token_ids) < max_new_tokens and not (result.token_ids and result.token_ids[-1] in eos_ids)


def record(result: SequentialResult, choice: Choice) -> None:
    """Append one step."""
    result.token_ids.append(choice.token_id)
    result.decisions.append(choice.decision)
    result.layers.append(choice.num_layers)
    result.trials.append(choice.num_trials)


@contextmanager
def eager_attention(model: PreTrainedModel) -> Iterator[None]:
    """Eager attention inside, the model's own implementation again afterwards (of its sub-models too)."""
    parts = {name: getattr(model.config, name) for name in model.config.sub_configs}
    own = {"": model.config} | {name: part for name, part in parts.items() if part is not None}
    former = {name: config._attn_implementation for name, config in own.items()}
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(former)
