"""What a request may say, in OpenAI's words and a `heedful` field. What is not supported is refused, never ignored."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

# Fields of OpenAI's API that are not supported, with the values that ask for nothing.
NOTHING: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0, 0.0),
    "function_call": ("none",),
    "functions": ([],),
    "logit_bias": ({},),
    "metadata": ({},),
    "modalities": (["text"],),
    "moderation": (),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "presence_penalty": (0, 0.0),
    "prompt_cache_key": (),
    "prompt_cache_retention": (),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "safety_identifier": (),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": (),
    "web_search_options": (),
}
IN_MESSAGES: dict[str, tuple[Any, ...]] = {
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "name": (),
    "refusal": (),
    "tool_call_id": (),
    "tool_calls": ([],),
}
Texts = Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1, max_length=64)]
MAX_FIELDS = 64  # of one object: no object has as many, and each unknown one is an error of its own
WAYS = r"^(system|user|assistant|auto(:user)?(:(0?\.[0-9]{1,6}|1(\.0)?))?)$"


def _way(value: str) -> str:
    if re.fullmatch(WAYS, value) is None:
        known = "'system', 'user', 'assistant', 'auto', 'auto:user', 'auto:0.8', 'auto:user:0.8' or a list of texts"
        raise _wrong(f"Input should be {known}")
    return value


Way = Annotated[str, AfterValidator(_way), WithJsonSchema({"type": "string", "pattern": WAYS})]
StopText = Annotated[str, Field(min_length=1, max_length=256)]


def _without_nothing(values: Any, known: dict[str, tuple[Any, ...]]) -> Any:
    """`values` without the fields that ask for nothing; null asks for nothing anywhere."""
    if not isinstance(values, dict):
        return values
    kept = {}
    for key, value in values.items():
        if value is None:
            continue
        if key not in known:
            kept[key] = value
        elif not any(type(value) is type(nothing) and value == nothing for nothing in known[key]):
            raise PydanticCustomError("unsupported", "{field} is not supported", {"field": key})
    return kept


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _few(cls, values: Any) -> Any:
        if isinstance(values, dict) and len(values) > MAX_FIELDS:
            raise _wrong(f"{len(values)} fields, unknown ones among them; at most {MAX_FIELDS} are read")
        return values


class _Optional(_Strict):
    """A model whose fields may be null, which is the same as absent."""

    @model_validator(mode="before")
    @classmethod
    def _drop(cls, values: Any) -> Any:
        return _without_nothing(values, {})


class Heedful(_Optional):
    """How a request is steered; all of it may be left out."""

    instructions: Texts | Way | None = Field(
        None,
        description="Exact texts to heed, wherever they stand; a role whose messages are heeded whole; or `auto`, "
        "which finds them (`auto:user` in the user's messages only, `auto:0.8` with another least score).",
    )
    method: str | None = Field(
        None, max_length=1000, description="A method and its options, as in `directer` or `spotlight:target=0.3`."
    )
    strength: float | None = Field(None, description="How strongly to steer.")
    threshold: float | None = Field(None, description="How plausible a steered token must be, for gated methods.")
    trace: bool = Field(False, description="Tell what was decided at each token.")

    @property
    def steers(self) -> bool:
        """Whether it asks for steering in so many words."""
        return not (self.method is None and self.strength is None and self.threshold is None)


class TextPart(_Strict):
    """A part of a message."""

    type: Literal["text"]
    text: str


class Message(_Strict):
    """One message. Text between `<heed>` and `</heed>` is heeded; the tags are taken out."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(max_length=256, fail_fast=True)]

    @model_validator(mode="before")
    @classmethod
    def _drop(cls, values: Any) -> Any:
        return _without_nothing(values, IN_MESSAGES)

    @property
    def text(self) -> str:
        """The content as one text."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class StreamOptions(_Optional):
    """`include_usage`: a last chunk that counts tokens."""

    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class _Request(_Strict):
    model: str = Field(max_length=1000, description="As `GET /v1/models` names it.")
    temperature: float = Field(0.0, ge=0, le=2, description="0, the default, is greedy.")
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int | None = Field(None, ge=0, lt=2**63, description="The same seed gives the same text, whoever else asks.")
    stop: StopText | Annotated[list[StopText], Field(max_length=16)] | None = None
    n: int = Field(1, ge=1, le=128)
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = Field(None, max_length=256, description="Users take turns while requests wait.")
    heedful: Heedful | None = None

    @model_validator(mode="before")
    @classmethod
    def _drop(cls, values: Any) -> Any:
        return _without_nothing(values, NOTHING)

    @model_validator(mode="after")
    def _agree(self) -> _Request:
        if self.stream_options is not None and not self.stream:
            raise _wrong("stream_options needs stream: true")
        if self.wants_trace and self.n > 1:
            raise _wrong(f"heedful.trace needs n: 1; got {self.n}")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def wants_trace(self) -> bool:
        """Whether the answer tells what was decided."""
        return self.heedful is not None and self.heedful.trace

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with token counts."""
        return self.stream_options is not None and self.stream_options.include_usage


class ChatRequest(_Request):
    """A body of `POST /v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1, max_length=4096, fail_fast=True)
    max_tokens: int | None = Field(None, ge=1, le=2**31)
    max_completion_tokens: int | None = Field(None, ge=1, le=2**31)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=20)

    @model_validator(mode="after")
    def _agree_too(self) -> ChatRequest:
        both = (self.max_tokens, self.max_completion_tokens)
        if None not in both and both[0] != both[1]:
            raise _wrong(f"max_tokens is {both[0]} and max_completion_tokens {both[1]}; give one of them")
        if self.top_logprobs is not None and not self.logprobs:
            raise _wrong("top_logprobs needs logprobs: true")
        return self

    @property
    def limit(self) -> int | None:
        """How many tokens are asked for at most."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def num_top(self) -> int | None:
        """How many likeliest tokens to tell beside each; None where no log-probabilities are asked for."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(_Request):
    """A body of `POST /v1/completions`: text is continued as it stands, without a chat template."""

    prompt: str | Annotated[list[str], Field(min_length=1, max_length=128)]
    max_tokens: int = Field(16, ge=1, le=2**31)
    logprobs: int | None = Field(None, ge=0, le=5)

    @model_validator(mode="after")
    def _agree_too(self) -> CompletionRequest:
        if self.wants_trace and len(self.prompts) > 1:
            raise _wrong(f"heedful.trace needs one prompt; got {len(self.prompts)}")
        return self

    @property
    def prompts(self) -> list[str]:
        """The prompts."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt

    @property
    def limit(self) -> int | None:
        """How many tokens are asked for at most."""
        return self.max_tokens

    @property
    def num_top(self) -> int | None:
        """How many likeliest tokens to tell beside each; None where no log-probabilities are asked for."""
        return self.logprobs


def _wrong(message: str) -> PydanticCustomError:
    return PydanticCustomError("value_error", message)
