"""What the figures show, as plain numbers: each function reads one comparison, and gives nothing where it has nothing.

Draws nothing.
"""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from heedful.eval.paired import BASELINE, Mean
from heedful.eval.runs import Comparison, Entry
from heedful.eval.times import Time

MOST_METRICS = 4
MEASURED = ("paper", "released")  # rankings that say something of the prompt


@dataclass(frozen=True)
class Bar:
    """A value, with an interval where it has one."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Bars:
    """One group of bars for each label; `series` holds, by name, a bar or a gap for every label."""

    unit: str
    labels: Sequence[str]
    series: dict[str, list[Bar | None]]


@dataclass(frozen=True)
class Stacks:
    """One stacked bar for each label; `parts` holds, by name, a share of 0 to 1 for every label."""

    unit: str
    labels: Sequence[str]
    parts: dict[str, list[float]]


@dataclass(frozen=True)
class Curve:
    """Bars at ascending strengths."""

    label: str
    strengths: Sequence[float]
    bars: Sequence[Bar]


@dataclass(frozen=True)
class Panel:
    """Curves of one quantity, and what it is without steering, run by run."""

    title: str
    is_share: bool
    curves: Sequence[Curve]
    unsteered: dict[str, Bar]


@dataclass(frozen=True)
class Strengths:
    """The same methods at several strengths: panels that share the axis of the setting called `setting`."""

    setting: str
    panels: Sequence[Panel]


@dataclass(frozen=True)
class Map:
    """`shares[layer][rank]`: the share of `num_prompts` rankings that put the layer there; rank 0 is most sensitive."""

    label: str
    shares: Sequence[Sequence[float]]
    num_prompts: int


def accuracy(comparison: Comparison) -> Bars | None:
    """The first metrics of every method, in percent, with bootstrap intervals."""
    labels = list(comparison.scores)
    series: dict[str, list[Bar | None]] = {}
    for metric in comparison.metrics[:MOST_METRICS]:
        found = [means.get(metric) for means in comparison.scores.values()]
        series[metric] = [_percent(each) if each else None for each in found]
    return Bars("% of points, with bootstrap 95 % intervals over prompts", labels, series) if labels else None


def _percent(found: Mean) -> Bar:
    return Bar(100 * found.value, 100 * found.low, 100 * found.high)


def decisions(comparison: Comparison) -> Stacks | None:
    """What the gate did at each step: skipped, accepted, rejected."""
    entries = _gated(comparison)
    parts: dict[str, list[float]] = {"accepted": [], "rejected": [], "skipped": []}
    for entry in entries:
        total = sum(r["generated_tokens"] for r in entry.answered)
        for name in ("accepted", "rejected"):
            parts[name].append(sum(r["steps"][name] for r in entry.answered) / total)
        parts["skipped"].append(1 - parts["accepted"][-1] - parts["rejected"][-1])
    return Stacks("% of generated tokens", [e.label for e in entries], parts) if entries else None


def acceptance(comparison: Comparison) -> Stacks | None:
    """Of the steps at which the gate was open: how many layers the accepted trial steered, or that none was."""
    steered = [entry for entry in _gated(comparison) if set(_by_size(entry)) != {0}]  # contrasts steer no layer
    entries = [entry for entry in steered if sum(r["steps"]["gated"] for r in entry.answered)]
    by_size = [_by_size(entry) for entry in entries]
    sizes = sorted({size for counts in by_size for size in counts}, reverse=True)
    opened = [sum(r["steps"]["gated"] for r in entry.answered) for entry in entries]
    parts = {
        f"{size} layer" + "s" * (size != 1): [c.get(size, 0) / n for c, n in zip(by_size, opened, strict=True)]
        for size in sizes
    }
    parts["rejected"] = [
        sum(r["steps"]["rejected"] for r in e.answered) / n for e, n in zip(entries, opened, strict=True)
    ]
    return Stacks("% of steps with an open gate", [e.label for e in entries], parts) if entries else None


def _gated(comparison: Comparison) -> list[Entry]:
    found = [entry for entry in comparison.entries.values() if entry.is_gated]
    return [entry for entry in found if sum(r["generated_tokens"] for r in entry.answered)]


def _by_size(entry: Entry) -> dict[int, int]:
    counts: dict[int, int] = {}
    for record in entry.answered:
        for size, count in record["steps"]["accepted_by_layers"].items():
            counts[int(size)] = counts.get(int(size), 0) + count
    return counts


def strengths(comparison: Comparison, setting: str) -> Strengths | None:
    """Score, fidelity where it was judged, and perplexity of methods that ran at several values of `setting`.

    A strength of 0 has no place on a log axis and is left out.
    """
    families: dict[str, dict[float, Entry]] = {}
    for entry in comparison.entries.values():
        value = entry.settings.get(setting)
        if isinstance(value, (int, float)) and value > 0:
            others = {name: other for name, other in entry.settings.items() if name != setting}
            family = families.setdefault(f"{id(entry.run)} {json.dumps(others, sort_keys=True)}", {})
            family.setdefault(float(value), entry)
    several = [[family[value] for value in sorted(family)] for family in families.values() if len(family) > 1]
    if not several:
        return None
    panels = [
        _panel(comparison, several, setting, metric, partial(_score, comparison, metric))
        for metric in dict.fromkeys((comparison.primary, "fidelity"))
        if metric in comparison.metrics
    ]
    return Strengths(setting, [*panels, _panel(comparison, several, setting, "perplexity", _perplexity)])


def _score(comparison: Comparison, metric: str, entry: Entry) -> Bar | None:
    found = comparison.scores[entry.label].get(metric)
    return _percent(found) if found else None


def _perplexity(entry: Entry) -> Bar | None:
    """The median: one answer of noise would carry the mean away."""
    values = [p for record in entry.answered if (p := record.get("perplexity")) is not None and math.isfinite(p)]
    return Bar(statistics.median(values)) if values else None


def _panel(
    comparison: Comparison,
    families: Sequence[Sequence[Entry]],
    setting: str,
    title: str,
    measure: Callable[[Entry], Bar | None],
) -> Panel:
    curves = []
    for family in families:
        points = [(float(entry.settings[setting]), bar) for entry in family if (bar := measure(entry))]
        if points:
            curves.append(Curve(_family_name(family[0], setting), [x for x, _ in points], [bar for _, bar in points]))
    plain = [entry for entry in comparison.entries.values() if entry.method == BASELINE]
    unsteered = {entry.label: bar for entry in plain if (bar := measure(entry))}
    return Panel(title, title != "perplexity", curves, unsteered)


def _family_name(entry: Entry, setting: str) -> str:
    """An entry's label without the setting that varies."""
    return entry.label.replace(entry.method, re.sub(rf":{setting}=[^:]*", "", entry.method), 1)


