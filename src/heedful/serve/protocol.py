"""What the server asks of an engine: tokens and a span in, a stream of decided tokens out. Knows neither HTTP nor text.

`core.TransformersEngine` is one; another takes its place by doing what `Engine` says, with a `Text` beside it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from heedful.answer import FinishReason
from heedful.errors import HeedfulError
from heedful.prompt import EncodedPrompt, Instructions, Messages
from heedful.recipe import Method, ModelShape
from heedful.sampling import Sampling
from heedful.serve.fair import NOBODY
from heedful.spans import TokenSpan
from heedful.trace import Alternative, Stats, Step

State = Literal["ok", "degraded", "failed", "draining", "stopped"]


class BusyError(HeedfulError):
    """The queue is full; `retry_after` says in how many seconds it is worth asking again."""

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class EngineError(HeedfulError):
    """The engine failed while it ran the request, or is out of order."""


class StoppingError(HeedfulError):
    """The server is shutting down and takes no more requests, or ran out of time to finish this one."""


@dataclass(frozen=True)
class Settings:
    """How to answer. `method` None decodes plainly; `num_top`: log-probabilities to tell with each token;
    `num_alternatives`: likeliest tokens to tell with their raw and steered probabilities.

    `owner`: whose request it is. Owners are served in turn, each one's requests in the order in which they came.
    """

    max_new_tokens: int
    method: Method | None = None
    sampling: Sampling = Sampling()
    num_top: int = 0
    num_alternatives: int = 0
    owner: str = ""


@dataclass(frozen=True)
class Token:
    """One decided token; `stats` and `ranking` are the answer's so far. `finish_reason` comes with the last.

    `num_reused`: prompt tokens that were not read, because the engine held them already. `sensitivity`: each layer's
    score, where the layers were ranked by a measurement.
    """

    step: Step
    top: tuple[tuple[int, float], ...]
    stats: Stats
    ranking: tuple[int, ...]
    num_reused: int
    finish_reason: FinishReason | None
    alternatives: tuple[Alternative, ...] = ()
    sensitivity: tuple[float, ...] = ()


@dataclass(frozen=True)
class Status:
    """What an engine is doing. `state`: "degraded" after a failure until a step succeeds, "failed" for good.

    `failure`: kind of the last error, empty where there was none. `steps`: forwards so far.
    """

    state: State
    num_running: int
    num_waiting: int
    num_slots: int
    num_failures: int
    failure: str
    steps: int

    @property
    def is_ready(self) -> bool:
        """Whether requests are taken."""
        return self.state in ("ok", "degraded")


class Encoder(Protocol):
    """What turns a prompt into tokens: an `LM`, or a tokenizer alone."""

    def encode(self, prompt: Messages, instructions: Instructions = None, *, raw: bool = False) -> EncodedPrompt:
        """As `LM.encode`."""


class Text(Encoder, Protocol):
    """The model's text side: an `LM`, or a tokenizer beside another engine."""

    @property
    def tokenizer(self) -> Any:
        """The transformers tokenizer."""

    @property
    def shape(self) -> ModelShape:
        """The model's name, layers and heads."""


class TokenStream(Protocol):
    """The tokens of one request, as they are decided. Iterating raises the `HeedfulError` that ended it.

    `BusyError`: it waited in a full queue, and gave way to an owner who had fewer requests there.
    """

    def __aiter__(self) -> AsyncIterator[Token]:
        """Itself: a stream is read once."""

    async def __anext__(self) -> Token:
        """The next token; `StopAsyncIteration` after the last."""

    def cancel(self) -> None:
        """Frees what it holds before the engine's next step. Does nothing once it has ended."""


class Engine(Protocol):
    """Runs requests, many at a time."""

    @property
    def context_length(self) -> int:
        """Tokens that prompt and answer may have together."""

    def submit(self, tokens: tuple[int, ...], span: TokenSpan, settings: Settings) -> TokenStream:
        """Queues a request; call it where an event loop runs. Never blocks.

        Raises `BusyError`, `StoppingError`, `EngineError`, or the `HeedfulError` that says what is wrong with it.
        """

    def check(self, method: Method) -> None:
        """Raises `OptionError` where no request can be steered by `method`."""

    def refuse_if_busy(self, num_requests: int = 1, owner: str = "", before: Mapping[str, int] = NOBODY) -> None:
        """Raises what `submit` would if the next `num_requests` requests of `owner` cannot be taken.

        `before`: how many each owner has on their way that come first; they count as if they waited.
        """

    def status(self) -> Status:
        """What it is doing now."""

    def start(self) -> None:
        """Begins to work."""

    def drain(self) -> None:
        """Takes no more requests and refuses those that wait; what runs goes on."""

    def stop(self) -> None:
        """Ends what still runs, and itself."""
