"""Finds PASTA's heads: steers one head at a time over a scored set, ranks the heads, keeps the best.

Every score is appended to a JSONL file beside the profile as it comes, so that a run that was killed goes on where it
stopped. A coarse screen of all heads on a few rows comes first; only the better ones are scored on all rows. Heads are
batched: each answer is a slot with a steerer of its own. Source of the procedure: PASTA, ICLR 2024, arXiv 2311.02262.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from heedful import data, journal
from heedful.checks import finite, whole
from heedful.constraints import is_json, pattern
from heedful.data import Record
from heedful.errors import DataError, OptionError
from heedful.generate import LM, Job
from heedful.recipe import ModelShape
from heedful.steerers import Pasta, scores_path

Head = tuple[int, int]
Metric = Callable[[Record, str], float]
Task = tuple[Head | None, int]
"""One answer to score: a head (None: plain decoding) and the index of a row."""


@dataclass(frozen=True)
class Settings:
    """What a profile is made with.

    `metric`: "json", "exact" (column `expected`), "regex" (column `regex`), "regex:PATTERN", or "ifeval" (columns
    `instruction_id_list` and `kwargs`). `num_rows`: rows of `data_path` to use. `screen_rows`: rows of the coarse
    screen. `keep`: heads that go on to all rows; None: twice `top_k`, but at least 16.
    """

    data_path: str
    metric: str
    top_k: int = 25
    strength: float = 0.01
    num_rows: int = 20
    screen_rows: int = 3
    keep: int | None = None
    max_new_tokens: int = 64

    def __post_init__(self) -> None:
        finite("strength", self.strength, low_open=True)
        for name in ("top_k", "num_rows", "screen_rows", "max_new_tokens"):
            whole(name, getattr(self, name), low=1)
        if self.keep is not None and self.keep < self.top_k:
            raise OptionError(f"keep must be at least top_k = {self.top_k}; got {self.keep}")

    @property
    def num_kept(self) -> int:
        """How many heads go on to all rows."""
        return max(16, 2 * self.top_k) if self.keep is None else self.keep


@dataclass(frozen=True)
class Progress:
    """How far a profile is: answers scored, answers in all, and whether this is the screen."""

    done: int
    total: int
    is_screen: bool


@dataclass(frozen=True)
class Profile:
    """The heads found, and the mean score of each head that was scored on all rows; `plain` without steering."""

    heads: dict[int, list[int]]
    scores: dict[Head, float]
    plain: float


class Profiler:
    """One profile in the making. Raises `DataError` or `OptionError` before anything is generated."""

    def __init__(self, lm: LM, settings: Settings, out: Path) -> None:
        self.lm, self.settings, self.out = lm, settings, out
        if out.is_dir() or not out.name or out.resolve() == Path(settings.data_path).resolve():
            raise OptionError(f"--out must name a file of its own for the profile; got {str(out)!r}")
        self.rows = data.read(settings.data_path, settings.num_rows)
        self.metric = metric(settings.metric, self.rows)
        self.heads = _all_heads(lm.engine.shape)
        if settings.top_k > len(self.heads):
            raise OptionError(f"top_k is {settings.top_k}, but the model has {len(self.heads)} heads")
        self.header = {"settings": self._settings(), "model": asdict(lm.engine.shape)}
        self.scores: dict[Task, float] = self._resume()
        self._encodable()

    @property
    def num_answers(self) -> int:
        """Answers still to generate."""
        return self._total() - len(self.scores)

    def _total(self) -> int:
        screened = min(self.settings.screen_rows, len(self.rows))
        kept = min(self.settings.num_kept, len(self.heads))
        return len(self.rows) + len(self.heads) * screened + kept * (len(self.rows) - screened)

    def _settings(self) -> dict[str, Any]:
        content = Path(self.settings.data_path).read_bytes()
        more = {"data_sha256": hashlib.sha256(content).hexdigest(), "dtype": str(self.lm.model.dtype)}
        return {**asdict(self.settings), **more}

    def _encodable(self) -> None:
        """Every prompt is read once now: a row without an instruction should not end a run after an hour."""
        for row in self.rows:
            prompt, instructions = row.prompt
            if not self.lm.encode(prompt, instructions).span:
                raise DataError(f"line {row.number} of {row.path} marks no instruction")

    def _resume(self) -> dict[Task, float]:
        """Scores of an earlier run."""
        path = scores_path(self.out)
        if not path.exists():
            return {}
        found = journal.entries(path)
        if not found or not all(isinstance(found[0].get(part), dict) for part in self.header):
            raise OptionError(f"{path} is no profile's scores; choose another --out")
        for part, wanted in self.header.items():
            _same(path, found[0][part], wanted)
        heads = {None, *self.heads}
        scores = filter(None, map(_read_entry, found[1:]))
        return {task: score for task, score in scores if task[0] in heads and task[1] in range(len(self.rows))}

    def run(self, batch: int, report: Callable[[Progress], None] = lambda _: None) -> Profile:
        """Scores what is missing, `batch` answers at a time, and writes the profile to `out`."""
        whole("batch", batch, low=1)
        screened = min(self.settings.screen_rows, len(self.rows))
        plain: list[Task] = [(None, row) for row in range(len(self.rows))]
        screen: list[Task] = [(head, row) for row in range(screened) for head in self.heads]
        self._score([*plain, *screen], batch, lambda: report(Progress(len(self.scores), self._total(), True)))
        kept = self._best(self.heads, range(screened), self.settings.num_kept)
        rest: list[Task] = [(head, row) for row in range(screened, len(self.rows)) for head in kept]
        self._score(rest, batch, lambda: report(Progress(len(self.scores), self._total(), False)))
        best = self._best(kept, range(len(self.rows)), self.settings.top_k)
        profile = Profile(
            heads=_by_layer(best),
            scores={head: self._mean(head, range(len(self.rows))) for head in kept},
            plain=self._mean(None, range(len(self.rows))),
        )
        self._write(profile)
        return profile

    def _mean(self, head: Head | None, rows: range) -> float:
        return statistics.fmean(self.scores[head, row] for row in rows)

    def _best(self, heads: Sequence[Head], rows: range, count: int) -> list[Head]:
        """The best by mean score; ties by layer and head."""
        return sorted(heads, key=lambda head: (-self._mean(head, rows), head))[:count]

    def _score(self, tasks: Sequence[Task], batch: int, report: Callable[[], None]) -> None:
        missing = [task for task in tasks if task not in self.scores]
        jobs = [self._job(head, row) for head, row in missing]
        path = scores_path(self.out)
        with journal.kept(path):
            journal.rewrite(path, [self.header, *map(_entry, self.scores.items())])
            with path.open("a", encoding="utf-8") as file:
                for index, text in self._answers(jobs, batch):
                    head, row = missing[index]
                    self.scores[head, row] = self.metric(self.rows[row], text)
                    file.write(journal.line(_entry(((head, row), self.scores[head, row]))))
                    file.flush()
                    report()

    def _answers(self, jobs: list[Job], batch: int) -> Iterator[tuple[int, str]]:
        for event in self.lm.stream_batch(jobs, num_slots=batch):
            if event.result is not None:
                yield event.index, event.result.text

    def _job(self, head: Head | None, row: int) -> Job:
        prompt, instructions = self.rows[row].prompt
        method = None if head is None else Pasta({head[0]: [head[1]]}, self.settings.strength)
        return Job(prompt, instructions, method, self.settings.max_new_tokens)

    def _write(self, profile: Profile) -> None:
        with journal.kept(self.out):
            journal.write(self.out, json.dumps({str(layer): heads for layer, heads in profile.heads.items()}) + "\n")

    def seconds_each(self, batch: int) -> float:
        """Seconds an answer takes, measured on one batch of the screen (whose scores are kept)."""
        tasks: list[Task] = [(head, 0) for head in self.heads[:batch]]
        missing = [task for task in tasks if task not in self.scores]
        if not missing:
            return 0.0
        begun = time.perf_counter()
        self._score(missing, batch, lambda: None)
        return (time.perf_counter() - begun) / len(missing)


def _all_heads(model: ModelShape) -> list[Head]:
    return [(layer, head) for layer in range(model.num_layers) for head in range(model.num_heads)]


def _same(path: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    for name, value in wanted.items():
        if found.get(name) != value:
            raise OptionError(
                f"{path} was begun with {name} = {found.get(name)!r}, now it is {value!r}: "
                "finish it with the settings it was begun with, or choose another --out"
            )


def _entry(item: tuple[Task, float]) -> dict[str, Any]:
    (head, row), score = item
    layer, number = (None, None) if head is None else head
    return {"layer": layer, "head": number, "row": row, "score": score}


def _read_entry(entry: dict[str, Any]) -> tuple[Task, float] | None:
    """An entry's task and score; None where it is no such entry."""
    try:
        head = None if entry["layer"] is None else (int(entry["layer"]), int(entry["head"]))
        return (head, int(entry["row"])), float(entry["score"])
    except (ValueError, KeyError, TypeError):
        return None


