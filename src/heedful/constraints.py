"""Constraints that a program can check, named in text: `no_comma`, `json`, `regex:PATTERN`, `max_words:100` …

Small and exact ones only; benchmarks bring their own checkers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass

from heedful.errors import OptionError


@dataclass(frozen=True)
class Constraint:
    """A named test of a whole answer."""

    name: str
    holds: Callable[[str], bool]


def is_json(text: str) -> bool:
    """Whether all of `text` is one JSON value (NaN and Infinity are none)."""
    try:
        json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return False
    return True


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _count(text: str) -> int:
    return len(text.split())


BARE: dict[str, Callable[[str], bool]] = {
    "no_comma": lambda text: "," not in text,
    "json": is_json,
    "lowercase": lambda text: text == text.lower(),
    "uppercase": lambda text: text == text.upper(),
}
WITH_TEXT: dict[str, Callable[[str, str], bool]] = {
    "contains": lambda text, wanted: wanted.lower() in text.lower(),
    "excludes": lambda text, banned: banned.lower() not in text.lower(),
    "starts": lambda text, start: text.lstrip().startswith(start),
    "ends": lambda text, end: text.rstrip().endswith(end),
}
WITH_NUMBER: dict[str, Callable[[str, int], bool]] = {
    "min_words": lambda text, number: _count(text) >= number,
    "max_words": lambda text, number: _count(text) <= number,
}
KNOWN = (
    *BARE,
    "regex:PATTERN",
    *(f"{name}:TEXT" for name in WITH_TEXT),
    *(f"{name}:NUMBER" for name in WITH_NUMBER),
)


def constraint(spec: str) -> Constraint:
    """The constraint that `spec` names. Raises `OptionError` for an unknown one, or an argument that does not fit."""
    name, colon, argument = spec.partition(":")
    if not colon and name in BARE:
        return Constraint(spec, BARE[name])
    if colon and argument:
        if name == "regex":
            return Constraint(spec, pattern(argument))
        if name in WITH_TEXT:
            return Constraint(spec, lambda text: WITH_TEXT[name](text, argument))
        if name in WITH_NUMBER and argument.isascii() and argument.isdecimal() and len(argument) < 10:
            return Constraint(spec, lambda text: WITH_NUMBER[name](text, int(argument)))
    raise OptionError(f"unknown check {spec!r}; known: {', '.join(KNOWN)}")


def pattern(text: str) -> Callable[[str], bool]:
    """Whether the regular expression is found anywhere. Raises `OptionError` where it is none."""
    try:
        compiled = re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise OptionError(f"{text!r} is no regular expression: {error}") from error
    return lambda answer: compiled.search(answer) is not None
