"""Reads rows of prompts, the instruction marked in one of the ways sets are published in.

From a file (JSON lines, or one JSON array in a `.json` file), or from a set of the Hugging Face hub.
"""

from __future__ import annotations

import codecs
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from heedful.errors import DataError, OptionError, SpanError
from heedful.prompt import Instructions, Messages
from heedful.spans import parse_tags

Row = TypeVar("Row")


@dataclass(frozen=True)
class Record:
    """One line of a file, or row of a set: its number (from 1) and its columns."""

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
        character ranges. `prompt`, or where there is none chat `messages`, and `instructions`: exact texts, or a role;
        without them, the prompt's own `<heed>` tags.
        """
        columns = self.columns
        if "split_prompt" in columns and "task" in columns:
            text, task = str(columns["split_prompt"]), str(columns["task"])
            if not text.startswith(task) or len(text) == len(task):
                raise DataError(f"line {self.number} of {self.path}: split_prompt must be task and more behind it")
            return text, [(len(task), len(text))]
        if columns.get("original_spans") and "original_prompt" in columns:
            return str(columns["original_prompt"]), self.ranges("original_spans")
        if "prompt" not in columns and "messages" in columns:
            return columns["messages"], columns.get("instructions")
        self.need(["prompt"], "a prompt file")
        return columns["prompt"], columns.get("instructions")

    def ranges(self, name: str) -> list[tuple[int, int]]:
        """A column of `[start, stop]` pairs. Raises `DataError` where it is anything else."""
        try:
            return [(int(start), int(stop)) for start, stop in self.columns[name]]
        except (TypeError, ValueError):
            raise DataError(f"{name} in line {self.number} of {self.path} must be pairs [start, stop]") from None


TEXTS = ("prompt", "original_prompt", "split_prompt", "messages")


def hashes(columns: Mapping[str, Any], prompt: Messages) -> frozenset[str]:
    """Hashes of all texts that a row may be asked by, its tags aside: rows that share one ask the same."""
    texts = [prompt, *(columns[name] for name in TEXTS if columns.get(name))]
    return frozenset(hashlib.sha256(_asked(text).encode(errors="replace")).hexdigest()[:16] for text in texts)


def _asked(prompt: Any) -> str:
    if isinstance(prompt, str):
        try:
            return parse_tags(prompt)[0].strip()
        except SpanError:
            return prompt.strip()
    if isinstance(prompt, list) and all(isinstance(said, Mapping) for said in prompt):
        said = [[str(one.get("role")), _asked(str(one.get("content")))] for one in prompt]
        return said[0][1] if len(said) == 1 else json.dumps(said)
    return str(prompt)


@dataclass(frozen=True)
class Broken:
    """A line that is no row, and why."""

    path: str
    number: int
    reason: str

    def __str__(self) -> str:
        return f"line {self.number} of {self.path} {self.reason}"


@dataclass(frozen=True)
class HubSet:
    """A split of a data set on the hub, by the owner's name and its own; `config` where it has several parts."""

    name: str
    split: str = "train"
    config: str | None = None


def read(path: str | Path, limit: int | None = None) -> list[Record]:
    """The first `limit` rows: lines (blank ones are passed over), or the objects of a `.json` file's array.

    Raises `DataError` with the number of a broken line, or where there is none.
    """
    records: list[Record] = []
    for row in scan(path):
        if limit is not None and len(records) == limit:
            break
        if isinstance(row, Broken):
            raise DataError(str(row))
        records.append(row)
    if not records:
        raise DataError(f"{path} has no line to read")
    return records


def shard(rows: Sequence[Row], part: str | None) -> list[Row]:
    """Of the rows, part "i/n": every n-th from the i-th on, counted from 0; None: all. Raises `OptionError`."""
    if part is None:
        return list(rows)
    index, slash, count = part.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise OptionError(f"--shard must be i/n with i from 0 to n - 1; got {part!r}")
    return list(rows[int(index) :: int(count)])


def scan(path: str | Path) -> Iterator[Record | Broken]:
    """All rows as `read` finds them, one by one, and in their place the lines that are none.

    Raises `DataError` where the file cannot be read, or is a `.json` file and not JSON.
    """
    try:
        if str(path).endswith(".json") and (whole := Path(path).read_text(encoding="utf-8-sig")).lstrip()[:1] == "[":
            for number, value in enumerate(json.loads(whole), start=1):
                yield _row(path, number, value)
            return
        with Path(path).open("rb") as file:
            for number, line in enumerate(file, start=1):
                text = line.removeprefix(codecs.BOM_UTF8 if number == 1 else b"")
                if text.strip():
                    yield _parsed(path, number, text)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON: {error}") from error


def _parsed(path: str | Path, number: int, line: bytes) -> Record | Broken:
    try:
        return _row(path, number, json.loads(line.decode()))
    except UnicodeDecodeError as error:
        return Broken(str(path), number, f"is not UTF-8: {error}")
    except (ValueError, RecursionError) as error:
        return Broken(str(path), number, f"is not JSON: {error}")


def _row(path: str | Path, number: int, value: Any) -> Record | Broken:
    if isinstance(value, dict):
        return Record(str(path), number, value)
    return Broken(str(path), number, f"must be a JSON object, not {type(value).__name__}")


def fetch(chosen: HubSet, limit: int | None = None) -> list[Record]:
    """The first `limit` rows of a set of the hub, by the `datasets` library, which keeps a copy.

    Raises `OptionError` without the eval extra, and `DataError` where the set cannot be had.
    """
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise OptionError(f"sets of the hub need the eval extra: pip install 'heedful[eval]' ({error})") from error
    try:
        found = load_dataset(chosen.name, chosen.config, split=chosen.split)
        rows = [dict(row) for row in found.select(range(min(limit or len(found), len(found))))]
    except Exception as error:  # the hub, the network and the set's own files each raise their own
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise DataError(
            f"cannot have {chosen.name} (split {chosen.split}) from the hub: {first} - "
            "download its rows where there is a network, and pass that file: --data FILE (JSON lines, or a JSON array)"
        ) from error
    if not rows:
        raise DataError(f"{chosen.name} (split {chosen.split}) has no row to read")
    return [Record(f"{chosen.name}:{chosen.split}", number, row) for number, row in enumerate(rows, start=1)]
