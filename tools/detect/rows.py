"""Prompts with the instructions known: IFEval's split file, and text files of prompts with `<heed>` tags."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from heedful.spans import parse_tags

PARTS = ("looked at", "held out")


@dataclass(frozen=True)
class Marked:
    """A prompt, the character ranges of its instructions, and what kind of prompt it is."""

    text: str
    ranges: tuple[tuple[int, int], ...]
    kind: str


def split_rows(path: Path, parity: int) -> list[Marked]:
    """The rows with even (0) or odd (1) index of `split.jsonl`: the untouched official prompts."""
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines][parity::2]
    return [Marked(row["original_prompt"], tuple(map(tuple, row["original_spans"])), "ifeval") for row in rows]


def tagged(path: Path) -> list[Marked]:
    """The prompts of a text file; each follows a line `=== KIND`, its instructions stand in `<heed>` tags."""
    pieces = re.split(r"^=== (\S.*)\n", path.read_text(encoding="utf-8"), flags=re.M)[1:]
    found = []
    for kind, body in zip(pieces[::2], pieces[1::2], strict=True):
        text, spans = parse_tags(body.rstrip("\n"))
        found.append(Marked(text, tuple((span.start, span.end) for span in spans), kind))
    return found


def adversarial(path: Path, parity: int) -> list[Marked]:
    """Every second prompt of the adversarial file: the even ones were learnt from, the odd ones were held out. What a
    kind begins with overrules that."""
    rows = tagged(path)
    named = [row for row in rows if row.kind.startswith(PARTS[parity])]
    return [row for row in rows if not row.kind.startswith(PARTS)][parity::2] + named
