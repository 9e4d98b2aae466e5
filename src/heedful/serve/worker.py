"""An engine behind the protocol whose thread owns the model: what queues, joins and leaves is the same for all of them.

Requests join and leave between two steps. Event loops only queue, cancel and listen; tensors never leave the thread.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeAlias

from heedful.answer import Answer, Emitted, Request
from heedful.errors import ContextLengthError
from heedful.recipe import Method
from heedful.serve.fair import NOBODY, FairQueue
from heedful.serve.protocol import BusyError, EngineError, Settings, State, Status, StoppingError, Token
from heedful.spans import TokenSpan

FAILURES_IN_A_ROW = 3
LONGEST_RETRY_AFTER = 60

log = logging.getLogger("heedful.serve")
Message: TypeAlias = "Token | BaseException"


@dataclass(frozen=True)
class Limits:
    """`max_running` answers at a time, `max_queue` more that wait; see `Decoder` for the rest.

    `prefill_tokens` None: as many as a step can read in a small part of a second, by the device.
    """

    max_running: int = 16
    max_queue: int = 64
    prefill_tokens: int | None = None
    reuses_prefixes: bool = True


class Decoding(Protocol):
    """What the engine's thread steps: `heedful.decode.Decoder`, or what answers as it does. Used by one thread."""

    def has_room(self, request: Request) -> bool:
        """Whether the next step would start `request`, were it submitted now."""

    def submit(self, request: Request) -> Answer:
        """Queues a request."""

    def finish(self, sequence: Answer) -> None:
        """Ends a sequence early and frees what it holds; does nothing if it has ended."""

    def step(self) -> Sequence[Emitted]:
        """The tokens that a step settled."""

    def reset(self) -> None:
        """Forgets all that runs and waits, after a step that raised."""


class Ticket:
    """A request on its way through the engine: where its tokens are listened for, and how it is cancelled."""

    def __init__(self, engine: ThreadedEngine, request: Request, owner: str) -> None:
        self.request, self.owner = request, owner
        self.answer: Answer | None = None
        self.loop = asyncio.get_running_loop()
        self.begun = time.monotonic()
        self._engine = engine
        self._inbox: asyncio.Queue[Message] = asyncio.Queue()
        self._has_ended = False
        self.has_tokens = False

    def __aiter__(self) -> AsyncIterator[Token]:
        return self

    async def __anext__(self) -> Token:
        if self._has_ended:
            raise StopAsyncIteration
        message = await self._inbox.get()
        if isinstance(message, BaseException):
            self._has_ended = True
            raise message
        self._has_ended = message.finish_reason is not None
        return message

    def cancel(self) -> None:
        """Frees its slot before the next step."""
        if not self._has_ended:
            self._has_ended = True
            self._engine.cancel(self)

    def receive(self, message: Message) -> None:
        """Hears a token, or why there are no more; in the loop's thread."""
        self._inbox.put_nowait(message)


