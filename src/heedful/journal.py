"""Files that survive a kill: JSON lines appended one by one, and texts that are written at once or not at all."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from filelock import FileLock, Timeout

from heedful.errors import OptionError

LONGEST_NAME = 200


def line(entry: Mapping[str, Any]) -> str:
    """One entry as a line; escaped where it holds half a surrogate pair, which no file takes as it is."""
    text = json.dumps(entry, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        text = json.dumps(entry)
    return text + "\n"


def append(path: Path, listed: Iterable[Mapping[str, Any]]) -> None:
    """Puts `listed` behind what the file holds. Raises `OSError` where that cannot be done."""
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(map(line, listed)))


def entries(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file, none where it does not exist; a line that a kill cut short is passed over."""
    if not path.exists():
        return []
    found = []
    for text in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            entry = json.loads(text)
        except ValueError:
            continue
        if isinstance(entry, dict):
            found.append(entry)
    return found


def rewrite(path: Path, listed: Iterable[Mapping[str, Any]]) -> None:
    """Makes `listed` the whole of the file."""
    write(path, "".join(map(line, listed)))


def write(path: Path, text: str) -> None:
    """Writes the file, and its folder, at once or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(path.name + ".half")
    half.write_text(text, encoding="utf-8")
    os.replace(half, path)


@contextmanager
def kept(path: Path) -> Iterator[None]:
    """Turns a full disk, or a place that cannot be written, into one line."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise OptionError(f"cannot write {path}: {reason}; what was written is kept: mend that, then go on") from error


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Makes the folder, and keeps every other process out; a kill frees it. Raises `OptionError` where one is in."""
    lock = FileLock(folder / ".lock", blocking=False)
    with kept(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
        except Timeout:
            raise OptionError(f"another process writes to {folder}: wait for it, or choose another folder") from None
    try:
        yield
    finally:
        lock.release()


def file_name(method: str, *, is_finished: bool = True) -> str:
    """The file of a method's answers; a name that no file system takes is cut and told apart by its hash."""
    name = quote(method, safe="=,")
    if len(name) > LONGEST_NAME:
        name = f"{name[:LONGEST_NAME]}-{hashlib.sha256(method.encode()).hexdigest()[:12]}"
    return name + (".jsonl" if is_finished else ".part.jsonl")
