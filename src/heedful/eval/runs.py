"""Reads runs, finished or not; puts the parts of one run together, and different runs of a task side by side."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from heedful.errors import OptionError
from heedful.eval import criteria, judged, seen, times
from heedful.eval.paired import BASELINE, Mean, Points, baseline_of, mean
from heedful.eval.run import read_answers, read_header
from heedful.eval.tasks import TASKS, Parts
from heedful.eval.times import Times
from heedful.provenance import both

DEFAULT = "directer"
Records = dict[str, dict[str, Any]]
Rule = Callable[["Run", "Run"], bool]
NOT_SETTINGS = ("methods", "keys", "prompts", "left_out")
"""What parts of one run may differ in, besides the batch."""


@dataclass(frozen=True)
class Run:
    """One task's run: its header, each method's records by key, and how long they took; `part_times`: how long each of
    the runs took that were joined to this one, none where it is one by itself."""

    header: dict[str, Any]
    records: dict[str, Records]
    times: Times = field(default_factory=dict)
    part_times: tuple[Times, ...] = ()

    def rates(self, method: str, hardware: str) -> list[float]:
        """Tokens a second of each part of the run that the method ran in on such a machine."""
        spent = [part.get(method, {}).get(hardware) for part in self.part_times or (self.times,)]
        return [one.rate for one in spent if one is not None and one.seconds]

    @property
    def settings(self) -> dict[str, Any]:
        """What was asked for."""
        found: dict[str, Any] = self.header["settings"]
        return found

    def points(self, method: str, metric: str) -> dict[str, tuple[float, float]]:
        """A metric's points by example; a failed row scores nothing wherever it would have counted."""
        return {
            key: (float(pair[0]), float(pair[1]))
            for key, record in self.records[method].items()
            if (pair := record["points"].get(metric)) is not None
        }


@dataclass(frozen=True)
class Entry:
    """One method in one run, under the label that it has in every table and figure."""

    label: str
    method: str
    run: Run

    @property
    def records(self) -> Records:
        """The answers by key."""
        return self.run.records[self.method]

    @cached_property
    def failed(self) -> set[str]:
        """The keys of rows that could not be asked or judged."""
        return {key for key, record in self.records.items() if "failed" in record}

    @property
    def answered(self) -> list[dict[str, Any]]:
        """The answers but for rows that failed."""
        return [record for record in self.records.values() if "failed" not in record]

    @property
    def settings(self) -> dict[str, Any]:
        """What the method says of itself."""
        found: dict[str, Any] = self.run.settings["methods"][self.method]
        return found

    @property
    def is_gated(self) -> bool:
        """Whether a gate decided at each step."""
        return "threshold" in self.settings or bool(self.settings.get("gate"))

    @property
    def is_ranked(self) -> bool:
        """Whether layers were ranked by sensitivity; a method that needs no ranking records their plain order."""
        return self.is_gated or bool(self.settings.get("level"))

    @property
    def num_asked(self) -> int:
        """How many prompts the run was to answer."""
        return len(self.run.settings["keys"])

    @property
    def chosen_on(self) -> dict[str, Any] | None:
        """Which of the run's prompts the method was chosen on (see `heedful.eval.seen`); None where that is no matter,
        or was not looked into."""
        found: dict[str, Any] = self.run.header.get("chosen_on", {})
        return found.get(self.method, found.get(self.method.rpartition("@")[0]))

    @property
    def parts(self) -> Parts | None:
        """What the task's metrics are averaged over, where that is not its rows."""
        task = TASKS.get(self.run.settings["task"])
        return None if task is None else task.parts

    def points(self, metric: str) -> dict[str, tuple[float, float]]:
        """A metric's points by example."""
        return self.run.points(self.method, metric)

    def strata(self, metric: str) -> dict[str, tuple[str, float]]:
        """By example, the part of the task that it belongs to, and its weight; none where rows are averaged."""
        if self.parts is None or metric in criteria.CRITERIA:
            return {}
        names = {key: self.parts.of(key) for key in self.records}
        return {key: (name, self.parts.weights[name]) for key, name in names.items()}


