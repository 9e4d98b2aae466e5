"""What a pair of marks encloses: fences, tags, delimiters, quotation marks.

Every search is one pass over the text. Closing marks are listed before opening ones are looked at, so that a mark
which nothing closes costs no second look, however often it is repeated.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from heedful.detection import patterns


@dataclass(frozen=True, slots=True)
class Material:
    """The characters `start` … `end - 1`, and what they are, in a word or two."""

    start: int
    end: int
    kind: str


def blocks(text: str) -> Iterator[Material]:
    """What is enclosed by marks that no sentence has, whatever stands around it; not sorted, some inside others."""
    whole = (Material(*match.span(), kind) for kind, pattern in patterns.BLOCKS for match in pattern.finditer(text))
    return chain(_fenced(text), whole, _tagged(text), _labelled(text), _announced_ends(text), _delimited(text))


def _fenced(text: str) -> Iterator[Material]:
    """Code fences; an open one goes on to the end. A bare one left open means that a fence before it closed early, on
    one within the code: all from there on is code."""
    fence, start, is_bare = "", 0, False
    last: Material | None = None
    for line in patterns.FENCE.finditer(text):
        mark, behind = line[1], line[2]
        if not fence:
            if mark[0] == "~" or "`" not in behind:
                fence, start, is_bare = mark, line.start(), not behind.strip()
        elif mark.startswith(fence) and not behind.strip("`~ \t"):
            last = Material(start, line.end(), "code")
            fence = ""
            yield last
    if fence:
        yield Material(last.start if last and is_bare else start, len(text), "code")


def _tagged(text: str) -> Iterator[Material]:
    """Pairs of tags but for the writer's own; a closing tag more than there are opening ones encloses all up to it."""
    if "</" not in text:
        return
    opening, closing = [*patterns.OPENING_TAG.finditer(text)], _by_name(patterns.CLOSING_TAG, text)
    later = _by_name(patterns.OPENING_TAG, text)
    read = 0
    for tag in opening:
        name = tag[1].lower()
        ends = closing.get(name, [])
        if tag.start() < read or (at := _next(ends, tag.end())) is None:
            continue
        begins = later[name]
        again = _next(begins, ends[at].start())
        stray = len(ends) if again is None else _first(ends, begins[again].start())
        read = ends[stray - 1].end()
        kind = "markup" if name in patterns.MARKUP else "tagged text"
        yield Material(tag.start(), read, kind)


def _labelled(text: str) -> Iterator[Material]:
    """`[label]` and `[/label]`, on lines of their own."""
    yield from _pairs(text, patterns.OPENING_LABEL, patterns.CLOSING_LABEL, "tagged text")


def _announced_ends(text: str) -> Iterator[Material]:
    """From a line that begins with BEGIN or START to one that begins with END."""
    yield from _pairs(text, patterns.BEGIN, patterns.END, "delimited text")


def _delimited(text: str) -> Iterator[Material]:
    """Between two lines of the same signs, or of < and >."""
    lines = [*patterns.DELIMITER.finditer(text)]
    if len(lines) < 2:
        return
    closing = _by_name(patterns.DELIMITER, text)
    angles = [line for line in lines if line[1][0] == ">"]
    read = 0
    for line in lines:
        if line.start() < read or line[1][0] == ">":
            continue
        ends = [found[at] for found in (closing[line[1]], angles) if (at := _next(found, line.end() + 2)) is not None]
        if ends:
            read = min(end.end() for end in ends)
            yield Material(line.start(), read, "delimited text")


def _pairs(text: str, opening: re.Pattern[str], closing: re.Pattern[str], kind: str) -> Iterator[Material]:
    """From each opening mark to the next closing one whose first group, if there is one, is the same."""
    closers: Mapping[str, Sequence[re.Match[str]]] | None = None
    read = 0
    for mark in opening.finditer(text):
        closers = _by_name(closing, text) if closers is None else closers
        ends = closers.get(_name(mark), [])
        if mark.start() >= read and (at := _next(ends, mark.end())) is not None:
            read = ends[at].end()
            yield Material(mark.start(), read, kind)


def _by_name(pattern: re.Pattern[str], text: str) -> dict[str, list[re.Match[str]]]:
    found: dict[str, list[re.Match[str]]] = {}
    for match in pattern.finditer(text):
        found.setdefault(_name(match), []).append(match)
    return found


def _name(match: re.Match[str]) -> str:
    return match[1].lower() if match.re.groups else ""


def _first(found: Sequence[re.Match[str]], place: int) -> int:
    """The index of the first match that does not start before `place`; `len(found)` without any."""
    return bisect_left(found, place, key=re.Match.start)


def _next(found: Sequence[re.Match[str]], place: int) -> int | None:
    at = _first(found, place)
    return at if at < len(found) else None


# Quotation marks


def quotations(text: str) -> Iterator[Material]:
    """What stands in quotation marks of several languages; a straight one opens after no letter, closes before none."""
    stops: dict[str, list[re.Match[str]]] = {}
    read = 0
    for mark in patterns.OPENING_QUOTE.finditer(text):
        if mark.start() < read:
            continue
        end = _end_of_quotation(text, mark, mark[0], stops)
        if end is None and mark[0] == "“":  # closed by a straight mark, before another of its kind
            end = _end_of_quotation(text, mark, '“…"', stops)
        if end is not None:
            read = end
            yield Material(mark.start(), end, "quotation")


def _end_of_quotation(text: str, mark: re.Match[str], kind: str, stops: dict[str, list[re.Match[str]]]) -> int | None:
    """The end of the quotation that `mark` opens, if what first stops it closes it. `stops`: those listed so far."""
    stopping, closing = patterns.QUOTE_STOPS[kind]
    if kind not in stops:
        stops[kind] = [*stopping.finditer(text)]
    at = _next(stops[kind], mark.end())
    if at is None or (stop := stops[kind][at])[0] not in closing:
        return None
    if kind in "'‘" and text[stop.start() - 1].isspace():
        return None
    if kind in '"`' and stop.start() == mark.end():
        return None
    is_inner = kind == '"' and _WORD_BEHIND.match(text, stop.end()) is not None
    return None if is_inner else stop.end()


_WORD_BEHIND = re.compile(r"\w")
