"""Methods compared prompt by prompt: what was fixed, what was broken, and whether that could be chance."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from heedful.errors import OptionError

BASELINE = "none"
"""The method that all others are compared with."""
NUM_RESAMPLES = 10_000
LEVEL = 0.05
"""A corrected p-value below it, and an interval without 0, make a difference."""


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
        """Whether the interval of the difference holds 0, or more prompts went the other way than it says."""
        value, low, high = self.difference.value, self.difference.low, self.difference.high
        return low <= 0.0 <= high or (self.fixed - self.broken) * value <= 0.0


Points = Mapping[str, tuple[float, float]]
"""By example: points had, and the most that could be had."""
Strata = Mapping[str, tuple[str, float]]
"""By example: the part of the task that it belongs to, and that part's weight. Each part's share is taken first, then
their weighted mean; where nothing is said, all examples are one part."""


def baseline_of(method: str, names: Collection[str]) -> str | None:
    """What `method` is compared with: `none`, that of the same seed where it ran as `name@seed`; None for itself."""
    name, at, seed = method.rpartition("@")
    if (name if at else method) == BASELINE:
        return None
    same_seed = f"{BASELINE}@{seed}"
    return next((one for one in (same_seed if at else BASELINE, BASELINE) if one in names), None)


def mean(points: Points, strata: Strata = {}) -> Mean:  # noqa: B006 (never written to)
    """Points had over points to be had, resampled by prompt (within each part of the task)."""
    keys = sorted(points)
    had, most = np.array([points[key] for key in keys], dtype=float).T
    return _bootstrap([had, most], lambda had, most: had / most, [strata.get(key, ("", 1.0)) for key in keys])


def paired(points: Points, baseline: Points, strata: Strata = {}) -> Paired:  # noqa: B006 (never written to)
    """`points` against `baseline` on the prompts that both have. Raises `ValueError` where there is none.

    `strata` weigh the difference; prompts fixed and broken are counted, each as one.
    """
    shared = sorted(set(points) & set(baseline))
    if not shared:
        raise ValueError("the two have no prompt in common")
    ours, most = np.array([points[key] for key in shared], dtype=float).T
    theirs, most_too = np.array([baseline[key] for key in shared], dtype=float).T
    difference = _bootstrap(
        [ours, most, theirs, most_too],
        lambda a, b, c, d: a / b - c / d,
        [strata.get(key, ("", 1.0)) for key in shared],
    )
    change = ours / most - theirs / most_too
    fixed, broken = int((change > 1e-9).sum()), int((change < -1e-9).sum())
    return Paired(difference, fixed, broken, mcnemar(fixed, broken))


def mcnemar(fixed: int, broken: int) -> float:
    """Two-sided exact p-value: that as lopsided a split of `fixed + broken` changes comes from a fair coin."""
    try:
        from scipy.stats import binomtest
    except ImportError as error:
        raise OptionError(f"exact tests need the eval extra: pip install 'heedful[eval]' ({error})") from error
    return float(binomtest(fixed, fixed + broken).pvalue) if fixed + broken else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values of a family of tests, corrected so that one false find in all of it has the level of a single test.

    The k-th smallest of m is multiplied by m - k + 1 and is at least the one before it. Source: Holm, 1979.
    """
    order = sorted(range(len(p_values)), key=lambda at: p_values[at])
    corrected, least = [0.0] * len(p_values), 0.0
    for rank, at in enumerate(order):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[at]))
        corrected[at] = least
    return corrected


def _bootstrap(samples: list[Any], statistic: Callable[..., Any], strata: Sequence[tuple[str, float]]) -> Mean:
    """The statistic of sums with its percentile interval over resampled prompts, seeded; of one prompt, a point.

    `strata`: of each prompt, its part and the part's weight; the statistics of the parts are averaged by weight.
    """
    parts = {name: [at for at, (other, _) in enumerate(strata) if other == name] for name, _ in sorted(set(strata))}
    weights = dict(strata)
    values = [np.stack(samples, axis=1)[rows] for rows in parts.values()]

    def averaged(sums: Sequence[Any]) -> Any:
        weighted = [weights[name] * statistic(*each) for name, each in zip(parts, sums, strict=True)]
        return sum(weighted) / sum(weights[name] for name in parts)

    value, count = float(averaged([each.sum(0) for each in values])), len(strata)
    if count == 1:
        return Mean(value, value, value, count)
    drawn = _resamples(tuple(map(len, values)))
    sums = [(times @ each.astype(np.float32)).T.astype(float) for times, each in zip(drawn, values, strict=True)]
    low, high = np.quantile(averaged(sums), (0.025, 0.975))
    return Mean(value, float(low), float(high), count)


@lru_cache(maxsize=2)
def _resamples(counts: tuple[int, ...]) -> Any:
    """How often each prompt stands in each resample, `(NUM_RESAMPLES, count)` a part: one draw serves all means."""
    draw = np.random.default_rng(0)
    return [draw.multinomial(count, np.full(count, 1 / count), NUM_RESAMPLES).astype(np.float32) for count in counts]
