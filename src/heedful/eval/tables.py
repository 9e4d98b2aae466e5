"""A comparison's tables, as Markdown. Whatever came from outside (names, models' texts, errors) is escaped."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from heedful.eval.paired import LEVEL, Mean, Paired, holm, mean, paired
from heedful.eval.runs import Comparison, Entry, shared_points

TEXT_FIGURES = ("perplexity", "words", "distinct_1", "distinct_2", "distinct_3", "repetition")
SPECIAL = re.compile(r"[\\`*\[\]<>|~&$]|(?<![^\W_])_|_(?![^\W_])")


SEED = re.compile(r"@\d+$|(=random):\d+")


@dataclass(frozen=True)
class Versus:
    """One entry against another on the prompts that both answered, its p-value corrected for those beside it.

    `num_failed`: prompts left out, as one of the two has no answer. `counted`: the same with these as no point.
    """

    entry: Entry
    baseline: Entry
    found: Paired
    counted: Paired
    num_failed: int
    p_value: float

    @property
    def is_noise(self) -> bool:
        """Whether the interval holds 0, the corrected p-value is too large, or failures would take it all back."""
        is_kept = self.found.difference.value * self.counted.difference.value > 0 and not self.counted.is_noise
        return self.found.is_noise or self.p_value >= LEVEL or not is_kept


def versus(pairs: Sequence[tuple[Entry, Entry]], metric: str) -> list[Versus]:
    """Each pair's difference where they share a prompt; p by McNemar, corrected by Holm over all that are returned."""
    found = []
    for entry, baseline in pairs:
        ours, theirs = shared_points(entry, baseline, metric)
        failed = (entry.failed | baseline.failed) & ours.keys()
        if ours.keys() - failed:
            strata = entry.strata(metric)
            answered = paired({key: pair for key, pair in ours.items() if key not in failed}, theirs, strata)
            found.append((entry, baseline, answered, paired(ours, theirs, strata), len(failed)))
    corrected = holm([each[2].p_value for each in found])
    return [Versus(*each, p_value) for each, p_value in zip(found, corrected, strict=True)]


def escape(text: object) -> str:
    """Text that Markdown shows as it is, on one line."""
    return SPECIAL.sub(r"\\\g<0>", " ".join(str(text).split()))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, its first column text and the others figures; cells are Markdown."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def runs(comparison: Comparison) -> str:
    """What the runs differ in, a column each."""
    rows = [[escape(name), *map(escape, values)] for name, values in comparison.differences.items()]
    return table(["run", *map(escape, comparison.labels)], rows)


def scores(comparison: Comparison) -> str:
    """Every metric of every entry, and how many of its rows failed where any did."""
    counts = [len(entry.failed) for entry in comparison.entries.values()]
    rows = []
    for (label, means), count in zip(comparison.scores.items(), counts, strict=True):
        cells = [interval(means[m]) if m in means else "–" for m in comparison.metrics]
        rows.append([escape(label), *cells, *([str(count)] if any(counts) else [])])
    return table(["method", *map(escape, comparison.metrics), *(["failed rows"] if any(counts) else [])], rows)


def parts(comparison: Comparison) -> str:
    """Unweighted means over the task's parts, and what a refusal scores on those parts. Empty for any other task."""
    entries = list(comparison.entries.items())
    known = entries[0][1].parts if entries else None
    if known is None:
        return ""
    metrics = [metric for metric in known.metrics if metric in comparison.metrics]
    rows = []
    for label, entry in entries:
        alike = {metric: {key: (name, 1.0) for key, (name, _) in entry.strata(metric).items()} for metric in metrics}
        found = {metric: points for metric in metrics if (points := entry.points(metric))}
        cells = [interval(mean(found[m], alike[m])) if m in found else "–" for m in metrics]
        rows.append([f"{escape(label)}, unweighted", *cells])
    for told, weights in (("weighted", known.weights), ("unweighted", dict.fromkeys(known.weights, 1.0))):
        floors = [_floor([entry for _, entry in entries], metric, weights) for metric in metrics]
        rows.append([f"*a refusal*, {told}", *floors])
    return table(["", *map(escape, metrics)], rows)


def _floor(entries: Sequence[Entry], metric: str, weights: Mapping[str, float]) -> str:
    """What a refusal scores in a metric, over the parts that any of `entries` has rows of."""
    names = {e.parts.of(key) for e in entries if e.parts is not None for key in e.points(metric)}
    total = sum(weights[name] for name in names)
    floors = entries[0].parts.floors if entries[0].parts is not None else {}
    return f"{100 * sum(weights[name] * floors.get(name, 0.0) for name in names) / total:.1f}"


