"""Reads JSONL files of prompts: one object a line, the instruction marked in one of the ways sets are published in."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heedful.errors import DataError
from heedful.prompt import Instructions, Messages


@dataclass(frozen=True)
class Record:
    """One line of a file: its number (from 1) and its columns."""

    path: str
    number: int
    columns: dict[str, Any]

    def need(self, names: Iterable[str], what: str) -> None:
        """Raises `DataError` unless all columns are there; `what` needs them."""
        missing = [name for name in names if name not in self.columns]
        if missing:
            raise DataError(f"{what} needs the column {missing[0]!r}, which line {self.number} of {self.path} lacks")

    @property
    def prompt(self) -> tuple[Messages, Instructions]:
        """The prompt and what is to be heeded in it.

        `task` and `split_prompt` (Split-IFEval): all behind the task. `original_prompt` and `original_spans`: those
        character ranges. `prompt` and `instructions`: exact texts, or a role. `prompt` alone: its own `<heed>` tags.
        """
        columns = self.columns
        if "split_prompt" in columns and "task" in columns:
            text, task = str(columns["split_prompt"]), str(columns["task"])
            if not text.startswith(task) or len(text) == len(task):
                raise DataError(f"line {self.number} of {self.path}: split_prompt must be task and more behind it")
            return text, [(len(task), len(text))]
        if columns.get("original_spans") and "original_prompt" in columns:
            return str(columns["original_prompt"]), self.ranges("original_spans")
        self.need(["prompt"], "a prompt file")
        return columns["prompt"], columns.get("instructions")

    def ranges(self, name: str) -> list[tuple[int, int]]:
        """A column of `[start, stop]` pairs. Raises `DataError` where it is anything else."""
        try:
            return [(int(start), int(stop)) for start, stop in self.columns[name]]
        except (TypeError, ValueError):
            raise DataError(f"{name} in line {self.number} of {self.path} must be pairs [start, stop]") from None


def read(path: str | Path, limit: int | None = None) -> list[Record]:
    """The first `limit` lines (blank ones are passed over). Raises `DataError` with the number of a broken line."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    records: list[Record] = []
    for number, line in enumerate(lines, start=1):
        if limit is not None and len(records) == limit:
            break
        if line.strip():
            records.append(Record(str(path), number, _object(line, path, number)))
    if not records:
        raise DataError(f"{path} has no line to read")
    return records


def _object(line: str, path: str | Path, number: int) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise DataError(f"line {number} of {path} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise DataError(f"line {number} of {path} must be a JSON object, not {type(found).__name__}")
    return found
