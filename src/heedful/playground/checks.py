"""The user's checks of an answer: `heedful.constraints`, with a time limit where a pattern could take for ever."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from heedful.constraints import constraint
from heedful.errors import OptionError

SECONDS = 0.25  # for one pattern on one answer
LONGEST_PATTERN = 200


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
    """The checks that are named. Raises `OptionError` for one that is none."""
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
    try:
        compiled = regex.compile(pattern)
    except (regex.error, ValueError, OverflowError, RecursionError) as error:
        raise OptionError(f"{pattern!r} is no regular expression: {error}") from error

    def holds(text: str) -> bool | None:
        try:
            return compiled.search(text, timeout=SECONDS, concurrent=True) is not None
        except TimeoutError:
            return None

    return holds