@dataclass(frozen=True)
class Comparison:
    """All runs of one task. `labels` tell the runs apart (one run has none); `differences` holds what they differ in,
    each with a value for every run."""

    task: str
    runs: Sequence[Run]
    labels: Sequence[str]
    differences: dict[str, list[str]] = field(default_factory=dict)

    @cached_property
    def entries(self) -> dict[str, Entry]:
        """Every method that has answers, run by run, by its label."""
        found = {}
        for run, of_run in zip(self.runs, self.labels, strict=True):
            for method in run.records:
                label = f"{method} · {of_run}" if of_run else method
                found[label] = Entry(label, method, run)
        return found

    @property
    def primary(self) -> str:
        """The metric that methods are compared by."""
        return str(self.runs[0].settings["primary"])

    @cached_property
    def metrics(self) -> list[str]:
        """Every metric: the primary one first, then those that most answers have."""
        counts = {self.primary: 0}
        for entry in self.entries.values():
            for record in entry.records.values():
                for name in record["points"]:
                    counts[name] = counts.get(name, 0) + 1
        return sorted(counts, key=lambda name: (name != self.primary, -counts[name]))

    @cached_property
    def scores(self) -> dict[str, dict[str, Mean]]:
        """The mean of each metric with its interval, by entry and metric, where there is any."""
        found: dict[str, dict[str, Mean]] = {label: {} for label in self.entries}
        for metric in self.metrics:  # one metric after the other: its resamples serve every entry
            for label, entry in self.entries.items():
                if points := entry.points(metric):
                    found[label][metric] = mean(points, entry.strata(metric))
        return found

    @property
    def against_none(self) -> list[tuple[Entry, Entry]]:
        """Every steered entry with the unsteered one of its run (of its seed, where there are several)."""
        by_run = {(id(entry.run), entry.method): entry for entry in self.entries.values()}
        pairs = []
        for entry in self.entries.values():
            baseline = baseline_of(entry.method, entry.run.records)
            if baseline is not None:
                pairs.append((entry, by_run[id(entry.run), baseline]))
        return pairs

    @property
    def unpaired(self) -> list[Entry]:
        """The steered entries that nothing can be said of against `none`: their run has none, or none on the same
        prompts, failed rows aside."""
        entries = [entry for entry in self.entries.values() if entry.method.partition("@")[0] != BASELINE]
        paired = {
            entry.label
            for entry, plain in self.against_none
            if (entry.records.keys() - entry.failed) & (plain.records.keys() - plain.failed)
        }
        return [entry for entry in entries if entry.label not in paired]

    @property
    def against_default(self) -> list[tuple[Entry, Entry]]:
        """Every other steered entry with default Directer of its run, where that ran: what an ablation is about."""
        default = {id(entry.run): entry for entry in self.entries.values() if entry.method == DEFAULT}
        steered = [entry for entry, _ in self.against_none if entry.method != DEFAULT]
        return [(entry, default[id(entry.run)]) for entry in steered if id(entry.run) in default]

    @property
    def against_first(self) -> list[tuple[Entry, Entry]]:
        """Every entry of a later run with the same method of the first run."""
        first = {entry.method: entry for entry in self.entries.values() if entry.run is self.runs[0]}
        later = [entry for entry in self.entries.values() if entry.run is not self.runs[0]]
        return [(entry, first[entry.method]) for entry in later if entry.method in first]


def shared_points(entry: Entry, baseline: Entry, metric: str) -> tuple[Points, Points]:
    """Both entries' points on the prompts that both answered: the same key, and the same row of data behind it."""
    ours, theirs = entry.points(metric), baseline.points(metric)
    asked, asked_too = entry.run.settings.get("prompts", {}), baseline.run.settings.get("prompts", {})
    shared = [key for key in ours if key in theirs and asked.get(key) == asked_too.get(key)]
    return {key: ours[key] for key in shared}, {key: theirs[key] for key in shared}


def read(folder: Path) -> list[Run]:
    """The runs in `folder`, one for each task. Raises `OptionError` where it holds none."""
    return [_read_one(path) for path in folders(folder)]