def _by_layer(heads: Sequence[Head]) -> dict[int, list[int]]:
    layers = sorted({layer for layer, _ in heads})
    return {layer: sorted(head for at, head in heads if at == layer) for layer in layers}


def metric(name: str, rows: Sequence[Record]) -> Metric:
    """The metric called `name`, from 0 to 1. Raises `OptionError` or, where a column is missing, `DataError`."""
    kind, colon, argument = name.partition(":")
    if name == "json":
        return lambda row, text: float(is_json(text.strip()))
    if kind == "regex" and colon and argument:
        matches = pattern(argument)
        return lambda row, text: float(matches(text))
    if name not in COLUMNS:
        raise OptionError(f"unknown metric {name!r}; known: json, regex, regex:PATTERN, exact, ifeval")
    chosen = _ifeval() if name == "ifeval" else _by_column(name)
    for row in rows:
        row.need(COLUMNS[name], f"metric {name!r}")
        try:
            chosen(row, "A first answer, to see that the row can be scored.")
        except Exception as error:  # checkers raise anything; a row that cannot be scored must be told of now
            raise DataError(f"metric {name!r} cannot score line {row.number} of {row.path}: {error!r}") from error
    return chosen


def _by_column(name: str) -> Metric:
    if name == "regex":
        return lambda row, text: float(pattern(str(row.columns["regex"]))(text))
    return lambda row, text: float(text.strip() == str(row.columns["expected"]).strip())


COLUMNS = {"exact": ("expected",), "regex": ("regex",), "ifeval": ("instruction_id_list", "kwargs")}


def _ifeval() -> Metric:
    """The share of a row's instructions that lm-eval's own checkers find followed (strict)."""
    from heedful.eval import ifeval

    ifeval.check()
    return lambda row, text: statistics.fmean(ifeval.followed(row.columns, text).strict)
