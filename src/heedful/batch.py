"""Answers every row of a file, and keeps each answer as it comes; a run that was stopped goes on where it was.

Where the models are, and how many, is not known here: rows go to a function and their answers come back in any order.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from heedful import data, generate, journal, provenance
from heedful.checks import choice, whole
from heedful.data import Broken, Record
from heedful.errors import DataError, HeedfulError, OptionError
from heedful.generate import LM, Job, Result
from heedful.prompt import Instructions, is_auto
from heedful.provenance import Facts, described, facts_of
from heedful.recipe import Method
from heedful.sampling import Sampling

MADE = ("text", "stats", "error")
ADDED = ("line", *MADE)
ENGINES = ("transformers", "vllm")
HANDED = 32  # batches given to the decoder at once: the first answer need not wait for all prompts to be read

Item = tuple[str, Record]
"""A method's name and a row that it is to answer."""
Made = dict[str, Any]
"""What an answer adds to its row: `text`, `stats` (None without an answer), `error` (None with one)."""
Answered = Callable[[Sequence[Item]], Iterator[tuple[int, Made]]]
"""Each item's index, and what was made of it, in any order."""


class Answerer(Protocol):
    """A model that is loaded, whatever runs it."""

    def facts(self) -> Facts:
        """What a run notes of it."""

    def ready(self, job: Job) -> Job:
        """The job with its instructions found, where they were to be. Raises where it cannot be answered."""

    def results(self, jobs: Sequence[Job], *, num_slots: int) -> Iterator[tuple[int, Result | Any]]:
        """Each job's index and result as it comes, or the `HeedfulError` for which it has none."""


@dataclass(frozen=True)
class Local:
    """A transformers model in this process."""

    lm: LM

    def facts(self) -> Facts:
        """What a run notes of it."""
        return facts_of(self.lm)

    def ready(self, job: Job) -> Job:
        """The job with its instructions found once and for all. Raises the error that generating it would."""
        is_idle = job.method is None and is_auto(job.instructions)
        found = None if is_idle else self.lm.found(job.prompt, job.instructions, tags=job.tags)
        ready = Job(**{**vars(job), "instructions": found})
        self.lm.request(ready)
        return ready

    def results(self, jobs: Sequence[Job], *, num_slots: int) -> Iterator[tuple[int, Result | HeedfulError]]:
        """Each job's index and result as it comes, by continuous batching."""
        return self.lm.results(jobs, num_slots=num_slots)


@dataclass(frozen=True)
class Source:
    """Which model answers, on what, by which engine; opened where it is needed."""

    model: str | None = None
    device: str = "cpu"
    dtype: str = "auto"
    engine: str = "transformers"

    def __post_init__(self) -> None:
        choice("engine", self.engine, ENGINES)

    def open(self) -> Answerer:
        """Loads the model. Raises `ModelError` where it cannot be had, `OptionError` where the engine is missing."""
        if self.engine == "transformers":
            return Local(generate.load(self.model, device=self.device, dtype=self.dtype))  # type: ignore[arg-type]
        found: Answerer = import_module("heedful.vllm.answerer").answerer(self)  # which imports this module
        return found


@dataclass(frozen=True)
class Asked:
    """What is asked for every row. `instructions`: for rows that bring none; see `Job` for the others."""

    methods: Mapping[str, Method | None]
    max_new_tokens: int | None = None
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    instructions: Instructions = None

    def __post_init__(self) -> None:
        if self.max_new_tokens is not None:
            whole("max_new_tokens", self.max_new_tokens, low=1)
        if not all(isinstance(stop, str) and stop for stop in self.stop):
            raise OptionError(f"stop must be non-empty strings; got {self.stop!r}")

    def job(self, method: str, row: Record) -> Job:
        """What is asked for a row; each draws from random numbers of its own. Raises `DataError` without a prompt."""
        prompt, marked = row.prompt
        instructions = self.instructions if marked is None else marked
        sampling = self.sampling.of(row.number)
        return Job(prompt, instructions, self.methods[method], self.max_new_tokens, sampling, self.stop)


