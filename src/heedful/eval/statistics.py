"""Methods compared prompt by prompt: what was fixed, what was broken, and whether that could be chance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

NUM_RESAMPLES = 10_000


@dataclass(frozen=True)
class Mean:
    """A mean with its bootstrap 95 % interval over prompts."""

    value: float
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class Paired:
    """One method against another on the same prompts.

    `fixed`, `broken`: prompts that scored more, and less. `p_value`: McNemar's exact test on these two counts.
    """

    difference: Mean
    fixed: int
    broken: int
    p_value: float

    @property
    def is_noise(self) -> bool:
        """Whether the interval of the difference holds 0."""
        return self.difference.low <= 0.0 <= self.difference.high


Points = Mapping[str, tuple[float, float]]
"""By example: points had, and the most that could be had."""


def mean(points: Points) -> Mean:
    """Points had over points to be had, resampled by prompt."""
    pairs = np.array([points[key] for key in sorted(points)], dtype=float)
    shares = _resample(pairs).sum(axis=1)
    low, high = np.percentile(shares[:, 0] / shares[:, 1], [2.5, 97.5])
    had, most = pairs.sum(axis=0)
    return Mean(float(had / most), float(low), float(high), len(pairs))


def paired(points: Points, baseline: Points) -> Paired:
    """`points` against `baseline` on the prompts that both have. Raises `ValueError` where there is none."""
    shared = sorted(set(points) & set(baseline))
    if not shared:
        raise ValueError("the two have no prompt in common")
    ours = np.array([points[key] for key in shared], dtype=float)
    theirs = np.array([baseline[key] for key in shared], dtype=float)
    sums = _resample(np.concatenate([ours, theirs], axis=1)).sum(axis=1)
    low, high = np.percentile(sums[:, 0] / sums[:, 1] - sums[:, 2] / sums[:, 3], [2.5, 97.5])
    value = ours[:, 0].sum() / ours[:, 1].sum() - theirs[:, 0].sum() / theirs[:, 1].sum()
    change = ours[:, 0] / ours[:, 1] - theirs[:, 0] / theirs[:, 1]
    fixed, broken = int((change > 1e-9).sum()), int((change < -1e-9).sum())
    difference = Mean(float(value), float(low), float(high), len(shared))
    return Paired(difference, fixed, broken, mcnemar(fixed, broken))


def mcnemar(fixed: int, broken: int) -> float:
    """Two-sided exact p-value: that as lopsided a split of `fixed + broken` changes comes from a fair coin."""
    from scipy.stats import binomtest

    return float(binomtest(fixed, fixed + broken).pvalue) if fixed + broken else 1.0


def _resample(rows: np.ndarray) -> np.ndarray:
    """`(resamples, rows, columns)`, seeded; fewer resamples where the rows are very many."""
    random = np.random.default_rng(0)
    count = max(1000, min(NUM_RESAMPLES, 20_000_000 // max(1, rows.size)))
    return rows[random.integers(0, len(rows), size=(count, len(rows)))]
