"""Asks a language model for verdicts over any OpenAI-compatible endpoint. Knows nothing of what is judged, or why.

What cannot be had is an outcome without a verdict, and why; it is never a score.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from heedful.checks import finite, whole
from heedful.errors import JudgeError, OptionError

RETRIES = 5
"""Of a request that the endpoint fails (429, 5xx, timeouts); openai's client waits longer each time."""
REPEATS = 2
"""Of a question whose reply is no verdict."""
TIMEOUT_SECONDS = 120.0
CONCURRENCY = 8
CONNECT_SECONDS = 10.0
KEYS = ("HEEDFUL_JUDGE_KEY", "OPENAI_API_KEY")

# Not every endpoint takes every option; one that refuses the first way to ask is asked in the next.
WAYS: tuple[dict[str, Any], ...] = (
    {"response_format": {"type": "json_object"}, "temperature": 0.0},
    {"temperature": 0.0},
    {},
)
THOUGHT = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)
FENCE = re.compile(r"```(?:json)?\s*\n(.*)\n\s*```", re.DOTALL)


@dataclass(frozen=True)
class Question:
    """Chat messages that ask for a JSON object, and what its `verdict` may be."""

    messages: tuple[dict[str, str], ...]
    choices: tuple[str, ...]

    def id(self, model: str) -> str:
        """SHA-256 of the model's name and the messages: the same question is never asked twice."""
        return hashlib.sha256(json.dumps([model, self.messages]).encode()).hexdigest()


@dataclass(frozen=True)
class Outcome:
    """What came of a question: `verdict` and the judge's reason; or no verdict, and what went wrong.

    `reply` is the last raw reply, if there was any; `served_by` the model that the endpoint says it was.
    """

    reply: str | None
    verdict: str | None
    why: str
    served_by: str | None = None


def parse(reply: str, choices: Sequence[str]) -> tuple[str, str]:
    """The verdict and its reason. Raises `ValueError` unless `reply` is one JSON object with one valid `verdict`.

    Only a leading `<think>` block and one code fence around the object are passed over.
    """
    text = THOUGHT.sub("", reply).strip()
    fenced = FENCE.fullmatch(text)
    text = fenced[1].strip() if fenced else text
    if not text.startswith("{"):
        raise ValueError("the reply is no JSON object")
    try:
        pairs = json.loads(text, object_pairs_hook=list)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the reply is no JSON object: {error}") from error
    verdicts = [value for name, value in pairs if name == "verdict"]
    if len(verdicts) != 1 or verdicts[0] not in choices:
        raise ValueError(f"the reply has no one verdict of {', '.join(choices)}")
    return verdicts[0], str(next((value for name, value in pairs if name == "why"), ""))