@dataclass(frozen=True)
class Plan:
    """Which rows are asked what, and the folder that the answers are written to."""

    rows: Sequence[Record | Broken]
    asked: Asked
    out: Path
    engine: str = "transformers"

    def settings(self, facts: Facts) -> dict[str, Any]:
        """What may not change within a run, but for methods, which may be added."""
        asked = self.asked
        return {
            "engine": self.engine,
            **facts.settings(),
            "methods": {name: described(method) for name, method in asked.methods.items()},
            "sampling": asdict(asked.sampling),
            "max_new_tokens": asked.max_new_tokens,
            "stop": list(asked.stop),
            "instructions": asked.instructions,
        }


@dataclass
class Summary:
    """How many answers there are, the earlier ones included, and what failed: method, line and reason."""

    num_answered: int = 0
    failed: list[tuple[str, int, str]] = field(default_factory=list)


def rows(path: str | Path, limit: int | None = None) -> list[Record | Broken]:
    """The first `limit` rows of a file, broken lines in their places.

    Raises `DataError` where it cannot be read or has none, or where a row has a column that the answers add.
    """
    found: list[Record | Broken] = []
    for row in data.scan(path):
        if limit is not None and len(found) == limit:
            break
        taken = [name for name in ADDED if isinstance(row, Record) and name in row.columns]
        if taken:
            raise DataError(f"line {row.number} of {path} has a column {taken[0]!r}, which answers add: rename it")
        found.append(row)
    if not found:
        raise DataError(f"{path} has no line to read")
    return found


def run(plan: Plan, facts: Facts, answered: Answered, report: Callable[[str, int], None] = lambda *_: None) -> Summary:
    """Answers what is missing; a row that failed before is asked again.

    `report` is told how many rows of a method are done, as it begins and after each.

    Raises `OptionError` where the folder holds a run with other settings or rows, where another process writes to it,
    and where the disk is full; `DataError` where not one row could be answered, once that is written.
    """
    for method in plan.asked.methods.values():
        facts.check(method)
    with journal.alone(plan.out):
        _begin(plan, facts)
        done = {name: _done(plan, name) for name in plan.asked.methods}
        items = [
            (name, row)
            for name, answers in done.items()
            for row in plan.rows
            if isinstance(row, Record) and row.number not in answers
        ]
        for name, answers in done.items():
            report(name, len(answers))
        for name, row, made in _each(items, answered):
            entry = _entry(row, made)
            part = plan.out / journal.file_name(name, is_finished=False)
            with journal.kept(part):
                journal.append(part, [entry])
            done[name][row.number] = entry
            report(name, len(done[name]))
        return _finished(plan, done)


def _begin(plan: Plan, facts: Facts) -> None:
    path = plan.out / "run.json"
    wanted = provenance.header(plan.settings(facts), facts.hardware)
    with journal.kept(path):
        if path.exists():
            wanted = provenance.merged(path, _header(path), json.loads(json.dumps(wanted)), "folder")
        journal.write(path, json.dumps(wanted, indent=1) + "\n")


