"""From a checked request to a running generation: encodes the prompt off the event loop, then asks the engine.

Knows requests and generations, but neither routes nor sockets.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from heedful.errors import ContextLengthError
from heedful.prompt import EncodedPrompt
from heedful.sampling import Sampling
from heedful.serve.choice import Choice
from heedful.serve.config import Config
from heedful.serve.fair import FairThread
from heedful.serve.generation import Generation
from heedful.serve.marking import Default, Marked, as_messages, by_default, mark, with_seed
from heedful.serve.metrics import Metrics
from heedful.serve.problems import RequestError, TimeLimitError
from heedful.serve.protocol import Engine, Settings, Text, TokenStream
from heedful.serve.replies import Envelope
from heedful.serve.schemas import ChatRequest, CompletionRequest

Encoded = TypeVar("Encoded")
MARKUP = 40  # characters that a token may have around it which are no part of it: tags that mark it


@dataclass(frozen=True)
class Asked:
    """A request that runs: its generation, and what its answer is wrapped in."""

    generation: Generation
    envelope: Envelope


class Service:
    """Everything that routes share. One thread encodes prompts, so that long ones do not hold up the streams."""

    def __init__(self, lm: Text, engine: Engine, config: Config) -> None:
        """Raises `OptionError` where the configured method cannot be had on this model."""
        self.lm, self.engine, self.config = lm, engine, config
        self.metrics = Metrics(engine)
        self.default = Default.of(config.method)
        method = self.default.method(None)
        if method is not None:
            engine.check(method)
        self._encoder = FairThread("heedful-encoder")
        self._encoding: Counter[str] = Counter()  # by owner, answers whose prompts are being encoded or wait for it
        longest = max(map(len, lm.tokenizer.get_vocab()))
        self._most_characters = engine.context_length * (longest + MARKUP) + MARKUP

    async def encode(self, messages: list[dict[str, str]], num_answers: int, owner: str) -> EncodedPrompt:
        """A conversation as tokens, marked as in a request that names nothing; a part of `owner`'s queue meanwhile.

        Raises the `HeedfulError` that says what is wrong, or that the queue is full.
        """
        self._refuse_if_long(messages)
        instructions = by_default(messages, self.config.heed)
        return await self._in_turn(num_answers, owner, partial(self.lm.encode, messages, instructions))

    async def chat(self, request: ChatRequest, owner: str | None) -> Asked:
        """Starts a chat answer. Raises the `HeedfulError` that says why it cannot be had."""
        return await self._ask(request, [as_messages(request.messages)], owner, is_chat=True)

    async def completion(self, request: CompletionRequest, owner: str | None) -> Asked:
        """Starts a completion of each prompt. Raises as `chat` does."""
        return await self._ask(request, request.prompts, owner, is_chat=False)

    async def _ask(
        self, request: ChatRequest | CompletionRequest, prompts: Sequence[Any], owner: str | None, *, is_chat: bool
    ) -> Asked:
        begun = time.monotonic()
        self._check(request, len(prompts) * request.n)
        owner = owner or f"user {request.user or ''}"
        for prompt in prompts:
            self._refuse_if_long(prompt)
        marked = await self._in_turn(len(prompts) * request.n, owner, partial(self._mark, prompts, request))
        streams = self._submit(request, marked, owner)
        choices = [
            Choice(index, self.lm.tokenizer, request.stops, request.num_top is not None)
            for index in range(len(streams))
        ]
        num_prompt_tokens = sum(len(one.prompt.token_ids) for one in marked)
        self.metrics.prompt_tokens.inc(num_prompt_tokens)
        return Asked(
            Generation(choices, streams, self.config.seconds, self.metrics, begun),
            Envelope(
                request.model,
                is_chat,
                num_prompt_tokens,
                request.n,
                marked[0].method,
                request.wants_trace,
                [one.prompt.detection for one in marked if one.prompt.detection is not None],
            ),
        )

    async def _in_turn(self, num_answers: int, owner: str, work: Callable[[], Encoded]) -> Encoded:
        """What `work` gives, off the loop, when it is `owner`'s turn; a part of the queue, and of the time, till then.

        Raises `BusyError` where the queue is full, `TimeLimitError` where it takes too long.
        """
        self.engine.refuse_if_busy(num_answers, owner, self._encoding)
        self._encoding[owner] += num_answers
        encoding = asyncio.ensure_future(self._encoder.run(owner, work))
        try:  # not `wait_for`, which may take a cancellation that comes with the result for its end
            done, _ = await asyncio.wait({encoding}, timeout=self.config.seconds)
            if not done:
                message = f"the request took longer than {self.config.seconds:g} s; its prompt was not read yet"
                raise TimeLimitError(message)
            return encoding.result()
        finally:
            encoding.cancel()
            self._encoding -= Counter({owner: num_answers})  # which forgets an owner who has none left

    def _refuse_if_long(self, prompt: str | list[dict[str, str]]) -> None:
        """Raises `ContextLengthError` for what could not fit if each token were the longest, tags around each."""
        texts = [prompt] if isinstance(prompt, str) else [message["content"] for message in prompt]
        size = sum(map(len, texts))
        if size > self._most_characters:
            raise ContextLengthError(
                f"the prompt has {size} characters, but this server holds {self.engine.context_length} tokens"
            )

    def _check(self, request: ChatRequest | CompletionRequest, num_choices: int) -> None:
        if request.model != self.config.model_name:
            message = f"the model {request.model!r} is not here; this server has {self.config.model_name!r}"
            raise RequestError(404, message, code="model_not_found", param="model")
        if num_choices > self.config.max_choices:
            message = (
                f"{num_choices} answers are asked for at once; this server gives at most {self.config.max_choices}"
            )
            raise RequestError(400, message, code="bad_value", param="n")
        if request.limit is not None and request.limit > self.config.max_tokens:
            message = f"{request.limit} tokens are asked for; this server generates at most {self.config.max_tokens}"
            raise RequestError(400, message, code="bad_value", param="max_tokens")

    def _mark(self, prompts: Sequence[Any], request: ChatRequest | CompletionRequest) -> list[Marked]:
        return [mark(self.lm, prompt, request.heedful, self.default, self.config.heed) for prompt in prompts]

    def _submit(
        self, request: ChatRequest | CompletionRequest, marked: Sequence[Marked], owner: str
    ) -> list[TokenStream]:
        """All choices of all prompts, or none."""
        sampling = Sampling(request.temperature, 0, request.top_p, request.seed)
        streams: list[TokenStream] = []
        try:
            self.engine.refuse_if_busy(len(marked) * request.n, owner)
            for number in range(len(marked) * request.n):
                one, choice = marked[number // request.n], number % request.n
                settings = Settings(
                    max_new_tokens=self._room(len(one.prompt.token_ids), request.limit),
                    method=one.method,
                    sampling=with_seed(sampling, choice),
                    num_top=request.num_top or 0,
                    owner=owner,
                )
                streams.append(self.engine.submit(one.prompt.token_ids, one.prompt.span, settings))
        except Exception:
            for stream in streams:
                stream.cancel()
            raise
        return streams

    def _room(self, num_prompt_tokens: int, asked: int | None) -> int:
        """How many tokens to generate; where none are asked for, what there is room for."""
        if asked is not None:
            return asked
        return max(1, min(self.config.max_tokens, self.engine.context_length - num_prompt_tokens))
