"""The sequence of candidate sets that a gated step tries, strongest first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Halving:
    """All layers, then the top ⌊L/2^k⌋ of the ranking, down to and including `smallest` layers.

    `smallest=2` leaves out the single-layer trial, as the authors' released code does. Source: Directer, design §2.
    """

    smallest: int = 1

    def candidate_sets(self, ranking: Sequence[int]) -> tuple[frozenset[int], ...]:
        """The sets of layers to steer, largest first; the first is all of `ranking`, however small it is."""
        sizes = [len(ranking)]
        while sizes[-1] // 2 >= max(1, self.smallest):
            sizes.append(sizes[-1] // 2)
        return tuple(frozenset(ranking[:size]) for size in sizes)
