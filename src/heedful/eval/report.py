"""Reads runs, finished or not, and writes what they say as Markdown: scores with intervals, paired differences."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heedful.errors import OptionError
from heedful.eval import judged
from heedful.eval.paired import BASELINE, Mean, Paired, mean, paired
from heedful.eval.run import read_answers, read_header

TEXT_FIGURES = ("perplexity", "words", "distinct_2", "repetition")


@dataclass(frozen=True)
class Run:
    """One task's run: its header, and each method's records by key."""

    header: dict[str, Any]
    records: dict[str, dict[str, dict[str, Any]]]

    def points(self, method: str, metric: str) -> dict[str, tuple[float, float]]:
        """A metric's points by example; a failed row scores nothing wherever it would have counted."""
        found = self.records[method]
        return {
            key: (float(pair[0]), float(pair[1]))
            for key, record in found.items()
            if (pair := record["points"].get(metric)) is not None
        }

    def metrics(self) -> list[str]:
        """Every metric, the primary one first."""
        names: dict[str, None] = {self.header["settings"]["primary"]: None}
        for records in self.records.values():
            for record in records.values():
                names.update(dict.fromkeys(record["points"]))
        return list(names)


def read(folder: Path) -> list[Run]:
    """The runs in `folder`, one for each task; shards of one run in several folders are read by `merge`."""
    return [_read_one(path) for path in folders(folder)]


def folders(folder: Path) -> list[Path]:
    """The folders of the runs in `folder`, which may be one itself. Raises `OptionError` where there is none."""
    headers = sorted([*folder.glob("run.json"), *folder.glob("*/run.json")])
    if not headers:
        raise OptionError(f"{folder} holds no run")
    return [path.parent for path in headers]


def _read_one(folder: Path) -> Run:
    header = read_header(folder / "run.json")
    return Run(header, judged.merged(folder, read_answers(folder, header)))


def merge(runs: Sequence[Run]) -> list[Run]:
    """Shards of the same task, model and methods as one run. Raises `OptionError` where two differ."""
    by_task: dict[str, Run] = {}
    for run in runs:
        task = run.header["settings"]["task"]
        if task not in by_task:
            by_task[task] = run
            continue
        first = by_task[task]
        for name in ("model", "dtype", "methods", "max_new_tokens"):
            if first.header["settings"][name] != run.header["settings"][name]:
                raise OptionError(f"two runs of {task} differ in {name}; report them one by one")
        names = dict.fromkeys([*first.records, *run.records])
        both = {name: {**first.records.get(name, {}), **run.records.get(name, {})} for name in names}
        left_out = {**first.header["settings"]["left_out"], **run.header["settings"]["left_out"]}
        header = {**first.header, "settings": {**first.header["settings"], "left_out": left_out}}
        by_task[task] = Run(header, both)
    return list(by_task.values())


def markdown(runs: Sequence[Run]) -> str:
    """The report."""
    return "\n\n".join(_section(run) for run in runs) + "\n"


def _section(run: Run) -> str:
    settings = run.header["settings"]
    counts = ", ".join(f"{name} {len(records)}" for name, records in run.records.items())
    lines = [
        f"## {settings['task']}",
        f"{settings['model']['name'] or 'unnamed model'}, {settings['dtype']}, {run.header['hardware']}, "
        f"commit {str(run.header['commit'])[:12]}, {run.header['started']}. Prompts answered: {counts}. "
        "Means with bootstrap 95 % intervals over prompts.",
        _scores(run),
    ]
    if len(run.records) > 1 and run.records.get(BASELINE) and run.points(BASELINE, settings["primary"]):
        lines += [_differences(run)]
    lines += [*judged.section(run.records, table), _texts(run), _steps(run)]
    left_out = settings["left_out"]
    if left_out:
        where, why = next(iter(left_out.items()))
        lines.append(f"**{len(left_out)} lines of the data were left out**; the first, {where}: {why}")
    failures = [(name, r) for name, records in run.records.items() for r in records.values() if "failed" in r]
    if failures:
        first = failures[0][1]
        lines.append(f"**{len(failures)} rows failed** and score nothing; the first, {first['key']}: {first['failed']}")
    return "\n\n".join(lines)


def _scores(run: Run) -> str:
    metrics = run.metrics()
    rows = []
    for name in run.records:
        cells = [_interval(mean(points)) if (points := run.points(name, metric)) else "–" for metric in metrics]
        rows.append([name, *cells])
    return table(["method", *metrics], rows)


def _differences(run: Run) -> str:
    metric = run.header["settings"]["primary"]
    baseline = run.points(BASELINE, metric)
    rows = []
    for name in run.records:
        if name != BASELINE and set(baseline) & set(run.points(name, metric)):
            rows.append([name, *_difference(paired(run.points(name, metric), baseline))])
    return f"Against `{BASELINE}`, {metric}, prompt by prompt:\n\n" + table(
        ["method", "difference", "fixed", "broken", "McNemar p", "verdict"], rows
    )


def _difference(found: Paired) -> list[str]:
    verdict = "inside the noise" if found.is_noise else "better" if found.difference.value > 0 else "worse"
    return [_interval(found.difference, "+"), str(found.fixed), str(found.broken), f"{found.p_value:.3f}", verdict]


def _texts(run: Run) -> str:
    rows = []
    for name, records in run.records.items():
        cells = [[r[figure] for r in records.values() if figure in r] for figure in TEXT_FIGURES]
        rows.append([name, *(f"{statistics.median(values):.3g}" if values else "–" for values in cells)])
    return table(["method (medians)", *TEXT_FIGURES], rows)


def _steps(run: Run) -> str:
    rows = []
    for name, records in run.records.items():
        kept = [r for r in records.values() if "steps" in r]
        total = sum(r["generated_tokens"] for r in kept)
        if total:
            shares = [
                sum(r["steps"][what] for r in kept) / total for what in ("gated", "accepted", "rejected", "changed")
            ]
            rows.append([name, str(total), *(f"{100 * share:.1f} %" for share in shares)])
    return table(["method", "tokens", "gate open", "accepted", "rejected", "changed"], rows)


def _interval(found: Mean, sign: str = "") -> str:
    return f"{100 * found.value:{sign}.1f} [{100 * found.low:{sign}.1f}, {100 * found.high:{sign}.1f}]"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write(folder: Path, runs: Sequence[Run]) -> Path:
    """Writes `report.md`, and `summary.json` for programs. Raises `OptionError` where that cannot be done."""
    path = folder / "report.md"
    try:
        path.write_text(markdown(runs), encoding="utf-8")
        (folder / "summary.json").write_text(json.dumps(summary(runs), indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise OptionError(f"cannot write {path}: {error}") from error
    return path


def summary(runs: Sequence[Run]) -> dict[str, Mapping[str, Any]]:
    """Mean of every metric, by task and method."""
    return {
        run.header["settings"]["task"]: {
            name: {m: mean(points).value for m in run.metrics() if (points := run.points(name, m))}
            for name in run.records
        }
        for run in runs
    }
