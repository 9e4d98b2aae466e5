"""What the decoder reads of a method: steerer, gate, schedule and ranking as plain values, and their protocols.

A method is anything with a `recipe()`; the engine and the decoder never ask which one it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch

from heedful.errors import OptionError
from heedful.gate import Plausibility
from heedful.schedule import Halving

MEASURED = ("paper", "released", "reversed")  # on the prompt, by probe rows
RANKINGS = (*MEASURED, "random", "random:SEED")
Ranking = str | tuple[int, ...]
# "keys": as if stored keys were changed, so before a soft-cap, and a row's own key is spared. "scores": a bias on what
# enters the softmax, so after soft-cap and mask, and a row's own key counts like any other.
Stage = Literal["keys", "scores"]


@dataclass(frozen=True)
class ModelShape:
    """What a method may ask of a model: its name (empty where it has none), layers, and query heads a layer."""

    name: str
    num_layers: int
    num_heads: int

    def may_be(self, other: ModelShape) -> bool:
        """Whether both can be one model: the same shape, and the same name where both have one."""
        same = (self.num_layers, self.num_heads) == (other.num_layers, other.num_heads)
        return same and (self.name == other.name or not (self.name and other.name))


@dataclass(eq=False)
class SpanView:
    """What an edit may look at, shaped to broadcast against scores `(slots, kv_heads, group, rows, columns)`.

    `start`, `stop`: the smallest range of columns that holds every span token that these rows see. `weights`
    `(slots, 1, 1, 1 or rows, stop - start)`: span weight of each of those columns, 0 outside the span. `active`
    `(slots, 1, 1, rows, 1)`: whether the row is steered in this layer. `in_prompt()` `(slots, 1, 1, rows, columns)`:
    whether the column holds a token of the prompt. `share` `(slots, 1, 1, 1, 1)`: the span's share of attention over
    all heads and rows of a pass, for steerers that pool; None where the row at hand is all there is.
    """

    start: int
    stop: int
    weights: torch.Tensor
    active: torch.Tensor
    in_prompt: Callable[[], torch.Tensor]
    share: torch.Tensor | None = None
    _once: dict[str, torch.Tensor] = field(default_factory=dict)

    def once(self, name: str, build: Callable[[], torch.Tensor]) -> torch.Tensor:
        """What `build()` gave when `name` was first asked for: layers that steer the same rows share a view."""
        if name not in self._once:
            self._once[name] = build()
        return self._once[name]


class Steerer(Protocol):
    """One edit of attention scores. Implementations are frozen dataclasses, so that equal settings compare equal."""

    @property
    def stage(self) -> Stage:
        """What the edit is meant to act on; see `Stage`."""

    @property
    def is_pooled(self) -> bool:
        """Whether the edit of a row depends on other rows of its pass: then `share_of` is asked before `edit`."""

    def edit(self, scores: torch.Tensor, span: SpanView, layer: int) -> None:
        """Edits float32 `scores (slots, kv_heads, group, rows, columns)` in place; hidden columns hold -inf or junk."""

    def share_of(self, scores: torch.Tensor, span: SpanView) -> torch.Tensor:
        """The span's share of attention `(slots, kv_heads, group, rows, 1)` before any edit, for pooled steerers."""

    def check(self, model: ModelShape) -> None:
        """Raises `OptionError` where it was made for another model, or names a layer or head that this one lacks."""


