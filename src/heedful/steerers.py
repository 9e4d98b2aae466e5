"""What is edited in attention: each steerer is one pure edit of a row's pre-softmax scores, and a method by itself.

Does not decide when or in which layers: that is the schedule's and the gate's work.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from heedful.checks import finite
from heedful.gate import Plausibility
from heedful.recipe import Recipe, SpanView


@dataclass(frozen=True)
class KeyScaling:
    """Scales the scores of the instruction's tokens, `s_i ← α^w_i · s_i`: the same as scaling their cached keys.

    `strength` is α ≥ 0; a span's weight w is an exponent, so that 0 leaves a token alone and 1 applies α whole.
    `layers`: the layers to steer, None for all. Without a gate this is static steering: it starts after the prefill
    and acts at every step. Source: Directer, arXiv 2603.06745. Raises `OptionError` where α is not a finite number of
    at least 0.
    """

    strength: float = 100.0
    layers: tuple[int, ...] | None = None
    gate: Plausibility | None = None

    def __post_init__(self) -> None:
        finite("strength", self.strength)

    def edit(self, scores: torch.Tensor, span: SpanView) -> None:
        """Multiplies the span's columns of the active rows; see `Steerer.edit`."""
        factor = torch.where(span.active & (span.weights > 0), self.strength**span.weights, 1.0)
        scores[..., span.start : span.stop] *= factor

    def recipe(self) -> Recipe:
        """Static steering, or gated where a gate is given."""
        return Recipe(self, gate=self.gate, layers=self.layers)

    def describe(self) -> dict[str, Any]:
        """Name and settings, as JSON values."""
        return {"name": "static" if self.gate is None else "key-scaling", **asdict(self)}