def sensitivity(comparison: Comparison) -> list[Map]:
    """How often each layer stands at each rank; methods that ranked alike share a map."""
    maps: dict[str, Map] = {}
    alike: dict[str, list[str]] = {}
    for label, entry in comparison.entries.items():
        rankings = [record["ranking"] for record in entry.answered if record["ranking"]]
        if not rankings or not entry.is_ranked or entry.settings.get("ranking", "paper") not in MEASURED:
            continue
        num_layers = int(entry.run.settings["model"]["num_layers"])
        counts = [[0] * num_layers for _ in range(num_layers)]
        for ranking in rankings:
            for rank, layer in enumerate(ranking):
                counts[layer][rank] += 1
        shares = [[count / len(rankings) for count in row] for row in counts]
        maps.setdefault(key := json.dumps(shares), Map(label, shares, len(rankings)))
        alike.setdefault(key, []).append(label)
    return [replace(one, label=_together(alike[key])) for key, one in maps.items()]


def _together(labels: Sequence[str]) -> str:
    return ", ".join(labels) if len(labels) < 3 else f"{labels[0]}, and {len(labels) - 1} more that rank alike"


def speed(comparison: Comparison) -> Bars | None:
    """Tokens a second of one process; on several machines, a bar each."""
    found = {
        (label, hardware): spent
        for label, entry in comparison.entries.items()
        for hardware, spent in entry.run.times.get(entry.method, {}).items()
        if spent.seconds
    }
    labels = list(dict.fromkeys(label for label, _ in found))
    series = {
        hardware: [_rate(found.get((label, hardware))) for label in labels]
        for hardware in dict.fromkeys(hardware for _, hardware in found)
    }
    batches = ", ".join(dict.fromkeys(str(run.settings["batch"]) for run in comparison.runs))
    return (
        Bars(f"generated tokens a second of one process, batch {batches}\n{'; '.join(series)}", labels, series)
        if labels
        else None
    )


def _rate(spent: Time | None) -> Bar | None:
    return Bar(spent.rate) if spent else None
