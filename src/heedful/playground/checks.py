"""The user's checks of an answer: `heedful.constraints`, with bounds where a pattern could take all time or memory.

`regex` writes repetitions out as it compiles, where no time limit reaches: how long that would be is reckoned before.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from heedful.constraints import constraint
from heedful.errors import OptionError

SECONDS = 0.25  # for one pattern on one answer
LONGEST_PATTERN = 200
MOST_WRITTEN_OUT = 10_000  # characters and groups of a pattern, each as often as the counts around it say

# An escape, a set of characters, a repetition's counts, or anything else.
_PART = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\{(\d*)(?:,(\d*))?\}|.", re.DOTALL)
# What would have to be read otherwise: comments, flags for free spacing and for sets within sets.
_OTHERWISE = re.compile(r"\(\?(?:#|\w*[xV])")


@dataclass(frozen=True)
class Verdict:
    """What a check found; `holds` None where it came to no end in time."""

    name: str
    holds: bool | None


@dataclass(frozen=True)
class Check:
    """A named test of a whole answer."""

    name: str
    holds: Callable[[str], bool | None]

    def verdict(self, text: str) -> Verdict:
        """Whether it holds for `text`. May take `SECONDS`: call it off the event loop."""
        return Verdict(self.name, self.holds(text))


def parse_checks(specs: Sequence[str]) -> list[Check]:
    """The checks that are named; call it off the event loop. Raises `OptionError` for one that is none."""
    return [_check(spec) for spec in specs]


def _check(spec: str) -> Check:
    name, _, pattern = spec.partition(":")
    if name == "regex" and pattern:
        return Check(spec, _timed(pattern))
    return Check(spec, constraint(spec).holds)


def _timed(pattern: str) -> Callable[[str], bool | None]:
    import regex

    if len(pattern) > LONGEST_PATTERN:
        raise OptionError(f"the pattern has {len(pattern)} characters; at most {LONGEST_PATTERN} are read")
    size = written_out(pattern)
    if size > MOST_WRITTEN_OUT:
        raise OptionError(
            f"the pattern with its repetitions written out has about {size:.1e} parts; at most {MOST_WRITTEN_OUT} are "
            "read: ask for lower counts, or for * or +"
        )
    try:
        compiled = regex.compile(pattern)
    except (regex.error, ValueError, OverflowError, RecursionError, MemoryError) as error:
        raise OptionError(f"{pattern!r} is no regular expression: {error}") from error

    def holds(text: str) -> bool | None:
        try:
            return compiled.search(text, timeout=SECONDS, concurrent=True) is not None
        except TimeoutError:
            return None

    return holds


def written_out(pattern: str) -> int:
    """How many characters and groups `pattern` has with its repetitions written out; rather too many than too few."""
    groups, last = [0], 0
    for match in _PART.finditer(pattern):
        part = match.group()
        if part == "(":
            groups.append(1)
        elif part == ")" and len(groups) > 1:
            last = groups.pop()
            groups[-1] += last
        elif match.group(1) is not None:
            before, last = last, last * _most(match)
            groups[-1] += last - before
        elif part not in ("*", "+", "?"):  # which may stand behind counts
            groups[-1], last = groups[-1] + 1, 1
    if len(groups) > 1 or pattern.count(")") > pattern.count("(") or _OTHERWISE.search(pattern):
        return len(pattern) * math.prod(map(_most, _PART.finditer(pattern)))
    return groups[0]


def _most(match: re.Match[str]) -> int:
    """The most repetitions that these counts name, 1 where they are none."""
    return max(1, *(int(count[:20]) for count in match.groups() if count), 1)
