"""How long generating took, kept beside a run's answers and apart from them: those are the same in two equal runs."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from heedful import journal

FILE = "times.json"
Item = TypeVar("Item")


@dataclass(frozen=True)
class Time:
    """Wall seconds of generating, and tokens generated in them, those that a kill threw away included."""

    seconds: float = 0.0
    tokens: int = 0

    def __add__(self, other: Time) -> Time:
        return Time(self.seconds + other.seconds, self.tokens + other.tokens)

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return self.tokens / self.seconds


Times = Mapping[str, Mapping[str, Time]]
"""By method, by the hardware it ran on."""


class Clock:
    """Adds up `time`."""

    def __init__(self, time: Time = Time()) -> None:
        self.time = time

    def timed(self, events: Iterable[Item]) -> Iterator[Item]:
        """The events, one a token; only waiting for them counts, not what is done with them."""
        begin = time.perf_counter()
        for event in events:
            self.time += Time(time.perf_counter() - begin, 1)
            yield event
            begin = time.perf_counter()


class Stopwatch(Clock):
    """Times one method on one machine, on top of what the file at `path` says of earlier sessions."""

    def __init__(self, path: Path, method: str, hardware: str) -> None:
        self._path, self._method, self._hardware = path, method, hardware
        super().__init__(read(path).get(method, {}).get(hardware, Time()))

    def keep(self) -> None:
        """Writes the file, at once or not at all. Raises `OSError` where that cannot be done."""
        found = {name: dict(by_hardware) for name, by_hardware in read(self._path).items()}
        found.setdefault(self._method, {})[self._hardware] = self.time
        plain = {name: {where: asdict(spent) for where, spent in found[name].items()} for name in found}
        journal.write(self._path, json.dumps(plain, indent=1) + "\n")


def read(path: Path) -> dict[str, dict[str, Time]]:
    """What a file of times says; nothing where it is missing or broken, as no score hangs on it."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {name: {where: Time(**spent) for where, spent in found[name].items()} for name in found}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def added(first: Times, second: Times) -> dict[str, dict[str, Time]]:
    """Times of two parts of a run, machine by machine."""
    total: dict[str, dict[str, Time]] = {name: dict(by_hardware) for name, by_hardware in first.items()}
    for name, by_hardware in second.items():
        mine = total.setdefault(name, {})
        for where, spent in by_hardware.items():
            mine[where] = mine.get(where, Time()) + spent
    return total
