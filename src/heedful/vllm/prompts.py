"""From messages to what vLLM's offline interface takes: prompt tokens, and parameters that say what to heed."""

from __future__ import annotations

import secrets
from typing import Any

from heedful.directer import Directer
from heedful.errors import SpanError
from heedful.prompt import EncodedPrompt, Instructions, Messages, encode
from heedful.recipe import Method, recipe_of
from heedful.vllm.arguments import NAME, digest, read, spelled


def tokens_prompt(
    tokenizer: Any, messages: Messages, instructions: Instructions = None, *, is_salted: bool = False
) -> dict[str, Any]:
    """The prompt for `LLM.generate`, without its tags: the tokens that `sampling_params` counts in.

    `is_salted`: no other prompt shares its cache, as static steering needs where prefix caching is on.
    """
    salt = {"cache_salt": secrets.token_hex(16)} if is_salted else {}
    return {"prompt_token_ids": list(encode(tokenizer, messages, instructions).token_ids), **salt}


def sampling_params(
    tokenizer: Any,
    messages: Messages,
    *,
    instructions: Instructions = None,
    method: Method | None = Directer(),  # noqa: B008 (frozen)
    **sampling: Any,
) -> Any:
    """`vllm.SamplingParams(**sampling)` that heed what `messages` mark, or `instructions` name.

    To be used with `tokens_prompt` of the same messages, or `LLM.chat` with the messages without tags. `method` None
    steers nothing. Raises `SpanError` where nothing is marked, `OptionError` for a method that vLLM cannot run.
    """
    from vllm import SamplingParams

    if method is None:
        return SamplingParams(**sampling)
    asked = extra_args(encode(tokenizer, messages, instructions), method)
    return SamplingParams(**{**sampling, "extra_args": {**(sampling.get("extra_args") or {}), **asked}})


def extra_args(encoded: EncodedPrompt, method: Method) -> dict[str, Any]:
    """The `extra_args` of a request for this prompt. Raises what `sampling_params` does."""
    if not encoded.span:
        raise SpanError(
            "nothing in the prompt is marked to be heeded: wrap it in <heed>…</heed>, name it in instructions, "
            "or choose no method"
        )
    asked = spelled(encoded.span, len(encoded.token_ids), method) | {"digest": digest(encoded.token_ids)}
    if is_stored(method):
        asked["salted"] = True  # vLLM's side holds the prompt to it
    read({NAME: asked})
    return {NAME: asked}


def is_stored(method: Method) -> bool:
    """Whether the method's steered keys stay in the cache, so that its prompt needs a `cache_salt` of its own."""
    recipe = recipe_of(method)
    return recipe is not None and recipe.gate is None
