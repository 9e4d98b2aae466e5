"""On which rows a method's file was chosen: what it scores on those is no test of it.

Rows are told by what they ask, not by their file, so that an extract, another order or other marks hide nothing.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from heedful import data, journal
from heedful.errors import DataError, HeedfulError
from heedful.eval.tasks import Example
from heedful.methods import from_settings, read_spec
from heedful.steerers import scores_path

Rows = Sequence[Collection[str]]
"""Of each row, the hashes of the texts that it may be asked by (see `heedful.data.hashes`)."""


def files(method: str) -> list[Path]:
    """The files that a method, as it is spelled, was chosen by: profiles of heads, and its settings file."""
    profile = read_spec(from_settings(method))[1].get("profile")
    named = profile if isinstance(profile, list) else [profile] if profile is not None else []
    return [Path(str(path)) for path in [*named, *([method[1:]] if method.startswith("@") else [])]]


def rows(path: Path, others: Iterable[str] = ()) -> Rows | None:
    """The rows that `path` was chosen on, as the scores beside it tell; None where nothing does.

    Scores made before rows were kept in them hold the hash of the data: the rows are read from that file where it is
    still there, or from one of `others`.
    """
    header = next(iter(journal.entries(scores_path(path))), {})
    if isinstance(found := header.get("rows"), list):
        return found
    settings = header.get("settings")
    if not isinstance(settings, dict) or not isinstance(settings.get("num_rows"), int):
        return None
    for name in (settings.get("data_path"), *others):
        if name and Path(name).is_file() and digest(name) == settings.get("data_sha256"):
            try:
                return [data.hashes(row.columns, row.prompt[0]) for row in data.read(name, settings["num_rows"])]
            except DataError:
                return None
    return None


def digest(path: str | Path) -> str:
    """The sha256 of a file."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def chosen_on(methods: Iterable[str], examples: Sequence[Example], others: Sequence[str]) -> dict[str, dict[str, Any]]:
    """By method that has files: `files`, and under `prompts` the keys of those examples that it was chosen on; under
    `unknown` the files that tell nothing. `others`: files of data that may be those of old scores."""
    found = {}
    asked: Mapping[str, Collection[str]] = {one.key: data.hashes(one.columns, one.prompt) for one in examples}
    for method in methods:
        named = {str(path): rows(path, others) for path in files(method)}
        known = {one for listed in named.values() for row in listed or () for one in row}
        if named:
            prompts = [key for key, texts in asked.items() if not known.isdisjoint(texts)]
            unknown = [path for path, listed in named.items() if listed is None]
            found[method] = {"files": list(named), "prompts": prompts, "unknown": unknown}
    return found


def untold(methods: Iterable[str]) -> dict[str, dict[str, Any]]:
    """As `chosen_on`, for runs that did not look: of methods that files were needed for, nothing is known."""
    found = {}
    for method in methods:
        try:
            named = list(map(str, files(re.sub(r"@\d+$", "", method))))  # less its seed
        except HeedfulError:  # the settings file is gone: it is named all the same
            named = [method.lstrip("@")]
        if named:
            found[method] = {"files": named, "prompts": [], "unknown": named}
    return found


def told(method: str, found: Mapping[str, Any]) -> list[str]:
    """What a reader must be told of one method's part of `chosen_on`, a sentence each."""
    lines = []
    if found["prompts"]:
        lines.append(
            f"{method} was chosen on {len(found['prompts'])} of these prompts ({', '.join(found['files'])}): "
            "what it scores on them is no test"
        )
    if found["unknown"]:
        lines.append(
            f"{method}: nothing tells on which prompts {', '.join(found['unknown'])} was chosen: perhaps on these"
        )
    return lines