def folders(folder: Path) -> list[Path]:
    """The folders of the runs in `folder`, which may be one itself. Raises `OptionError` where there is none."""
    headers = sorted([*folder.glob("run.json"), *folder.glob("*/run.json")])
    if not headers:
        raise OptionError(f"{folder} holds no run")
    return [path.parent for path in headers]


def _read_one(folder: Path) -> Run:
    header = read_header(folder / "run.json")
    header["chosen_on"] = {**seen.untold(header["settings"]["methods"]), **header.get("chosen_on", {})}
    return Run(header, judged.merged(folder, read_answers(folder, header)), times.read(folder / times.FILE))


def gather(found: Sequence[Run]) -> list[Comparison]:
    """The runs by task: parts of one run joined, and what is left put side by side, labelled by what differs.

    What is joined does not hang on the order of `found`; what is compared with the first run does.
    """
    by_task: dict[str, list[Run]] = {}
    for run in found:
        by_task.setdefault(run.settings["task"], []).append(run)
    return [_compared(task, _whole(listed)) for task, listed in by_task.items()]


def _whole(listed: Sequence[Run]) -> list[Run]:
    """The runs with all parts joined, in the order of their first parts."""
    order = sorted(range(len(listed)), key=lambda at: (str(listed[at].header["started"]), _spelled(listed[at])))
    parts = [(at, listed[at]) for at in order]
    rules = iter(RULES)
    while (rule := next(rules, None)) is not None:
        count = len(parts)
        parts = _joined_by(rule, parts)
        if len(parts) < count:  # what is whole now may be a part by an earlier rule
            rules = iter(RULES)
    return [run for _, run in sorted(parts, key=lambda part: part[0])]


def _spelled(run: Run) -> str:
    return json.dumps([run.header, run.records], sort_keys=True, default=str)


def _joined_by(rule: Rule, parts: Sequence[tuple[int, Run]]) -> list[tuple[int, Run]]:
    """One pass: each run takes in whatever is a part of it; it stands where the first of its parts was named."""
    done: list[tuple[int, Run]] = []
    for place, run in parts:
        at = next((at for at, (_, other) in enumerate(done) if _agree(other, run) and rule(other, run)), None)
        if at is None:
            done.append((place, run))
        else:
            done[at] = (min(done[at][0], place), _joined(done[at][1], run))
    return done


def _agree(first: Run, second: Run) -> bool:
    """Whether two runs have the same settings, their common methods' among them."""
    mine, theirs = first.settings["methods"], second.settings["methods"]
    return _fixed(first) == _fixed(second) and all(mine[name] == theirs[name] for name in mine.keys() & theirs.keys())


def _has_other_methods(first: Run, second: Run) -> bool:
    """Whether two runs asked other methods the same prompts, by the same code."""
    mine, theirs = first.settings, second.settings
    is_same = set(mine["keys"]) == set(theirs["keys"]) and mine.get("prompts") == theirs.get("prompts")
    return is_same and not mine["methods"].keys() & theirs["methods"].keys() and _has_same_code(first, second)


def _has_other_prompts(first: Run, second: Run) -> bool:
    """Whether two runs asked a common method other prompts."""
    mine, theirs = first.settings, second.settings
    return bool(mine["methods"].keys() & theirs["methods"].keys()) and not set(mine["keys"]) & set(theirs["keys"])


def _has_same_code(first: Run, second: Run) -> bool:
    return _made_by(first) == _made_by(second)


def _made_by(run: Run) -> list[tuple[str, set[str]]]:
    """What answers hang on besides the settings, whatever the order in which a joined run names it."""
    named = {"commit": run.header["commit"], "batch": run.settings["batch"], **run.header["versions"]}
    return [(name, set(str(value).split("; "))) for name, value in sorted(named.items())]


RULES: tuple[Rule, ...] = (
    _has_other_methods,
    lambda first, second: _has_other_prompts(first, second) and _has_same_code(first, second),
    _has_other_prompts,
)
"""By which two runs with the same settings are parts of one, the surest first: so that each shard has all its methods
before shards are joined, and those of one commit before those of several."""


