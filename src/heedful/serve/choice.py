"""One choice of an answer: tokens in, text out, with its stop strings, its log-probabilities and its trace."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from heedful.answer import FinishReason
from heedful.serve.protocol import Token
from heedful.text import TextStream
from heedful.trace import Stats, Step

UNLIKELIEST = -9999.0  # what OpenAI's API says where a log-probability has no finite value


@dataclass(frozen=True)
class Logprob:
    """A token's text, its log-probability, and the likeliest tokens in its place."""

    text: str
    value: float
    top: tuple[tuple[str, float], ...]
    offset: int
    """Characters of the answer that were safe to show before it."""


@dataclass(frozen=True)
class Piece:
    """What one token adds to a choice; `finish_reason` with its last. `token`: what the engine said of it."""

    index: int
    text: str
    step: Step
    logprobs: Sequence[Logprob]
    """Of the tokens whose text it shows: a token that may belong to a stop string waits, and goes where that goes."""
    finish_reason: FinishReason | None
    token: Token


@dataclass
class Choice:
    """Folds the tokens of choice number `index`. `wants_logprobs`: keep a `Logprob` of each token but the last EOS."""

    index: int
    tokenizer: Any
    stops: Sequence[str]
    wants_logprobs: bool
    finish_reason: FinishReason | None = None
    steps: list[Step] = field(default_factory=list)
    logprobs: list[Logprob] = field(default_factory=list)
    ranking: tuple[int, ...] = ()
    num_reused: int = 0

    def __post_init__(self) -> None:
        self._stream = TextStream(self.tokenizer, self.stops)
        self._stats = Stats()
        self._waiting: list[tuple[int, Logprob]] = []  # with the place in the answer where their texts begin

    @property
    def stats(self) -> Stats:
        """Counts of what is shown, and the times so far."""
        return self._stats.over(self.steps)

    @property
    def text(self) -> str:
        """The answer so far, as far as it is safe to show."""
        return self._stream.text

    def take(self, token: Token) -> Piece:
        """The next token."""
        offset = len(self._stream.text)
        start = offset + self._stream.num_held
        text = self._stream.push(token.step.token_id)
        self.finish_reason = "stop" if self._stream.is_stopped else token.finish_reason
        if self.finish_reason is not None:
            text += self._stream.close()
        step = replace(token.step, text=self._spelled(token.step.token_id))
        self.steps.append(step)
        self.ranking, self._stats, self.num_reused = token.ranking, token.stats, token.num_reused
        if self.wants_logprobs and self.finish_reason != "eos":
            self._waiting.append((start, self._logprob(step, token, offset)))
        return Piece(self.index, text, step, self._shown(), self.finish_reason, token)

    def _shown(self) -> list[Logprob]:
        """What waited, of tokens that are a part of the answer now; those of a stop string never are."""
        end, is_certain = len(self._stream.text), self._stream.num_held == 0 and not self._stream.is_stopped
        shown = [one for start, one in self._waiting if is_certain or start < end]
        self._waiting = [(start, one) for start, one in self._waiting if not is_certain and start >= end]
        self.logprobs += shown
        return shown

    def _logprob(self, step: Step, token: Token, offset: int) -> Logprob:
        value = math.log(step.p_raw) if step.p_raw > 0 else UNLIKELIEST
        top = tuple((self._spelled(other), max(chance, UNLIKELIEST)) for other, chance in token.top)
        return Logprob(step.text, value, top, offset)

    def _spelled(self, token_id: int) -> str:
        text: str = self.tokenizer.decode([token_id])
        return text


def finish(reason: FinishReason | None) -> str | None:
    """The reason in OpenAI's words."""
    return None if reason is None else ("length" if reason == "length" else "stop")
