"""Directer: key scaling under a plausibility gate, with halving over ranked layers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from heedful.checks import choice, keep_finite
from heedful.gate import Plausibility
from heedful.recipe import Ranking, Recipe, check_ranking
from heedful.schedule import Halving
from heedful.steerers import KeyScaling


@dataclass(frozen=True)
class Directer:
    """Directer as published (ICLR 2026, arXiv 2603.06745).

    `strength` is α, `threshold` is β. `ranking`: "paper", "released" (what the authors' code computes), "reversed",
    "random" or "random:SEED", or a list of layers, most sensitive first. `compat="released"` adds the released code's
    quirks: one token past the span's end is steered, no single-layer trial, a strict `>` at the gate. Raises
    `OptionError` where a value lies outside its range.
    """

    strength: float = 100.0
    threshold: float = 0.5
    ranking: Ranking = "paper"
    compat: Literal["released"] | None = None

    def __post_init__(self) -> None:
        keep_finite(self, "strength")
        keep_finite(self, "threshold")
        if isinstance(self.ranking, list):
            object.__setattr__(self, "ranking", tuple(self.ranking))
        check_ranking(self.ranking)
        if self.compat is not None:
            choice("compat", self.compat, ("released",))

    def recipe(self) -> Recipe:
        """The method spelled out for the decoder."""
        quirks = self.compat == "released"
        return Recipe(
            steerer=KeyScaling(self.strength),
            gate=Plausibility(self.threshold, strict=quirks),
            schedule=Halving(smallest=2 if quirks else 1),
            ranking=self.ranking,
            overhang=int(quirks),
        )

    def describe(self) -> dict[str, Any]:
        """Name and settings, as JSON values."""
        return {"name": "directer", **asdict(self)}