class ThreadedEngine(ABC):
    """A model that one thread steps, whatever runs it; see `protocol.Engine`. What differs is in `_request` and in its
    `decoder`."""

    def __init__(self, decoder: Decoding, context_length: int, limits: Limits) -> None:
        self._decoder, self._limits = decoder, limits
        self.context_length = context_length
        self._wake = threading.Condition()
        self._waiting: FairQueue[Ticket] = FairQueue()
        self._running: dict[Answer, Ticket] = {}
        self._cancelled: list[Ticket] = []
        self._state: State = "ok"
        self._failure, self._num_failures, self._failures_in_a_row = "", 0, 0
        self._steps, self._mean_seconds = 0, 1.0
        self._thread = threading.Thread(target=self._run, name="heedful-engine", daemon=True)

    @abstractmethod
    def check(self, method: Method) -> None:
        """Raises `OptionError` where it cannot be steered by `method`; see `protocol.Engine.check`."""

    @abstractmethod
    def _request(self, tokens: tuple[int, ...], span: TokenSpan, settings: Settings) -> Request:
        """What the decoder is asked. Raises the `HeedfulError` that says what is wrong; called by event loops."""

    # What event loops call

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def submit(self, tokens: tuple[int, ...], span: TokenSpan, settings: Settings) -> Ticket:
        """Queues a request; see `protocol.Engine.submit`."""
        needed = len(tokens) + settings.max_new_tokens
        if len(tokens) >= self.context_length:
            raise ContextLengthError(
                f"the prompt has {len(tokens)} tokens, but this server holds {self.context_length}"
            )
        if needed > self.context_length:
            raise ContextLengthError(
                f"prompt and answer need {len(tokens)} + {settings.max_new_tokens} = {needed} tokens, "
                f"but this server holds {self.context_length}"
            )
        ticket = Ticket(self, self._request(tokens, span, settings), settings.owner)
        with self._wake:
            num_over = self._refuse_if_busy(1, settings.owner)
            given_way = [self._waiting.crowd_out() for _ in range(num_over)]
            self._waiting.push(settings.owner, ticket)
            self._wake.notify()
        gone = BusyError("the queue is full, and others have waited with fewer requests; retry in 1 s", 1)
        _send([(one, gone) for one in given_way])
        return ticket

    def refuse_if_busy(self, num_requests: int = 1, owner: str = "", before: Mapping[str, int] = NOBODY) -> None:
        """Raises what `submit` would; see `protocol.Engine.refuse_if_busy`."""
        with self._wake:
            self._refuse_if_busy(num_requests, owner, before)

    def _refuse_if_busy(self, num_requests: int, owner: str, before: Mapping[str, int] = NOBODY) -> int:
        """How many that wait must give way to them."""
        self._look_after_thread()
        if self._state == "failed":
            raise EngineError(f"the engine is out of order after {self._num_failures} failures; restart the server")
        if self._state in ("draining", "stopped"):
            raise StoppingError("the server is shutting down")
        running, limits = len(self._running), self._limits
        waiting = len(self._waiting) + sum(before.values())
        most = limits.max_running + limits.max_queue
        num_over = max(0, running + waiting + num_requests - most)
        if num_over > self._waiting.crowded_out(owner, num_requests, before):
            rounds = (running + waiting) / limits.max_running
            wait = min(LONGEST_RETRY_AFTER, max(1, math.ceil(self._mean_seconds * rounds)))
            raise BusyError(f"{running} requests run and {waiting} wait, {most} are the most; retry in {wait} s", wait)
        return num_over

    def _look_after_thread(self) -> None:
        """Says so where the thread has ended and nobody asked for it."""
        if self._thread.ident is not None and not self._thread.is_alive() and self._state != "stopped":
            self._state = "failed"

    def cancel(self, ticket: Ticket) -> None:
        """Takes a ticket out before the next step."""
        with self._wake:
            self._cancelled.append(ticket)
            self._wake.notify()

    def status(self) -> Status:
        """What it is doing now."""
        with self._wake:
            self._look_after_thread()
            return Status(
                state=self._state,
                num_running=len(self._running),
                num_waiting=len(self._waiting),
                num_slots=self._limits.max_running,
                num_failures=self._num_failures,
                failure=self._failure,
                steps=self._steps,
            )

    def drain(self) -> None:
        """Takes no more requests and refuses those that wait."""
        with self._wake:
            if self._state != "stopped":
                self._state = "draining"
            waiting = self._waiting.clear()
        _send([(ticket, StoppingError("the server is shutting down")) for ticket in waiting])

    def stop(self) -> None:
        """Ends what still runs, and the thread."""
        with self._wake:
            self._state = "stopped"
            self._wake.notify()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(timeout=60)

    # The engine's thread

    def _run(self) -> None:
        try:
            while self._state not in ("stopped", "failed"):
                self._work()
        except BaseException as error:  # nothing may end the thread unheard: those that wait would wait for ever
            log.critical("the engine's thread failed", exc_info=error)
            with self._wake:
                self._state, self._failure = "failed", type(error).__name__
                self._num_failures += 1
            self._end_all(EngineError(f"the engine failed ({type(error).__name__})"))
        else:
            self._end_all(StoppingError("the server shut down before the answer was finished"))

    def _work(self) -> None:
        try:
            self._prepare()
            emitted = self._decoder.step()
        except Exception as error:
            self._fail(error)
        else:
            self._succeed(emitted)

    def _prepare(self) -> None:
        """Waits for work; lets requests leave and join."""
        with self._wake:
            while not (self._cancelled or self._waiting or self._running or self._state == "stopped"):
                self._wake.wait()
            for ticket in self._cancelled:
                self._leave(ticket)
            self._cancelled.clear()
            while self._waiting and self._decoder.has_room(self._waiting.peek().request):
                self._begin(self._waiting.pop())

    def _begin(self, ticket: Ticket) -> None:
        """Hands a request to the decoder; what goes wrong with that ends this one alone."""
        try:
            ticket.answer = self._submit(ticket.request)
        except Exception as error:
            log.error("a request could not be begun", exc_info=error)
            self._failure = type(error).__name__
            self._num_failures += 1
            _send([(ticket, EngineError(f"the request could not be begun ({type(error).__name__})"))])
        else:
            self._running[ticket.answer] = ticket
            ticket.begun = time.monotonic()  # Retry-After counts those that wait; a mean with waits counted twice

    def _submit(self, request: Request) -> Answer:
        return self._decoder.submit(request)

    def _ranked(self, ticket: Ticket, answer: Answer) -> None:  # noqa: B027 (most have nothing to do)
        """Hears, once, that an answer has tokens, and so its layers an order."""

    def _leave(self, ticket: Ticket) -> None:
        if ticket.answer is None:
            self._waiting.remove(ticket)
        elif self._running.pop(ticket.answer, None) is not None:
            self._decoder.finish(ticket.answer)

    def _succeed(self, emitted: Sequence[Emitted]) -> None:
        """Hands out the tokens of a step, often several of one answer."""
        messages: list[tuple[Ticket, Message]] = []
        with self._wake:
            self._steps += 1
            self._failures_in_a_row = 0
            if self._state == "degraded":
                self._state = "ok"
            for one in emitted:
                ticket = self._running[one.answer]
                messages.append((ticket, one.error or _token(one)))
                if not ticket.has_tokens and one.error is None:
                    ticket.has_tokens = True
                    self._ranked(ticket, one.answer)
                if one.finish_reason is not None:
                    del self._running[one.answer]
                    self._mean_seconds += 0.1 * (time.monotonic() - ticket.begun - self._mean_seconds)
        _send(messages)

    def _fail(self, error: Exception) -> None:
        """Ends what ran, whose state is not known any more; the next requests find an empty decoder."""
        log.error("a step of the engine failed", exc_info=error)
        with self._wake:
            self._failure = type(error).__name__
            self._num_failures += 1
            self._failures_in_a_row += 1
            if self._state in ("ok", "degraded"):
                self._state = "failed" if self._failures_in_a_row >= FAILURES_IN_A_ROW else "degraded"
            ended = list(self._running.values())
            self._running.clear()
            if self._state == "failed":
                ended += self._waiting.clear()
        _send([(ticket, EngineError(f"the engine failed ({type(error).__name__})")) for ticket in ended])
        self._decoder.reset()  # last: should it raise, nobody waits for what never comes

    def _end_all(self, reason: EngineError | StoppingError) -> None:
        with self._wake:
            ended = [*self._running.values(), *self._waiting.clear()]
            self._running.clear()
        _send([(ticket, reason) for ticket in ended])


def _token(one: Emitted) -> Token:
    answer = one.answer
    return Token(
        one.step,
        one.top,
        replace(answer.stats),
        answer.ranking,
        answer.num_reused,
        one.finish_reason,
        one.alternatives,
        answer.sensitivity,
    )


def _send(messages: Sequence[tuple[Ticket, Message]]) -> None:
    """Wakes each listening event loop once."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Ticket, Message]]] = defaultdict(list)
    for ticket, message in messages:
        by_loop[ticket.loop].append((ticket, message))
    for loop, some in by_loop.items():
        try:
            loop.call_soon_threadsafe(_hand_out, some)
        except RuntimeError:  # the loop is closed: nobody listens
            for ticket, _ in some:
                ticket.cancel()


def _hand_out(messages: Sequence[tuple[Ticket, Message]]) -> None:
    for ticket, message in messages:
        ticket.receive(message)