class Judge:
    """The model `model` behind `url`; the key is taken from HEEDFUL_JUDGE_KEY, else from OPENAI_API_KEY, if any.

    Raises `OptionError` where the URL or a number cannot be used, or the eval extra is missing.
    """

    def __init__(
        self, url: str, model: str, *, retries: int = RETRIES, timeout_seconds: float = TIMEOUT_SECONDS
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise OptionError(f"the judge's URL must begin with http:// or https://, as in https://…/v1; got {url!r}")
        if not model.strip():
            raise OptionError("the judge's model must be named: --judge-model NAME")
        self.url, self.model = url, model
        self.retries = whole("retries", retries, low=0)
        self.timeout_seconds = finite("timeout", timeout_seconds, low_open=True)
        self._openai = _library()
        self._way: int | None = None

    def check(self) -> None:
        """One small question. Raises `JudgeError` where the endpoint is down, or refuses the key or the model."""
        text = 'Reply with this JSON object and nothing else: {"why": "test", "verdict": "yes"}'
        found: list[Outcome] = []
        ping = Question(({"role": "user", "content": text},), ("yes",))
        asyncio.run(self._ask([ping], 1, lambda _, outcome: found.append(outcome), min(self.retries, 1), repeats=0))
        if found[0].reply is None:
            raise JudgeError(f"the judge at {self.url} does not answer: {found[0].why}")

    def ask(self, questions: Sequence[Question], concurrency: int, done: Callable[[int, Outcome], None]) -> None:
        """Asks all, `concurrency` at a time; `done(index, outcome)` is called as each is answered.

        Raises `JudgeError`, and lets the other questions go, where the endpoint cannot be reached or refuses the key
        or the model; every other failure is an outcome.
        """
        asyncio.run(self._ask(questions, concurrency, done, self.retries, repeats=REPEATS))

    async def _ask(
        self,
        questions: Sequence[Question],
        concurrency: int,
        done: Callable[[int, Outcome], None],
        retries: int,
        *,
        repeats: int,
    ) -> None:
        waiting = iter(enumerate(questions))
        async with self._client(retries) as client:

            async def work() -> None:
                for index, question in waiting:
                    done(index, await self._answer(client, question, repeats))

            workers = [asyncio.create_task(work()) for _ in range(min(concurrency, len(questions)))]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)

    def _client(self, retries: int) -> Any:
        key = next((value for name in KEYS if (value := os.environ.get(name))), "none")
        timeout = self._openai.Timeout(self.timeout_seconds, connect=min(CONNECT_SECONDS, self.timeout_seconds))
        return self._openai.AsyncOpenAI(base_url=self.url, api_key=key, timeout=timeout, max_retries=retries)

    async def _answer(self, client: Any, question: Question, repeats: int) -> Outcome:
        outcome = Outcome(None, None, "not asked")
        for _ in range(1 + repeats):
            try:
                found = await self._complete(client, question)
            except (self._openai.OpenAIError, ValueError) as error:
                self._stop_if_hopeless(error)
                return Outcome(outcome.reply, None, _one_line(error))
            outcome = _read(found, question.choices)
            if outcome.verdict is not None:
                break
        return outcome

    async def _complete(self, client: Any, question: Question) -> Any:
        """The endpoint's reply, asked in the first way that it does not refuse; what it took first is kept to."""
        for way in range(self._way or 0, len(WAYS)):
            try:
                found = await client.chat.completions.create(
                    model=self.model, messages=list(question.messages), **WAYS[way]
                )
            except (self._openai.BadRequestError, self._openai.UnprocessableEntityError):
                if way == len(WAYS) - 1:
                    raise
                continue
            if self._way is None:  # the first reply settles it; a single question that is odd does not
                self._way = way
            return found

    def _stop_if_hopeless(self, error: Exception) -> None:
        """Raises `JudgeError` for what no later question could escape."""
        library = self._openai
        if isinstance(error, (library.AuthenticationError, library.PermissionDeniedError)):
            raise JudgeError(
                f"the judge at {self.url} refuses the key: set {' or '.join(KEYS)} ({_one_line(error)})"
            ) from error
        if isinstance(error, library.NotFoundError):
            raise JudgeError(
                f"the judge at {self.url} knows no such path or no model {self.model!r}: the URL usually ends in /v1 "
                f"({_one_line(error)})"
            ) from error
        if isinstance(error, library.APIConnectionError) and not isinstance(error, library.APITimeoutError):
            raise JudgeError(
                f"the judge at {self.url} cannot be reached ({_one_line(error.__cause__ or error)}); "
                "what was judged is kept"
            ) from error


def _read(found: Any, choices: Sequence[str]) -> Outcome:
    """The outcome of a chat completion, whose fields no client checks."""
    try:
        message = found.choices[0].message
        reply = message.content
    except (AttributeError, IndexError, TypeError):
        return Outcome(None, None, f"the endpoint sent no chat completion: {_one_line(found)}")
    served_by = found.model if isinstance(found.model, str) else None
    if not isinstance(reply, str):
        refusal = getattr(message, "refusal", None)
        return Outcome(None, None, f"the judge refused: {refusal}" if refusal else "the reply is empty", served_by)
    try:
        return Outcome(reply, *parse(reply, choices), served_by)
    except ValueError as error:
        return Outcome(reply, None, str(error), served_by)


def _one_line(what: object) -> str:
    return " ".join(str(what).split())[:300]


def _library() -> Any:
    try:
        import openai
    except ImportError as error:
        raise OptionError(f"a judge needs the eval extra: pip install 'heedful[eval]' ({error})") from error
    return openai
