"""Inspect's model provider `heedful/<model>`: chat messages in, one steered answer out. Calls no tools.

`heedful/default` is the built-in model, `heedful/owner/name` one of the hub, `heedful//a/folder` one on disk. Requests
that come while others are answered wait, and are then answered together; a thread does it, so that Inspect's event loop
stays free. Nothing joins a batch that has begun.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import anyio
import anyio.to_thread
from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    GenerateConfig,
    ModelAPI,
    ModelOutput,
    ModelUsage,
)
from inspect_ai.tool import ToolChoice, ToolInfo

from heedful.checks import whole
from heedful.errors import DataError, HeedfulError, OptionError, SpanError
from heedful.generate import Job, Result
from heedful.harness.asking import Request, prepared, read_arguments
from heedful.prompt import Instructions
from heedful.sampling import Sampling
from heedful.spans import Span, excerpt, find_substring, nearest

NEW_TOKENS = 2048
GATHER_SECONDS = 0.01
OURS = ("max_tokens", "temperature", "top_p", "top_k", "seed", "stop_seqs")
# What Inspect itself acts on.
INSPECTS = (
    "max_retries",
    "timeout",
    "attempt_timeout",
    "stream_idle_timeout",
    "max_connections",
    "adaptive_connections",
    "system_message",
    "max_tool_output",
)


@dataclass(eq=False)
class Waiting:
    """A request on its way: its job, and then its result or what went wrong."""

    job: Job
    result: Result | None = None
    error: Exception | None = None

    @property
    def is_done(self) -> bool:
        """Whether it was answered, or could not be."""
        return self.result is not None or self.error is not None


class HeedfulAPI(ModelAPI):  # type: ignore[misc]
    """Model arguments: `method`, `instructions`, `unmarked`, `device`, `dtype`, `batch_size`; others are refused."""

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),  # noqa: B008 (Inspect's own default)
        **model_args: Any,
    ) -> None:
        super().__init__(model_name, base_url, api_key, [], config)
        if base_url is not None or api_key is not None:
            raise OptionError("heedful runs the model itself: it takes neither a base URL nor an API key")
        given = read_arguments(model_args, "Inspect", ("batch_size",))
        self.batch_size = whole("batch_size", given.get("batch_size", 16), low=1)
        self.lm, self.asking = prepared({**given, "model": model_name})
        self._waiting: list[Waiting] = []
        self._lock = anyio.Lock()

    def max_connections(self) -> int:
        """As many requests at once as there are answers at a time."""
        return self.batch_size

    def max_tokens(self) -> int:
        """Where the task says nothing: what Inspect's own local providers take."""
        return NEW_TOKENS

    async def generate(
        self, input: list[ChatMessage], tools: list[ToolInfo], tool_choice: ToolChoice, config: GenerateConfig
    ) -> ModelOutput:
        """The answer to `input`. Raises a `HeedfulError` for whatever cannot be done, as `LM.generate` does."""
        if tools or any(getattr(message, "tool_calls", None) for message in input):
            raise OptionError("heedful calls no tools: take a task without them")
        wanted = config.max_tokens or NEW_TOKENS
        job = self.asking.job(self.lm, _request(input, wanted, config))
        result = await self._answered(Waiting(job))
        return _output(self.model_name, result, is_cut=(job.max_new_tokens or wanted) < wanted)

    async def _answered(self, mine: Waiting) -> Result:
        """The result of one request. Whoever comes first answers all who wait, in a thread."""
        self._waiting.append(mine)
        try:
            await anyio.sleep(GATHER_SECONDS)
            async with self._lock:
                if not mine.is_done:
                    batch = self._waiting[: self.batch_size]
                    await anyio.to_thread.run_sync(self._answer, batch)
        finally:
            self._waiting = [one for one in self._waiting if one is not mine and not one.is_done]
        if mine.error is not None:
            raise mine.error
        assert mine.result is not None
        return mine.result

    def _answer(self, batch: Sequence[Waiting]) -> None:
        """Answers the batch; one whose numbers overflow ends no other, any other error is everyone's."""
        try:
            for index, found in self.lm.results([one.job for one in batch], num_slots=self.batch_size):
                if isinstance(found, HeedfulError):
                    batch[index].error = found
                else:
                    batch[index].result = found
        except Exception as error:  # whoever has no answer yet learns of it
            for one in batch:
                if not one.is_done:
                    one.error = error


