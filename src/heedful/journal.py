"""Files that survive a kill: JSON lines appended one by one, and texts that are written at once or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from heedful.errors import OptionError


def line(entry: Mapping[str, Any]) -> str:
    """One entry as a line."""
    return json.dumps(entry, ensure_ascii=False) + "\n"


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