def _header(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found["settings"]["methods"].items()
        found["settings"]["engine"], found["versions"], found["commit"], found["hardware"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise OptionError(f"{path} is not the head of a batch: {error!r}; choose another folder") from error
    return found


def _done(plan: Plan, name: str) -> dict[int, dict[str, Any]]:
    """The method's answers by line; its journal holds them, and nothing else, from now on.

    Raises `OptionError` where one is the answer to another row than stands in its line now: that it is not lost.
    """
    final, part = (plan.out / journal.file_name(name, is_finished=is_finished) for is_finished in (True, False))
    rows = {row.number: row for row in plan.rows}
    done: dict[int, dict[str, Any]] = {}
    with journal.kept(part):
        for entry in (entry for path in (final, part) for entry in journal.entries(path)):
            line = entry.get("line")
            if line is None or entry.get("error", "") is not None:
                continue
            row = rows.get(line)
            if row is None or journal.line(entry) != journal.line(_entry(row, {key: entry.get(key) for key in MADE})):
                raise OptionError(
                    f"{plan.out} holds the answer to another row than line {line} now is, or to one that is left out: "
                    "only rows that failed may be changed, and new ones may follow; or choose another folder"
                )
            done[line] = entry
        journal.rewrite(part, done.values())
    return done


def _each(items: Sequence[Item], answered: Answered) -> Iterator[tuple[str, Record, Made]]:
    """What was made of each item; those of which nothing came back failed."""
    waiting = dict(enumerate(items))
    if items:
        for at, made in answered(items):
            yield *waiting.pop(at), made
    for item in waiting.values():
        yield *item, failed("no answer came back: what was answering it died, each time")


def _entry(row: Record | Broken, made: Made) -> dict[str, Any]:
    columns = row.columns if isinstance(row, Record) else {}
    return {**columns, "line": row.number, **made}


def _finished(plan: Plan, done: Mapping[str, Mapping[int, dict[str, Any]]]) -> Summary:
    """Puts every method's answers into the order of the rows, broken lines in their places, and sums up."""
    summary = Summary()
    for name, answers in done.items():
        whole = [answers.get(row.number) or _entry(row, failed(str(row))) for row in plan.rows]
        final, part = (plan.out / journal.file_name(name, is_finished=is_finished) for is_finished in (True, False))
        with journal.kept(final):
            journal.rewrite(final, whole)
            part.unlink()
        summary.failed += [(name, entry["line"], entry["error"]) for entry in whole if entry["error"] is not None]
        summary.num_answered += sum(entry["error"] is None for entry in whole)
    if not summary.num_answered:
        raise DataError(f"not one row could be answered; {summary.failed[0][2]}")
    return summary


def answers(model: Answerer, asked: Asked, items: Sequence[Item], batch: int) -> Iterator[tuple[int, Made]]:
    """What `model` makes of each item, at most `batch` at a time; one that cannot be answered ends no other."""
    for begin in range(0, len(items), HANDED * batch):
        jobs: dict[int, Job] = {}
        for at, (name, row) in enumerate(items[begin : begin + HANDED * batch], start=begin):
            try:
                jobs[at] = model.ready(asked.job(name, row))
            except Exception as error:  # a chat template raises anything, and one odd row must not end hours of work
                yield at, failed(reason(error))
        order = list(jobs)
        for index, result in model.results(list(jobs.values()), num_slots=batch):
            yield order[index], failed(reason(result)) if isinstance(result, HeedfulError) else made(result)


def reason(error: BaseException) -> str:
    """The error as one line; its kind too, where it is none of ours."""
    text = " ".join(str(error).split())
    return text if isinstance(error, HeedfulError) else f"{type(error).__name__}: {text}"


def failed(why: str) -> Made:
    """What is added to a row that has no answer."""
    return {"text": "", "stats": None, "error": why}


def made(result: Result) -> Made:
    """What an answer adds to its row: nothing that hangs on who else was answered beside it, times for example.

    Where instructions were to be found, `found` has their texts and `note` what there is to say.
    """
    stats = result.stats
    counts: dict[str, Any] = {
        "finish_reason": result.finish_reason,
        "prompt_tokens": stats.prompt_tokens,
        "generated_tokens": stats.generated_tokens,
        "gated": stats.gated,
        "accepted": stats.accepted,
        "rejected": stats.rejected,
        "changed": stats.changed,
    }
    if result.detection is not None:
        counts |= {"found": [item.text for item in result.detection.found], "note": result.detection.note}
    return {"text": result.text, "stats": counts, "error": None}