def _request(messages: Sequence[ChatMessage], wanted: int, config: GenerateConfig) -> Request:
    given = config.model_dump(exclude_none=True)
    if given.pop("cache", False):
        raise OptionError("Inspect's cache of answers does not know the method: leave out cache")
    unknown = [name for name in given if name not in (*OURS, *INSPECTS)]
    if unknown:
        raise OptionError(f"heedful has no generation option {unknown[0]!r}; it has {', '.join(OURS)}")
    chat = [{"role": message.role, "content": _content(message)} for message in messages]
    filters = {name: given[name] for name in ("top_k", "top_p", "seed") if name in given}
    sampling = Sampling(given.get("temperature", 0.0), **filters)
    return Request(chat, lambda: _marked(messages), wanted, sampling, given.get("stop_seqs", ()))


def _content(message: ChatMessage) -> Any:
    """The message's content as chat templates have it; a part that is no text is refused where it is read."""
    if isinstance(message.content, str):
        return message.content
    return [{"type": part.type, "text": getattr(part, "text", None)} for part in message.content]


def _marked(messages: Sequence[ChatMessage]) -> Instructions:
    """What the messages' metadata marks; None where there is none, so that tags alone count."""
    spans = [span for index, message in enumerate(messages) for span in _spans(index, message)]
    return spans or None


def _spans(index: int, message: ChatMessage) -> list[Span]:
    """Of `metadata={"heedful": {"instructions": […]}}`: exact texts of this message, and ranges in it."""
    metadata = (getattr(message, "metadata", None) or {}).get("heedful")
    if metadata is None:
        return []
    if not isinstance(metadata, dict) or list(metadata) != ["instructions"]:
        raise DataError(f'metadata are {{"heedful": {{"instructions": […]}}}}, not {excerpt(repr(metadata))}')
    marks = metadata["instructions"]
    text = (
        message.content
        if isinstance(message.content, str)
        else "".join(part["text"] or "" for part in _content(message))
    )
    found: list[Span] = []
    for mark in [marks] if isinstance(marks, str) else marks:
        if isinstance(mark, str):
            found += _places(text, mark, index)
        elif isinstance(mark, list | tuple) and len(mark) == 2:
            found.append(Span(mark[0], mark[1], message=index))
        else:
            raise DataError(f"an instruction in metadata is text or [start, stop], not {excerpt(repr(mark))}")
    return found


def _places(text: str, mark: str, index: int) -> list[Span]:
    places = find_substring(text, mark)
    if not places:
        raise SpanError(f"message {index} lacks {excerpt(mark)!r}; the closest is {excerpt(nearest(text, mark))!r}")
    return [Span(start, end, message=index) for start, end in places]


def _output(model_name: str, result: Result, *, is_cut: bool) -> ModelOutput:
    """The result in Inspect's words; `is_cut`: the context left less than was asked for."""
    stats = result.stats
    length = "model_length" if is_cut else "max_tokens"
    message = ChatMessageAssistant(content=result.text, source="generate")
    choice = ChatCompletionChoice(message=message, stop_reason=length if result.finish_reason == "length" else "stop")
    usage = ModelUsage(
        input_tokens=stats.prompt_tokens,
        output_tokens=stats.generated_tokens,
        total_tokens=stats.prompt_tokens + stats.generated_tokens,
    )
    counts = ("forward_passes", "gated", "accepted", "rejected", "changed")
    heedful = {"method": result.trace.method, **{name: getattr(stats, name) for name in counts}}
    return ModelOutput(model=model_name, choices=[choice], usage=usage, metadata={"heedful": heedful})
