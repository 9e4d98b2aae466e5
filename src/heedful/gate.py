"""Decides from raw probabilities alone whether a steered token may be taken."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from heedful.checks import keep_finite
from heedful.errors import OptionError


@dataclass(frozen=True)
class Plausibility:
    """A token is plausible iff `p[token] ≥ β · p_top` under the raw, untempered distribution `p`.

    `threshold` is β ≥ 0; above 1 nothing is plausible but what plain decoding takes. `strict` asks for `>` when a
    steered token is judged, as the authors' released code does. Source: Directer, arXiv 2603.06745, design §2.
    Raises `OptionError` where β is not a finite number of at least 0.
    """

    threshold: float = 0.5
    strict: bool = False

    def __post_init__(self) -> None:
        keep_finite(self, "threshold")

    def is_open(self, p_second: float, p_top: float) -> bool:
        """Whether any token besides the raw argmax could be accepted: the pre-check, always `≥`."""
        return p_second >= self.threshold * p_top

    def accepts(self, p: float, p_top: float) -> bool:
        """Whether a steered token of raw probability `p` may be taken."""
        bound = self.threshold * p_top
        return p > bound if self.strict else p >= bound


def check_gate(gate: Any) -> None:
    """Raises `OptionError` unless `gate` is None or can judge as `Plausibility` does."""
    if gate is not None and not (callable(getattr(gate, "is_open", None)) and callable(getattr(gate, "accepts", None))):
        raise OptionError(f"gate must be heedful.Plausibility(threshold) or None; got {gate!r}")
