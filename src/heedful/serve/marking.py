"""Which tokens of a request are heeded, and by which method: its tags, its `heedful` field, the server's default."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from heedful.displacement import Displaced
from heedful.errors import OptionError, SpanError
from heedful.methods import from_settings, method_by_name, read_spec
from heedful.prompt import AUTO, EncodedPrompt, Instructions, Messages, is_auto
from heedful.recipe import Method, ModelShape, recipe_of
from heedful.serve.protocol import Encoder
from heedful.serve.schemas import Heedful
from heedful.steerers import Pasta


@dataclass(frozen=True)
class Marked:
    """A prompt as tokens, and how it is steered; `method` None where nothing is."""

    prompt: EncodedPrompt
    method: Method | None


@dataclass(frozen=True)
class Default:
    """A method by name and options, so that a request may change its strength; profiles are read once, at start.

    `profiled`: the model that the profile was made for.
    """

    name: str
    options: Mapping[str, Any]
    profiled: ModelShape | None = None

    @classmethod
    def of(cls, spec: str) -> Default:
        """Reads what the operator wrote. Raises `OptionError` where it is no method, or one that cannot be served."""
        name, options = read_spec(from_settings(spec))
        method = method_by_name(name, options)
        _refuse_pooled(method)
        inner = method.method if isinstance(method, Displaced) else method
        if "profile" not in options or not isinstance(inner, Pasta):
            return cls(name, options)
        kept = {key: value for key, value in options.items() if key != "profile"}
        return cls(name, {**kept, "heads": dict(inner.heads)}, inner.profiled)

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
            method = method_by_name(name, options)
        except (TypeError, ValueError) as error:
            if isinstance(error, OptionError):
                raise
            raise OptionError(f"{name} cannot be made of these options: {error}") from error
        _refuse_pooled(method)
        is_default = asked is None or asked.method is None
        return _profiled(method, self.profiled) if is_default else method


def _profiled(method: Method | None, model: ModelShape | None) -> Method | None:
    """`method`, which knows again what model its profile was made for."""
    if isinstance(method, Displaced):
        inner = _profiled(method.method, model)
        return method if inner is None else replace(method, method=inner)
    return replace(method, profiled=model) if isinstance(method, Pasta) else method


def _refuse_pooled(method: Method | None) -> None:
    """Raises `OptionError` for what must read a prompt in larger pieces than other streams could wait for."""
    recipe = recipe_of(method)
    if recipe is not None and recipe.steerer is not None and recipe.steerer.is_pooled and recipe.gate is None:
        raise OptionError(
            "pooled SpotLight reads a prompt in pieces that would hold up all other answers; "
            "ask for spotlight-gated:pooled=true, or leave pooled out"
        )


def mark(lm: Encoder, messages: Messages, asked: Heedful | None, default: Default, heed: str) -> Marked:
    """Encodes a prompt and settles its method: none where nothing is marked and no steering was asked for, or where
    the request asks for the instructions to be found and there are none.

    `messages` text is a plain prompt without a template. Raises the `HeedfulError` that says what is wrong.
    """
    is_raw = isinstance(messages, str)
    instructions: Instructions = asked.instructions if asked is not None else None
    if instructions is None:
        instructions = by_default(messages, heed)
    method = default.method(asked)
    encoded = lm.encode(messages, instructions, raw=is_raw)
    if encoded.span:
        return Marked(encoded, method)
    if asked is not None and asked.steers and method is not None and not is_auto(asked.instructions):
        raise SpanError(
            "the request asks for steering, but nothing in it is marked: wrap what is to be heeded in <heed>…</heed>, "
            'name it in heedful.instructions, or leave "method", "strength" and "threshold" out'
        )
    return Marked(encoded, None)


def by_default(messages: Messages, heed: str) -> Instructions:
    """What the server heeds in a request that names nothing; text between tags is found in any case."""
    if heed == "auto":
        return AUTO
    return "system" if heed == "system" and _has_system(messages) else None


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
