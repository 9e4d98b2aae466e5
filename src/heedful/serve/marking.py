"""Which tokens of a request are heeded, and by which method: its tags, its `heedful` field, the server's default."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from heedful.errors import OptionError, SpanError
from heedful.generate import LM
from heedful.methods import from_settings, method_by_name, read_spec
from heedful.prompt import EncodedPrompt, Instructions, Messages
from heedful.recipe import Method
from heedful.serve.schemas import Heedful
from heedful.steerers import Pasta


@dataclass(frozen=True)
class Marked:
    """A prompt as tokens, and how it is steered; `method` None where nothing is."""

    prompt: EncodedPrompt
    method: Method | None


@dataclass(frozen=True)
class Default:
    """A method by name and options, so that a request may change its strength; profiles are read once, at start."""

    name: str
    options: Mapping[str, Any]

    @classmethod
    def of(cls, spec: str) -> Default:
        """Reads what the operator wrote. Raises `OptionError` where it is no method."""
        name, options = read_spec(from_settings(spec))
        method = method_by_name(name, options)
        if "profile" in options and isinstance(method, Pasta):
            options = {key: value for key, value in options.items() if key != "profile"}
            options["heads"] = dict(method.heads)
        return cls(name, options)

    def method(self, asked: Heedful | None) -> Method | None:
        """The method of a request. Raises `OptionError` for what is no method, or would read a file."""
        name, options = (self.name, dict(self.options))
        if asked is not None and asked.method is not None:
            name, options = read_spec(asked.method)
            if "profile" in options:
                raise OptionError("a request cannot name a profile: no file is read for it; pass heads={layer: [head]}")
        if asked is not None:
            more = {"strength": asked.strength, "threshold": asked.threshold}
            options |= {key: value for key, value in more.items() if value is not None}
        try:
            return method_by_name(name, options)
        except (TypeError, ValueError) as error:
            if isinstance(error, OptionError):
                raise
            raise OptionError(f"{name} cannot be made of these options: {error}") from error


def mark(lm: LM, messages: Messages, asked: Heedful | None, default: Default, heed: str) -> Marked:
    """Encodes a prompt and settles its method: none where nothing is marked and no steering was asked for.

    `messages` text is a plain prompt without a template. Raises the `HeedfulError` that says what is wrong.
    """
    is_raw = isinstance(messages, str)
    instructions: Instructions = asked.instructions if asked is not None else None
    if instructions is None and heed == "system" and _has_system(messages):
        instructions = "system"
    method = default.method(asked)
    encoded = lm.encode(messages, instructions, raw=is_raw)
    if encoded.span:
        return Marked(encoded, method)
    if asked is not None and asked.steers and method is not None:
        raise SpanError(
            "the request asks for steering, but nothing in it is marked: wrap what is to be heeded in <heed>…</heed>, "
            'name it in heedful.instructions, or leave "method", "strength" and "threshold" out'
        )
    return Marked(encoded, None)


def _has_system(messages: Messages) -> bool:
    return not isinstance(messages, str) and any(
        message["role"] == "system" and str(message["content"]).strip() for message in messages
    )


def as_messages(messages: Sequence[Any]) -> list[dict[str, str]]:
    """Role and text of each message; a developer's is a system message, which is what chat templates know."""
    return [{"role": "system" if m.role == "developer" else m.role, "content": m.text} for m in messages]


def with_seed(sampling: Any, choice: int) -> Any:
    """The sampling of a request's choice number `choice`: a seed of its own for each."""
    return sampling if sampling.seed is None else replace(sampling, seed=(sampling.seed + choice) % 2**63)