class Contrast(Protocol):
    """Steers logits, not attention: compares the prompt with one in which the instruction cannot be read."""

    def hide(self, token_ids: Sequence[int], positions: Sequence[int], neutral_id: int) -> tuple[int, ...]:
        """The prompt without its instruction; `neutral_id` is a token that means nothing. Never empty."""

    def combine(self, logits: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """Steered logits `(vocab,)` from those with and without the instruction."""


@dataclass(frozen=True)
class Recipe:
    """One method, spelled out.

    Either `steerer` or `contrast`. `gate` None: ungated, one steered row a step whose key and value are kept.
    `layers`: those that may be steered, None for all. `level`: ungated, steer the schedule's set of that number (0 is
    all). `steers_prefill`: ungated, whether the prompt's tokens are steered as well. `overhang`: how many tokens past
    each end of the span are steered too (0, or 1 for the released code's quirk). `displace(positions, num_tokens)`:
    where the span's tokens are taken to lie, for controls; where that is fewer tokens, the first weights are used.
    """

    steerer: Steerer | None = None
    contrast: Contrast | None = None
    gate: Plausibility | None = None
    schedule: Halving = Halving()
    ranking: Ranking = "paper"
    layers: tuple[int, ...] | None = None
    level: int = 0
    steers_prefill: bool = False
    overhang: int = 0
    displace: Callable[[Sequence[int], int], Sequence[int]] | None = None

    def __post_init__(self) -> None:
        check_ranking(self.ranking)
        if (self.steerer is None) == (self.contrast is None):
            raise OptionError("a recipe needs a steerer or a contrast: exactly one of them")
        if self.level and self.steers_prefill:
            raise OptionError("a level needs a ranking, which needs the prefill: it cannot steer the prefill as well")

    def check(self, model: ModelShape) -> None:
        """Raises `OptionError` where the recipe was made for another model, or names a layer or head that it lacks."""
        num_layers = model.num_layers
        named = (*(self.layers or ()), *(() if isinstance(self.ranking, str) else self.ranking))
        outside = [layer for layer in named if not 0 <= layer < num_layers]
        if outside:
            raise OptionError(f"layer {outside[0]} is not in the model: its layers are 0 to {num_layers - 1}")
        if self.steerer is not None:
            self.steerer.check(model)
        sets = self.candidate_sets(tuple(range(num_layers)))
        if self.level >= len(sets):
            raise OptionError(f"level {self.level} is too deep: {num_layers} layers have levels 0 to {len(sets) - 1}")
        fixed = self.ranking if self.needs_ranking and not isinstance(self.ranking, str) else range(num_layers)
        if not self.candidate_sets(tuple(fixed))[0]:
            raise OptionError("no layer is left to steer: the ranking names none of the method's layers")

    def span(
        self, positions: Sequence[int], weights: Sequence[float], num_tokens: int
    ) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """The span as this recipe takes it, in a prompt of `num_tokens`: with its overhang behind each of its runs.

        Raises `OptionError` for a weight that is neither 0 nor 1 where logits are contrasted: hiding knows no degrees.
        """
        if self.displace is not None:
            positions = self.displace(positions, num_tokens)
            weights = weights[: len(positions)]
        wide = dict(zip(positions, weights, strict=True))
        if self.contrast is not None:
            if any(weight not in (0.0, 1.0) for weight in weights):
                raise OptionError("this method hides the instruction or does not: its span weights can be 0 or 1 only")
            wide = {position: weight for position, weight in wide.items() if weight}
        for position, weight in zip(positions, weights, strict=True):
            for ahead in range(position + 1, min(position + 1 + self.overhang, num_tokens)):
                wide.setdefault(ahead, weight)
        return tuple(sorted(wide)), tuple(wide[position] for position in sorted(wide))

    @property
    def needs_ranking(self) -> bool:
        """Whether the layers must be ordered before the first steered row."""
        return self.steerer is not None and (self.gate is not None or self.level > 0)

    @property
    def needs_probe(self) -> bool:
        """Whether that order is measured on the prompt."""
        return self.needs_ranking and self.ranking in MEASURED

    def candidate_sets(self, ranking: tuple[int, ...]) -> tuple[frozenset[int], ...]:
        """The sets of layers to try, strongest first, from a ranking of all layers."""
        kept = [layer for layer in ranking if self.layers is None or layer in self.layers]
        return self.schedule.candidate_sets(kept)


class Method(Protocol):
    """Anything that can say how it steers, and describe itself for a report."""

    def recipe(self) -> Recipe:
        """The method spelled out for the decoder."""

    def describe(self) -> dict[str, Any]:
        """Name and settings, as JSON values."""


def recipe_of(method: Method | None) -> Recipe | None:
    """The method's recipe. Raises `OptionError` where it is no method, a name or a class for example."""
    if method is None:
        return None
    if isinstance(method, type) or not callable(getattr(method, "recipe", None)):
        raise OptionError(f"method must be a method such as heedful.Directer(), or None; got {method!r}")
    return method.recipe()


def check_ranking(ranking: Ranking) -> None:
    """Raises `OptionError` unless `ranking` is a known name or a list of distinct layer indices."""
    if isinstance(ranking, str):
        if not re.fullmatch(r"paper|released|reversed|random(:[0-9]{1,18})?", ranking):
            raise OptionError(f"unknown ranking {ranking!r}; known: {', '.join(RANKINGS)}, or a list of layer indices")
    elif not isinstance(ranking, (tuple, list)):
        raise OptionError(f"ranking must be a name ({', '.join(RANKINGS)}) or a list of layers; got {ranking!r}")
    elif not ranking or any(not isinstance(i, int) or i < 0 for i in ranking) or len(set(ranking)) != len(ranking):
        raise OptionError(f"a fixed ranking must list distinct layer indices of at least 0; got {list(ranking)}")
