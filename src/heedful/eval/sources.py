"""Which rows a task reads: those of local files, of a named set of the hub, or of the task's own set of the hub."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from heedful import data
from heedful.checks import choice
from heedful.data import Broken, HubSet, Record
from heedful.errors import DataError, OptionError
from heedful.eval.tasks import TASKS, Task

SUFFIXES = (".jsonl", ".json")


def by_task(tasks: Sequence[str], named: Sequence[str]) -> dict[str, list[str]]:
    """The sources given for each task; `TASK=SOURCE`, or `SOURCE` alone where there is one task.

    Raises `OptionError` for an unknown task, one that is named twice, and a source that is nobody's.
    """
    for task in tasks:
        choice("task", task, tuple(TASKS))
    if len(set(tasks)) < len(tasks):
        raise OptionError(f"a task is named twice: {', '.join(tasks)}")
    found: dict[str, list[str]] = {task: [] for task in tasks}
    for one in named:
        owner, sign, source = one.partition("=")
        if sign and owner in TASKS:
            choice("task in --data", owner, tuple(tasks))
            found[owner].append(source)
        elif len(tasks) == 1:
            found[tasks[0]].append(one)
        else:
            raise OptionError(f"several tasks are run: say whose data {one!r} are, as --data TASK={one}")
    return found


def records(task: Task, sources: Sequence[str], limit: int | None = None) -> list[Record | Broken]:
    """The first `limit` rows of each source, broken lines in their places; where none is given, the task's own rows or
    its set of the hub.

    Raises `OptionError` where there is no such set, `DataError` where rows cannot be had.
    """
    if sources:
        return [record for source in sources for record in _of(task, source, limit)]
    if task.rows is not None:
        made: list[Record | Broken] = [Record(task.name, at, row) for at, row in enumerate(task.rows(), start=1)]
        return made[:limit]
    if task.hub is None:
        raise OptionError(f"{task.name} has no set on the hub: pass its rows with --data FILE")
    return [*data.fetch(task.hub, limit)]


def _of(task: Task, source: str, limit: int | None) -> Sequence[Record | Broken]:
    if source.endswith(SUFFIXES) or Path(source).exists():
        found = list(itertools.islice(data.scan(source), limit))
        if not found:
            raise DataError(f"{source} has no line to read")
        return found
    return data.fetch(hub_set(source, task.hub), limit)


def hub_set(source: str, known: HubSet | None = None) -> HubSet:
    """`OWNER/NAME[:SPLIT]`; of the set that is `known`, its own split and part. Raises `OptionError` if malformed."""
    name, _, split = source.partition(":")
    if name.count("/") != 1 or not all(name.split("/")):
        raise OptionError(f"--data takes a file, or a set of the hub as OWNER/NAME or OWNER/NAME:SPLIT; got {source!r}")
    if known is not None and name == known.name:
        return HubSet(name, split or known.split, known.config)
    return HubSet(name, split or "train")