def _fixed(run: Run) -> dict[str, Any]:
    return {name: value for name, value in run.settings.items() if name not in (*NOT_SETTINGS, "batch")}


def _joined(first: Run, second: Run) -> Run:
    """Two parts as one run, which names every commit, machine and batch that it was made by."""
    mine, theirs = first.settings, second.settings
    settings = {
        **mine,
        **{name: {**mine.get(name, {}), **theirs.get(name, {})} for name in ("prompts", "left_out")},
        "methods": {**mine["methods"], **theirs["methods"]},
        "keys": list(dict.fromkeys([*mine["keys"], *theirs["keys"]])),
        "batch": both(mine["batch"], theirs["batch"]),
    }
    named = {name: both(first.header[name], second.header[name]) for name in ("commit", "hardware")}
    versions = {
        name: both(first.header["versions"].get(name), value) for name, value in second.header["versions"].items()
    }
    started = min(str(first.header["started"]), str(second.header["started"]))
    names = sorted(dict.fromkeys([*first.records, *second.records]), key=lambda name: name.split("@")[0] != BASELINE)
    records = {name: {**first.records.get(name, {}), **second.records.get(name, {})} for name in names}
    header = {**first.header, **named, "versions": versions, "settings": settings, "started": started}
    header["chosen_on"] = _chosen_on(first.header.get("chosen_on", {}), second.header.get("chosen_on", {}))
    parts = (*(first.part_times or (first.times,)), *(second.part_times or (second.times,)))
    return Run(header, records, times.added(first.times, second.times), parts)


def _chosen_on(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    found = {**first, **second}
    for name in first.keys() & second.keys():
        found[name] = {
            what: list(dict.fromkeys([*listed, *second[name][what]])) for what, listed in first[name].items()
        }
    return found


def _compared(task: str, listed: list[Run]) -> Comparison:
    if len(listed) == 1:
        return Comparison(task, listed, [""])
    common = [name for name in listed[0].settings["methods"] if all(name in run.settings["methods"] for run in listed)]
    told = [_told(run, common) for run in listed]
    names = dict.fromkeys(name for of_run in told for name in of_run)
    rows = {name: [of_run.get(name, "–") for of_run in told] for name in names}
    differences = {name: values for name, values in rows.items() if len(set(values)) > 1}
    return Comparison(task, listed, _labels(differences, len(listed)), differences)


def _told(run: Run, methods: Sequence[str]) -> dict[str, str]:
    """All that two runs of these methods may differ in, what matters most first."""
    model = run.settings["model"]
    fixed = {name: value for name, value in _fixed(run).items() if name not in ("task", "primary", "model", "dtype")}
    described = {
        f"{method}: {name}": value
        for method in methods
        for name, value in run.settings["methods"][method].items()
        if name != "name"
    }
    told = {
        "model": model["name"] or f"unnamed, {model['num_layers']} layers",
        "dtype": str(run.settings["dtype"]).removeprefix("torch."),
        **fixed,
        **described,
        "commit": short_commit(run),
        **run.header["versions"],
        "batch": run.settings["batch"],
        "hardware": run.header["hardware"],
        "prompts": len(run.settings["keys"]),
        "started": run.header["started"],
    }
    return {name: str(value) for name, value in told.items()}


def short_commit(run: Run) -> str:
    """The commit, or commits, short."""
    return "; ".join(commit[:12] for commit in str(run.header["commit"]).split("; "))


def _labels(differences: dict[str, list[str]], count: int) -> list[str]:
    """As few of the differences as tell the runs apart; where none does, their place in the list."""
    parts: list[list[str]] = [[] for _ in range(count)]
    for name, values in differences.items():
        before = len({tuple(part) for part in parts})
        named = [value if name in ("model", "dtype") else f"{name} {value}" for value in values]
        tried = [[*part, one] for part, one in zip(parts, named, strict=True)]
        if len({tuple(part) for part in tried}) > before:
            parts = tried
    labels = [", ".join(part) for part in parts]
    if len(set(labels)) == count:
        return labels
    return [f"{label} (run {at})" if label else f"run {at}" for at, label in enumerate(labels, 1)]
