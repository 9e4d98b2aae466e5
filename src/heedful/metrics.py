"""Rules that score an answer to a line of a data file from 0 to 1, by name: what heads and settings are chosen by."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from heedful import data
from heedful.checks import choice
from heedful.constraints import is_json, pattern
from heedful.data import Record
from heedful.errors import DataError, OptionError

Metric = Callable[[Record, str], float]
TASK = "task:"
"""Before the name of a task of `heedful eval`: rows, marks and score are the task's own."""
MARKS = ("split_prompt", "original_spans")
NAMES = "json, regex, regex:PATTERN, exact, ifeval, ifeval-prompt, ifbench"
KINDS = ("instruction_id_list", "kwargs")
COLUMNS = {"exact": ("expected",), "regex": ("regex",), **dict.fromkeys(("ifeval", "ifeval-prompt", "ifbench"), KINDS)}


@dataclass(frozen=True)
class Scored:
    """Rows that answers are scored on, how, and which lines of the data are none of them: the reason by its number."""

    rows: list[Record]
    metric: Metric
    left_out: dict[str, str] = field(default_factory=dict)


def scored(path: str, name: str, limit: int | None = None, part: str | None = None, most: int | None = None) -> Scored:
    """The rows of a file (of the first `limit`, those of shard `part`, at most `most`) with the metric called `name`,
    or `task:NAME`.

    Raises what `metric` does, and `OptionError` for a task whose answers cannot be scored one by one.
    """
    if name.startswith(TASK):
        return _by_task(path, name.removeprefix(TASK), limit, part, most)
    is_whole = part is None and limit is None  # then nothing behind the last row is read
    rows = data.shard(data.read(path, most if is_whole else limit), part)[:most]
    return Scored(rows, metric(name, rows))


def _by_task(path: str, name: str, limit: int | None, part: str | None, most: int | None) -> Scored:
    from heedful.eval import criteria, sources
    from heedful.eval.tasks import TASKS, Example, examples

    choice("task", name, tuple(TASKS))
    task = TASKS[name]
    if task.num_turns > 1 or name in criteria.SINGLE:
        raise OptionError(f"answers to {name} are not scored one by one by rules: take another task")
    task.check()
    asked: dict[int, Example] = {}
    rows: list[Record] = []
    left_out: dict[str, str] = {}
    for record in data.shard(sources.records(task, [path], limit), part):
        if len(rows) == most:
            break
        try:
            (asked[record.number],), _ = examples(task, [record])
        except DataError as error:
            left_out[f"line {record.number}"] = str(error)
        else:
            rows.append(_asked(record, asked[record.number]))
    if not rows:
        raise DataError(next(iter(left_out.values()), f"there is no row for {name}: this shard of the data is empty"))

    def score(row: Record, text: str) -> float:
        had, most = task.judge(asked[row.number], text).points[task.primary]
        return had / most

    _try(score, rows, name)
    return Scored(rows, score, left_out)


def _asked(record: Any, example: Any) -> Record:
    """The record with the example's prompt and marks in place of its own."""
    columns = {name: value for name, value in record.columns.items() if name not in MARKS}
    marked = {"prompt": example.prompt, "instructions": example.instructions}
    return Record(record.path, record.number, {**columns, **marked})


def _try(chosen: Metric, rows: Sequence[Record], name: str) -> None:
    for row in rows:
        try:
            chosen(row, "A first answer, to see that the row can be scored.")
        except Exception as error:  # checkers raise anything; a row that cannot be scored must be told of now
            raise DataError(f"metric {name!r} cannot score line {row.number} of {row.path}: {error!r}") from error


def metric(name: str, rows: Sequence[Record]) -> Metric:
    """The metric called `name`, from 0 to 1. Raises `OptionError` or, where a column is missing, `DataError`."""
    kind, colon, argument = name.partition(":")
    if name == "json":
        return lambda row, text: float(is_json(text.strip()))
    if kind == "regex" and colon and argument:
        matches = pattern(argument)
        return lambda row, text: float(matches(text))
    if name not in COLUMNS:
        raise OptionError(f"unknown metric {name!r}; known: {NAMES}")
    chosen = _by_column(name) if name in ("exact", "regex") else _by_checkers(name)
    for row in rows:
        row.need(COLUMNS[name], f"metric {name!r}")
    _try(chosen, rows, name)
    return chosen


def _by_column(name: str) -> Metric:
    if name == "regex":
        return lambda row, text: float(pattern(str(row.columns["regex"]))(text))
    return lambda row, text: float(text.strip() == str(row.columns["expected"]).strip())


def _by_checkers(name: str) -> Metric:
    """The share of a row's instructions that the checkers find followed (strict); ifeval-prompt: 1 if all are."""
    from heedful.eval import ifbench, ifeval

    checkers = ifbench if name == "ifbench" else ifeval
    checkers.check()
    summed = all if name == "ifeval-prompt" else statistics.fmean
    return lambda row, text: float(summed(checkers.followed(row.columns, text).strict))
