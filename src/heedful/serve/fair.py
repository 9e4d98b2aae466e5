"""Owners take turns: many requests of one do not keep another waiting. Not thread-safe."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import Generic, TypeVar

Item = TypeVar("Item")
Done = TypeVar("Done")
NOBODY: Mapping[str, int] = MappingProxyType({})


class FairQueue(Generic[Item]):
    """First come, first served within an owner; round robin between owners."""

    def __init__(self) -> None:
        self._lines: dict[str, deque[Item]] = {}  # in the order of their turns

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))

    def __iter__(self) -> Iterator[Item]:
        return (item for line in self._lines.values() for item in line)

    def push(self, owner: str, item: Item) -> None:
        """Puts `item` at the end of its owner's line; a new owner's turn is the last."""
        self._lines.setdefault(owner, deque()).append(item)

    def crowded_out(self, owner: str, num_new: int, before: Mapping[str, int] = NOBODY) -> int:
        """How many items of others could go before any of them has fewer than `owner` with `num_new` more.

        `before`: how many more each has, or will have, that are not in the queue yet.
        """
        has = Counter({other: len(line) for other, line in self._lines.items()}) + Counter(before)
        share = has[owner] + num_new
        return sum(max(0, number - share) for other, number in has.items() if other != owner)

    def crowd_out(self) -> Item:
        """Takes the last item of the longest line. Raises `ValueError` where nobody waits."""
        owner = max(self._lines, key=lambda owner: len(self._lines[owner]))
        item = self._lines[owner].pop()
        if not self._lines[owner]:
            del self._lines[owner]
        return item

    def peek(self) -> Item:
        """Whose turn it is. Raises `IndexError` where nobody waits."""
        for line in self._lines.values():
            return line[0]
        raise IndexError("the queue is empty")

    def pop(self) -> Item:
        """Takes what `peek` shows; its owner's next turn is the last."""
        item = self.peek()
        owner = next(iter(self._lines))
        line = self._lines.pop(owner)
        line.popleft()
        if line:
            self._lines[owner] = line
        return item

    def remove(self, item: Item) -> bool:
        """Whether `item` was there; it is no more."""
        for owner, line in self._lines.items():
            if item in line:
                line.remove(item)
                if not line:
                    del self._lines[owner]
                return True
        return False

    def clear(self) -> list[Item]:
        """Empties the queue; returns what was in it."""
        items = list(self)
        self._lines.clear()
        return items


class FairThread:
    """A thread beside the event loop that does one thing at a time, for owners in turn."""

    def __init__(self, name: str) -> None:
        self._thread = ThreadPoolExecutor(1, name)
        self._waiting: FairQueue[asyncio.Future[None]] = FairQueue()
        self._is_busy = False

    async def run(self, owner: str, work: Callable[[], Done]) -> Done:
        """What `work` gives. Where this is cancelled, what the thread has begun goes on unheard."""
        await self._turn(owner)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        finally:
            self._pass_on()

    async def _turn(self, owner: str) -> None:
        if not self._is_busy:
            self._is_busy = True
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.push(owner, turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not self._waiting.remove(turn) and not turn.cancelled():
                self._pass_on()  # the turn had come
            raise

    def _pass_on(self) -> None:
        """To the next who still waits: a turn may be cancelled before its owner has taken it out."""
        while len(self._waiting):
            turn = self._waiting.pop()
            if not turn.done():
                turn.set_result(None)
                return
        self._is_busy = False
