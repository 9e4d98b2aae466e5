"""Methods compared prompt by prompt: what was fixed, what was broken, and whether that could be chance."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import binomtest, bootstrap

BASELINE = "none"
"""The method that all others are compared with."""
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
    had, most = np.array([points[key] for key in sorted(points)], dtype=float).T
    return _bootstrap([had, most], lambda had, most, axis: had.sum(axis) / most.sum(axis))


def paired(points: Points, baseline: Points) -> Paired:
    """`points` against `baseline` on the prompts that both have. Raises `ValueError` where there is none."""
    shared = sorted(set(points) & set(baseline))
    if not shared:
        raise ValueError("the two have no prompt in common")
    ours, most = np.array([points[key] for key in shared], dtype=float).T
    theirs, most_too = np.array([baseline[key] for key in shared], dtype=float).T
    difference = _bootstrap(
        [ours, most, theirs, most_too],
        lambda a, b, c, d, axis: a.sum(axis) / b.sum(axis) - c.sum(axis) / d.sum(axis),
    )
    change = ours / most - theirs / most_too
    fixed, broken = int((change > 1e-9).sum()), int((change < -1e-9).sum())
    return Paired(difference, fixed, broken, mcnemar(fixed, broken))


def mcnemar(fixed: int, broken: int) -> float:
    """Two-sided exact p-value: that as lopsided a split of `fixed + broken` changes comes from a fair coin."""
    return float(binomtest(fixed, fixed + broken).pvalue) if fixed + broken else 1.0


def _bootstrap(samples: list[Any], statistic: Callable[..., Any]) -> Mean:
    """The statistic with its percentile interval over resampled prompts, seeded; of one prompt, a point."""
    value, count = float(statistic(*samples, axis=0)), len(samples[0])
    if count == 1:
        return Mean(value, value, value, count)
    options = {"paired": True, "vectorized": True, "method": "percentile", "n_resamples": NUM_RESAMPLES, "batch": 500}
    interval = bootstrap(samples, statistic, rng=np.random.default_rng(0), **options).confidence_interval
    return Mean(value, float(interval.low), float(interval.high), count)
