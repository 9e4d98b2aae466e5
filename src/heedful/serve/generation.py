"""One HTTP request on its way: its choices run in the engine, their pieces come out as they are decided.

Whatever ends it, the last token, the time limit, an error or the client's leaving, frees every slot that it holds.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from heedful.serve.choice import Choice, Piece
from heedful.serve.metrics import Metrics
from heedful.serve.problems import TimeLimitError
from heedful.serve.protocol import Token, TokenStream

Answered = TypeVar("Answered")


@dataclass
class Generation:
    """`choices[i]` is fed by `streams[i]`. `seconds`: the time limit, from `begun` on (a monotonic clock)."""

    choices: Sequence[Choice]
    streams: Sequence[TokenStream]
    seconds: float
    metrics: Metrics
    begun: float = field(default_factory=time.monotonic)

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """Pieces of all choices as they come, each choice's in order.

        Raises `TimeLimitError`, or what the engine raises. Frees everything when it is closed.
        """
        waits: dict[asyncio.Future[Token], int] = {}
        try:
            for index in range(len(self.streams)):
                waits[self._next(index)] = index
            while waits:
                for future in await self._any(waits):
                    index = waits.pop(future)
                    piece = self._take(index, future.result())
                    if piece.finish_reason is None:
                        waits[self._next(index)] = index
                    yield piece
            self.metrics.seconds.observe(time.monotonic() - self.begun)
        finally:
            self.cancel()
            for future in waits:
                future.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    async def finish(self) -> Sequence[Choice]:
        """Runs all choices to their end."""
        async for _ in self.pieces():
            pass
        return self.choices

    def cancel(self) -> None:
        """Frees what is held; does nothing where all has ended."""
        for stream in self.streams:
            stream.cancel()

    def _next(self, index: int) -> asyncio.Future[Token]:
        return asyncio.ensure_future(self.streams[index].__anext__())

    @property
    def seconds_left(self) -> float:
        """Until the time limit, below 0 after it."""
        return self.begun + self.seconds - time.monotonic()

    async def _any(self, waits: dict[asyncio.Future[Token], int]) -> list[asyncio.Future[Token]]:
        done, _ = await asyncio.wait(waits, timeout=max(0.0, self.seconds_left), return_when=asyncio.FIRST_COMPLETED)
        if not done or self.seconds_left < 0:  # what is decided already must not wait for a client that does not read
            tokens = sum(len(choice.steps) for choice in self.choices)
            raise TimeLimitError(f"the request took longer than {self.seconds:g} s; {tokens} tokens had been generated")
        return sorted(done, key=waits.__getitem__)

    def _take(self, index: int, token: Token) -> Piece:
        choice = self.choices[index]
        if not choice.steps:
            self.metrics.first_token.observe(time.monotonic() - self.begun)
        self.metrics.count(token)
        piece = choice.take(token)
        if piece.finish_reason is not None:
            self.streams[index].cancel()  # a stop string ends the text before the engine knows
        return piece


async def unless_gone(receive: Callable[[], Awaitable[Any]], work: Awaitable[Answered]) -> Answered | None:
    """What `work` gives, or None where the client left before; then `work` is cancelled, its own clean-up done.

    What comes to its end although it is cancelled is given too: it may hold slots, which nobody else could free.
    """

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for future in (working, leaving):
            future.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)
    return None if working.cancelled() else working.result()
