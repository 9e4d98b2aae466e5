"""What the decoder reads of a method: steerer, gate, schedule and ranking as plain values, and their protocols.

A method is anything with a `recipe()`; the engine and the decoder never ask which one it is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from heedful.errors import OptionError
from heedful.gate import Plausibility
from heedful.schedule import Halving

RANKINGS = ("paper", "released", "reversed", "random", "random:SEED")
Ranking = str | tuple[int, ...]


@dataclass(frozen=True)
class SpanView:
    """What an edit may look at, shaped to broadcast against scores `(slots, kv_heads, group, rows, columns)`.

    `start`, `stop`: the smallest range of columns that holds every span token of these slots. `weights`
    `(slots, 1, 1, 1, stop - start)`: span weight of each of those columns, 0 outside the span. `active`
    `(slots, 1, 1, rows, 1)`: whether the row is steered in this layer.
    """

    start: int
    stop: int
    weights: torch.Tensor
    active: torch.Tensor


class Steerer(Protocol):
    """One edit of attention scores. Implementations are frozen dataclasses, so that equal settings compare equal."""

    def edit(self, scores: torch.Tensor, span: SpanView) -> None:
        """Edits float32 `scores (slots, kv_heads, group, rows, columns)` in place, before soft-cap and mask."""


@dataclass(frozen=True)
class Recipe:
    """One method, spelled out.

    `gate` None: ungated, one steered row a step whose key and value are kept. `layers` None: all layers. `overhang`:
    how many tokens past each end of the span are steered too (0, or 1 for the released code's quirk).
    """

    steerer: Steerer
    gate: Plausibility | None = None
    schedule: Halving = Halving()
    ranking: Ranking = "paper"
    layers: tuple[int, ...] | None = None
    overhang: int = 0

    def __post_init__(self) -> None:
        check_ranking(self.ranking)


class Method(Protocol):
    """Anything that can say how it steers, and describe itself for a report."""

    def recipe(self) -> Recipe:
        """The method spelled out for the decoder."""

    def describe(self) -> dict[str, Any]:
        """Name and settings, as JSON values."""


def check_ranking(ranking: Ranking) -> None:
    """Raises `OptionError` unless `ranking` is a known name or a list of distinct layer indices."""
    if isinstance(ranking, str):
        if not re.fullmatch(r"paper|released|reversed|random(:\d+)?", ranking):
            raise OptionError(f"unknown ranking {ranking!r}; known: {', '.join(RANKINGS)}, or a list of layer indices")
    elif not ranking or len(set(ranking)) != len(ranking) or any(not isinstance(i, int) or i < 0 for i in ranking):
        raise OptionError(f"a fixed ranking must list distinct layer indices of at least 0; got {list(ranking)}")
