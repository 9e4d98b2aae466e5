"""Scores of many candidates on the rows of a file, each kept as it comes: what a search is made of.

A search that was killed goes on where it stopped. Knows neither what a candidate is nor how the best one is found.
"""

from __future__ import annotations

import hashlib
import statistics
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from heedful import journal
from heedful.checks import whole
from heedful.data import Record, hashes
from heedful.errors import DataError, HeedfulError, OptionError
from heedful.generate import LM, Job
from heedful.metrics import Metric
from heedful.recipe import Method

Candidate = TypeVar("Candidate", bound=Hashable)


@dataclass
class Scorebook(Generic[Candidate]):
    """Scores by candidate and row index, with their journal at `path`, whose first line is `header`.

    Where an answer cannot be had, as steering made the model's numbers overflow, or the metric fails on it, the score
    is 0 and `failed` says why: the search goes on, and whoever reports it tells of them.

    `method_of` makes a candidate's method, `columns_of` the columns that name it in the journal. Raises `OptionError`
    where `path` holds the scores of something else, `DataError` where a row marks no instruction or cannot be asked.
    """

    lm: LM
    rows: Sequence[Record]
    metric: Metric
    max_new_tokens: int
    path: Path
    header: dict[str, dict[str, Any]]
    candidates: Sequence[Candidate]
    method_of: Callable[[Candidate], Method | None]
    columns_of: Callable[[Candidate], dict[str, Any]]
    chosen_on: Sequence[int] = ()
    """Indices of the rows that what is found is chosen on: the first line keeps their hashes."""
    scores: dict[tuple[Candidate, int], float] = field(default_factory=dict)
    failed: dict[tuple[Candidate, int], str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._resume()
        # Every prompt is read once now: a row that cannot be asked should not end a search after an hour.
        for row in self.rows:
            self._check(row)

    def _check(self, row: Record) -> None:
        prompt, instructions = row.prompt
        try:
            encoded = self.lm.encode(prompt, instructions)
            self.lm.request_for(encoded.token_ids, encoded.span, method=None, max_new_tokens=self.max_new_tokens)
        except HeedfulError as error:
            raise DataError(f"line {row.number} of {row.path} cannot be asked: {error}") from error
        if not encoded.span:
            raise DataError(f"line {row.number} of {row.path} marks no instruction")

    def _hashes(self) -> list[list[str]]:
        rows = [self.rows[at] for at in self.chosen_on]
        return [sorted(hashes(row.columns, row.prompt[0])) for row in rows]

    def _resume(self) -> None:
        if not self.path.exists():
            return
        found = journal.entries(self.path)
        if not found or not all(isinstance(found[0].get(part), dict) for part in self.header):
            raise OptionError(f"{self.path} holds no scores; choose another --out")
        for part, wanted in self.header.items():
            _same(self.path, found[0][part], wanted)
        known = {str(self.columns_of(candidate)): candidate for candidate in self.candidates}
        names = list(self.columns_of(self.candidates[0]))
        for entry in found[1:]:
            name, row, score = str({key: entry.get(key) for key in names}), entry.get("row"), entry.get("score")
            if name in known and isinstance(row, int) and row in range(len(self.rows)) and isinstance(score, float):
                self.scores[known[name], row] = score
                if entry.get("failed") is not None:
                    self.failed[known[name], row] = str(entry["failed"])

    def score(
        self, tasks: Sequence[tuple[Candidate, int]], batch: int, report: Callable[[int], None] = lambda _: None
    ) -> None:
        """Scores what is missing, `batch` answers at a time; `report` is told how many scores there are."""
        whole("batch", batch, low=1)
        missing = [task for task in tasks if task not in self.scores]
        jobs = [self._job(candidate, row) for candidate, row in missing]
        with journal.kept(self.path):
            journal.rewrite(self.path, [{**self.header, "rows": self._hashes()}, *map(self._entry, self.scores)])
            with self.path.open("a", encoding="utf-8") as file:
                for index, answer in self._answers(jobs, batch):
                    self._judge(missing[index], answer)
                    file.write(journal.line(self._entry(missing[index])))
                    file.flush()
                    report(len(self.scores))

    def _judge(self, task: tuple[Candidate, int], answer: str | HeedfulError) -> None:
        row = self.rows[task[1]]
        self.scores[task] = 0.0
        if isinstance(answer, HeedfulError):
            self.failed[task] = f"line {row.number} of {row.path}: {answer}"
            return
        try:
            self.scores[task] = self.metric(row, answer)
        except Exception as error:  # checkers raise anything, and a search of hours must not end for one answer
            self.failed[task] = f"the metric fails on an answer to line {row.number} of {row.path}: {error!r}"

    def _entry(self, task: tuple[Candidate, int]) -> dict[str, Any]:
        more = {"failed": self.failed[task]} if task in self.failed else {}
        return {**self.columns_of(task[0]), "row": task[1], "score": self.scores[task], **more}

    def _answers(self, jobs: list[Job], batch: int) -> Iterator[tuple[int, str | HeedfulError]]:
        for index, result in self.lm.results(jobs, num_slots=batch):
            yield index, result if isinstance(result, HeedfulError) else result.text

    @property
    def told_failed(self) -> str:
        """One line on the answers that failed, empty where there is none."""
        if not self.failed:
            return ""
        first = next(iter(self.failed.values()))
        return f"{len(self.failed)} of {len(self.scores)} answers failed and score 0; the first: {first}"

    def _job(self, candidate: Candidate, row: int) -> Job:
        prompt, instructions = self.rows[row].prompt
        return Job(prompt, instructions, self.method_of(candidate), self.max_new_tokens)

    def mean(self, candidate: Candidate, rows: Sequence[int]) -> float:
        """Mean score on `rows`, all of which must have been scored."""
        return statistics.fmean(self.scores[candidate, row] for row in rows)

    def seconds_each(self, tasks: Sequence[tuple[Candidate, int]], batch: int) -> float:
        """Seconds an answer takes, measured on those of `tasks` that are missing (their scores are kept); else 0."""
        missing = [task for task in tasks if task not in self.scores]
        if not missing:
            return 0.0
        begun = time.perf_counter()
        self.score(missing, batch)
        return (time.perf_counter() - begun) / len(missing)


def provenance(lm: LM, data_path: str | Path) -> dict[str, Any]:
    """What else a score depends on: the file's content, the model's dtype."""
    return {"data_sha256": hashlib.sha256(Path(data_path).read_bytes()).hexdigest(), "dtype": str(lm.model.dtype)}


def _same(path: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    for name, value in wanted.items():
        if found.get(name) != value:
            raise OptionError(
                f"{path} was begun with {name} = {found.get(name)!r}, now it is {value!r}: "
                "finish it with the settings it was begun with, or choose another --out"
            )
