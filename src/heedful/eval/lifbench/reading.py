"""Reading an answer: JSON that may be cut or hostile, escapes, edit distance, and what a judge gives for it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any

Row = Mapping[str, Any]

MAX_CHARS = 200_000  # of an answer; far above what the generation limits allow, low enough that nothing takes minutes
MAX_JSON_DEPTH = 900
MAX_JSON_DIGITS = 4300


@dataclass(frozen=True)
class Points:
    """What an answer earned for each criterion; where `is_void`, its total is 0 all the same."""

    earned: dict[str, float]
    is_void: bool = False


@dataclass(frozen=True)
class Json:
    """A value that was read; a box, since null is a value too."""

    value: Any


def parse(text: str) -> Json | None:
    """Reads JSON as Python does (NaN and Infinity included); None where it is none, or nested too deeply.

    The limits are our own as those of Python differ between its versions.
    """
    if _is_too_deep(text):
        return None
    try:
        return Json(json.loads(text, parse_int=_int))
    except (ValueError, RecursionError):
        return None


def _int(digits: str) -> int:
    if len(digits.lstrip("-")) > MAX_JSON_DIGITS:
        raise ValueError("too many digits")
    return int(digits)


def _is_too_deep(text: str) -> bool:
    """Whether brackets outside quoted text are nested more than `MAX_JSON_DEPTH` deep."""
    if text.count("[") + text.count("{") <= MAX_JSON_DEPTH:
        return False
    steps = (1 if mark in "[{" else -1 if mark in "]}" else 0 for mark in _JSON_MARK.findall(text))
    return max(accumulate(steps), default=0) > MAX_JSON_DEPTH


_JSON_MARK = re.compile(r'"(?:[^"\\]|\\.)*"?|[\[\]{}]', re.DOTALL)


def unescape(text: str) -> str:
    """Takes the UTF-8 bytes of `text` as Latin-1 and resolves Python's backslash escapes. Raises `ValueError`."""
    return _ESCAPE.sub(_settle, text.encode()).decode("unicode_escape")


_ESCAPE = re.compile(rb"\\(?:[0-7]{1,3}|.)", re.DOTALL)
_KNOWN_ESCAPES = b"\n\\'\"abfnrtvxuUN"


def _settle(match: re.Match[bytes]) -> bytes:
    """Rewrites the escapes that Python reads with a warning, and will refuse one day, as ones that mean the same."""
    escape = match[0]
    if escape[1:].isdigit() and escape[1] < ord("8"):
        return b"\\u%04x" % int(escape[1:], 8)
    return escape if escape[1] in _KNOWN_ESCAPES else b"\\" + escape


def first_unescaped(*texts: str) -> str:
    """The first of `texts` that can be unescaped, so; where none can, the first as it is."""
    for text in texts:
        try:
            return unescape(text)
        except ValueError:
            continue
    return texts[0]


@dataclass(frozen=True)
class Listing:
    """The JSON list in an answer: its length (None: no list), and from 0 to 1 how well it is put."""

    size: int | None
    neatness: float


def read_list(out: str) -> Listing:
    """The answer itself, or what lies between its outermost square brackets, as a list that should hold only text."""
    whole = parse(out)
    if whole and not isinstance(whole.value, list):
        return Listing(None, 0.25)
    found = whole or parse(bracketed(out))
    if not found:
        return Listing(None, 0.0)
    is_plain = all(isinstance(member, str) for member in found.value)
    return Listing(len(found.value), (1.0 if whole else 0.75) - (0.0 if is_plain else 0.25))


def bracketed(out: str) -> str:
    start, stop = out.find("["), out.rfind("]")
    return out[start : stop + 1] if 0 <= start < stop else ""


def closeness(found: int, wanted: int, spread: int) -> float:
    """1 where as many are found as wanted, falling to 0 at `spread` more or fewer."""
    return max(0.0, 1 - abs(found - wanted) / spread)


def is_near(wanted: str, text: str) -> bool:
    """Whether `text` is `wanted` but for a sixth of its length and three edits."""
    limit = len(wanted) // 6 + 3
    return abs(len(wanted) - len(text)) <= limit and distance(wanted, text) <= limit


def distance(first: str, second: str) -> int:
    """Levenshtein distance, by Myers' bit vectors: a column of the table is two integers, +1 and -1 steps down it.

    Written out as no dependency has it; linear in `second` for texts of a few hundred characters.
    """
    if not first:
        return len(second)
    at = _positions(first)
    mask, last = (1 << len(first)) - 1, 1 << (len(first) - 1)
    up, down, total = mask, 0, len(first)
    for char in second:
        same = at.get(char, 0)
        level = (((same & up) + up) ^ up) | same
        right_up, right_down = down | (~(level | up) & mask), up & level
        total += bool(right_up & last) - bool(right_down & last)
        right_up, right_down = right_up << 1 | 1, right_down << 1
        same |= down
        up, down = (right_down | ~(same | right_up)) & mask, right_up & same
    return total


@lru_cache(maxsize=256)
def _positions(text: str) -> dict[str, int]:
    """For each character the set of its places, as bits."""
    found: dict[str, int] = {}
    for place, char in enumerate(text):
        found[char] = found.get(char, 0) | 1 << place
    return found
