"""A chain of chunks under a linear model: how likely each is to be an instruction, given its neighbours.

Each chunk's score is the sum of its features' weights; a weight for each kind of boundary ties it to the chunk before
(a linear-chain random field of two labels). The weights are a JSON file beside this module, made by
`tools/detect/train.py`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.resources import files

from heedful.detection.chunks import Chunk
from heedful.detection.scorer import Scorer

_MOST_ODDS = 600.0  # e to the power of more is no double


@dataclass(frozen=True)
class Weights:
    """`features`: weight of each, in log odds. `ties`: for each boundary, how much a chunk prefers its neighbour's
    label: (if that is no instruction, if it is one)."""

    features: Mapping[str, float]
    ties: Mapping[str, tuple[float, float]]

    @cached_property
    def scorer(self) -> Scorer:
        """The features' weights, ready to be summed up."""
        return Scorer(self.features)


@cache
def weights() -> Weights:
    """The weights that ship with the package."""
    data = json.loads(files("heedful.detection").joinpath("weights.json").read_text(encoding="utf-8"))
    return Weights(data["features"], {name: tuple(pair) for name, pair in data["ties"].items()})


def probabilities(found: Sequence[Chunk], model: Weights) -> list[float]:
    """For each chunk the probability that it is an instruction; 0 for material."""
    return chain(found, model.scorer.scores(found), model.ties) if found else []


def chain(found: Sequence[Chunk], odds: Sequence[float], ties: Mapping[str, tuple[float, float]]) -> list[float]:
    """Marginal probabilities by the forward–backward algorithm, in log odds.

    A tie (a, b) adds a to the score of two "no" in a row and b to that of two "yes".
    """
    forward: list[float] = []
    carried = 0.0
    for chunk, own in zip(found, odds, strict=True):
        if forward:
            no, yes = ties[chunk.boundary]
            carried = _passed(forward[-1], no, yes)
        forward.append(-math.inf if chunk.is_material else carried + own)
    backward = [0.0] * len(found)
    for at in range(len(found) - 2, -1, -1):
        behind = found[at + 1]
        own = -math.inf if behind.is_material else odds[at + 1] + backward[at + 1]
        backward[at] = _passed(own, *ties[behind.boundary])
    return [_probability(ahead + behind) for ahead, behind in zip(forward, backward, strict=True)]


def _passed(odds: float, no: float, yes: float) -> float:
    """The log odds that a neighbour of log odds `odds` passes on: log (e^(odds + yes) + 1) / (e^odds + e^no)."""
    grown = math.exp(min(odds, _MOST_ODDS))
    return math.log((grown * math.exp(yes) + 1) / (grown + math.exp(no)))


def _probability(odds: float) -> float:
    if odds < -700:
        return 0.0
    return 1 / (1 + math.exp(-odds))