def differences(pairs: Sequence[tuple[Entry, Entry]], metric: str) -> str:
    """One metric's paired differences; what is bold lies outside the noise. Empty where no pair shares a prompt."""
    found, rows = versus(pairs, metric), []
    has_failed = any(each.num_failed for each in found)
    for each in found:
        verdict = (
            "inside the noise" if each.is_noise else "**better**" if each.found.difference.value > 0 else "**worse**"
        )
        cells = [_bold(interval(each.found.difference, "+"), not each.is_noise), str(each.found.difference.count)]
        counts = [str(each.found.fixed), str(each.found.broken), f"{each.p_value:.3f}"]
        failed = [str(each.num_failed)] if has_failed else []
        rows.append([escape(each.entry.label), *cells, *counts, *failed, verdict])
    failed = ["failed"] if has_failed else []
    head = ["method", f"{escape(metric)}, difference", "prompts", "fixed", "broken", "p", *failed, "verdict"]
    return table(head, rows) if rows else ""


def other_differences(pairs: Sequence[tuple[Entry, Entry]], metrics: Sequence[str]) -> str:
    """The paired differences of several metrics, a column each, every column corrected by itself."""
    cells: dict[str, dict[str, str]] = {}
    for metric in metrics:
        for each in versus(pairs, metric):
            text = _bold(interval(each.found.difference, "+"), not each.is_noise)
            cells.setdefault(each.entry.label, {})[metric] = text
    rows = [[escape(label), *(found.get(metric, "–") for metric in metrics)] for label, found in cells.items()]
    return table(["method", *map(escape, metrics)], rows) if rows else ""


def seeds(comparison: Comparison) -> str:
    """Mean and standard deviation over seeds: of methods that ran as `name@seed`, and of random rankings and spans."""
    by_name: dict[str, list[dict[str, Mean]]] = {}
    for label, entry in comparison.entries.items():
        name = SEED.sub(r"\1", entry.method)
        if name != entry.method:
            by_name.setdefault(label.replace(entry.method, name, 1), []).append(comparison.scores[label])
    several = {name: found for name, found in by_name.items() if len(found) > 1}
    rows = []
    for name, found in several.items():
        values = [[100 * means[m].value for means in found if m in means] for m in comparison.metrics]
        spread = [f"{statistics.mean(v):.1f} ± {statistics.stdev(v):.1f}" if len(v) > 1 else "–" for v in values]
        rows.append([escape(name), str(len(found)), *spread])
    return table(["method", "seeds", *map(escape, comparison.metrics)], rows) if rows else ""


def texts(comparison: Comparison) -> str:
    """What the answers look like, judged by nobody: medians, and how many ran into the limit of tokens."""
    rows = []
    for label, entry in comparison.entries.items():
        answers = entry.answered
        cells = [[r[figure] for r in answers if figure in r] for figure in TEXT_FIGURES]
        medians = [f"{statistics.median(values):.3g}" if values else "–" for values in cells]
        tokens, cut = sum(r["generated_tokens"] for r in answers), sum(r["finish_reason"] == "length" for r in answers)
        rows.append([escape(label), *medians, str(tokens), f"{100 * cut / len(answers):.0f} %" if answers else "–"])
    return table(["method", *TEXT_FIGURES, "tokens", "cut off"], rows)


def steps(comparison: Comparison) -> str:
    """What the gate did, in shares of all tokens. Empty where no method has one."""
    rows = []
    for label, entry in comparison.entries.items():
        total = sum(r["generated_tokens"] for r in entry.answered)
        if entry.is_gated and total:
            counts = [sum(r["steps"][what] for r in entry.answered) for what in STEPS]
            rows.append([escape(label), str(total), *(f"{100 * count / total:.1f} %" for count in counts)])
    return table(["method", "tokens", "gate open", *STEPS[1:]], rows) if rows else ""


STEPS = ("gated", "accepted", "rejected", "changed")


def speed(comparison: Comparison) -> str:
    """Tokens a second of one process, by method and machine; and the sum over shards, where a run was made of several.
    Empty where no time was kept."""
    rows, sums = [], []
    for label, entry in comparison.entries.items():
        for hardware, spent in entry.run.times.get(entry.method, {}).items():
            if spent.seconds:
                told = (spent.tokens, round(spent.seconds), entry.run.settings["batch"], hardware)
                rows.append([escape(label), f"{spent.rate:.1f}", *map(escape, told)])
                rates = entry.run.rates(entry.method, hardware)
                sums.append(f"{sum(rates):.1f} over {len(rates)}" if len(rates) > 1 else "–")
    head = ["method", "tokens/s", "tokens", "seconds", "batch", "hardware"]
    if any(found != "–" for found in sums):
        head.insert(2, "sum over shards")
        rows = [[*row[:2], found, *row[2:]] for row, found in zip(rows, sums, strict=True)]
    return table(head, rows) if rows else ""


def interval(found: Mean, sign: str = "") -> str:
    """A share in percent, with its interval."""
    value, low, high = (round(100 * share, 1) + 0.0 for share in (found.value, found.low, found.high))  # no -0.0
    return f"{value:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]"


def _bold(text: str, is_bold: bool) -> str:
    return f"**{text}**" if is_bold else text
