"""What a request says about its steering, as vLLM carries it: `extra_args={"heedful": {…}}`. Knows no vLLM.

Over HTTP the same object travels as JSON text, `vllm_xargs={"heedful": "{…}"}`, because vLLM lets only plain values
through there.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from heedful.checks import whole
from heedful.errors import OptionError, SpanError
from heedful.methods import method_by_name, read_spec
from heedful.recipe import Method, Recipe, recipe_of
from heedful.spans import TokenSpan

NAME = "heedful"
TRAIL = "heedful_trail"  # beside it, in one process: under which name the decisions are noted
MAX_TOKENS = 1 << 20  # of a prompt: what is asked must not fill memory before vLLM has seen the prompt
FIELDS = ("spans", "prompt_tokens", "rank_at", "digest", "salted", "method", "strength", "threshold")


@dataclass(frozen=True)
class Asked:
    """How one request is steered: which tokens of a prompt of `prompt_tokens`, and by which method.

    `digest`: of the prompt's tokens, where the sender has counted in them. `is_salted`: whether the sender says that
    the prompt has a `cache_salt` of its own, so that no other request reads what is stored for this one.
    """

    span: TokenSpan
    prompt_tokens: int
    method: Method
    recipe: Recipe
    digest: int | None = None
    is_salted: bool = False

    @property
    def is_stored(self) -> bool:
        """Whether steered keys stay in the cache: static steering's do."""
        return self.recipe.gate is None

    def misfit(self, prompt: Sequence[int]) -> str:
        """Why the spans do not fit the prompt that vLLM has read; empty where they do."""
        if self.prompt_tokens != len(prompt):
            return f"{NAME}.prompt_tokens is {self.prompt_tokens}, but the prompt has {len(prompt)} tokens"
        if self.digest is not None and self.digest != digest(prompt):
            return (
                f"{NAME}.digest: vLLM renders the prompt into other tokens than were counted, so what is marked cannot "
                "be located; send text parts, tools and template options only as the chat template takes them"
            )
        return ""


def digest(token_ids: Sequence[int]) -> int:
    """A number that tells one prompt from another."""
    return zlib.crc32(",".join(map(str, token_ids)).encode())


def spelled(span: TokenSpan, prompt_tokens: int, method: Method) -> dict[str, Any]:
    """The object that `read` reads back."""
    return {
        "spans": [list(run) for run in _runs(span)],
        "prompt_tokens": prompt_tokens,
        "method": _method_fields(method),
        **({} if span.rank_at is None else {"rank_at": span.rank_at}),
    }


def _runs(span: TokenSpan) -> list[tuple[int, int, float]]:
    runs: list[tuple[int, int, float]] = []
    for position, weight in zip(span.positions, span.weights, strict=True):
        if runs and runs[-1][1] == position and runs[-1][2] == weight:
            runs[-1] = (runs[-1][0], position + 1, weight)
        else:
            runs.append((position, position + 1, weight))
    return runs


def _method_fields(method: Method) -> dict[str, Any]:
    """Name and options as `method_by_name` takes them."""
    fields = {key: value for key, value in method.describe().items() if value is not None}
    gate = fields.pop("gate", None)
    if gate is not None:
        if gate.pop("strict", False):
            raise OptionError("a strict gate cannot be sent to vLLM; Directer(compat='released') can")
        fields = {**fields, **gate, "name": "static-gated" if fields["name"] == "key-scaling" else fields["name"]}
    if fields.get("level") == 0:
        del fields["level"]
    return fields


def read(extra_args: Mapping[str, Any] | None) -> Asked | None:
    """What a request's `extra_args` ask for, None where nothing. Raises `HeedfulError`s that name the field."""
    given = (extra_args or {}).get(NAME)
    if given is None:
        return None
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except (ValueError, RecursionError) as error:
            raise OptionError(f"{NAME} is no JSON: {error}") from error
    if not isinstance(given, Mapping):
        raise OptionError(f"{NAME} must be an object with {', '.join(FIELDS)}; got {given!r:.80}")
    unknown = [key for key in given if key not in FIELDS]
    if unknown:
        raise OptionError(f"{NAME}.{unknown[0]} is unknown; known: {', '.join(FIELDS)}")
    method = _method(given)
    if method is None:
        return None
    if "prompt_tokens" not in given:
        raise OptionError(f"{NAME}.prompt_tokens is missing: how many tokens the prompt has")
    tokens = whole(f"{NAME}.prompt_tokens", given["prompt_tokens"], low=1, high=MAX_TOKENS)
    recipe = _steerable(method)
    span = _span(given.get("spans"), tokens)
    rank_at = given.get("rank_at")
    if rank_at is not None:
        whole(f"{NAME}.rank_at", rank_at, low=span.positions[-1] + 1, high=tokens)
    seen, is_salted = given.get("digest"), given.get("salted", False)
    if seen is not None:
        whole(f"{NAME}.digest", seen, low=0)
    if not isinstance(is_salted, bool):
        raise OptionError(f"{NAME}.salted must be true or false; got {is_salted!r:.80}")
    span = replace(span, rank_at=rank_at).moved(*recipe.span(span.positions, span.weights, tokens))
    return Asked(span, tokens, method, recipe, seen, is_salted)


def _method(given: Mapping[str, Any]) -> Method | None:
    asked = given.get("method", "directer")
    if isinstance(asked, str):
        name, options = read_spec(asked)
    elif isinstance(asked, Mapping) and isinstance(asked.get("name"), str):
        name, options = asked["name"], {key: value for key, value in asked.items() if key != "name"}
    else:
        raise OptionError(f"{NAME}.method must be a name such as 'directer', or an object with one; got {asked!r:.80}")
    if "profile" in options:
        raise OptionError(f"{NAME}.method cannot name a profile: no file is read for a request")
    more = {key: given[key] for key in ("strength", "threshold") if given.get(key) is not None}
    try:
        return method_by_name(name, {**options, **more})
    except (TypeError, ValueError) as error:
        raise OptionError(f"{NAME}.method: {error}") from error


def _steerable(method: Method) -> Recipe:
    """The method's recipe. Raises `OptionError` with the reason where vLLM's kernels cannot carry it out."""
    recipe = recipe_of(method)
    assert recipe is not None
    name = method.describe().get("name", type(method).__name__)
    if recipe.steerer is None:
        raise OptionError(f"{NAME}.method: {name} reads a second prompt beside each, for which vLLM has no place")
    if recipe.steerer.stage != "keys":
        raise OptionError(
            f"{NAME}.method: {name} adds to attention scores, and vLLM's kernels take no bias; "
            "choose directer, static or static-gated"
        )
    return recipe


def _span(given: Any, prompt_tokens: int) -> TokenSpan:
    """The span of `[[start, end], …]` or `[[start, end, weight], …]`, half-open and rising."""
    where = f"{NAME}.spans"
    if not isinstance(given, (list, tuple)) or not given:
        raise SpanError(f"{where} must be a list of [start, end) token ranges, at least one; got {given!r:.80}")
    if len(given) > prompt_tokens:
        raise SpanError(f"{where} are {len(given)} ranges over {prompt_tokens} tokens: some must overlap")
    weights: dict[int, float] = {}
    for run in given:
        if not isinstance(run, (list, tuple)) or len(run) not in (2, 3):
            raise SpanError(f"{where} holds {run!r:.80}, which is no [start, end] or [start, end, weight]")
        start, end = whole(where, run[0], low=0), whole(where, run[1], low=0)
        if start >= end:
            raise SpanError(f"{where} holds the empty range {start}:{end}")
        if end > prompt_tokens:
            raise SpanError(f"{where}: {start}:{end} lies outside the prompt, which has {prompt_tokens} tokens")
        if any(at in weights for at in range(start, end)):
            raise SpanError(f"{where}: {start}:{end} overlaps another range")
        weights |= dict.fromkeys(range(start, end), run[2] if len(run) == 3 else 1.0)
    positions = tuple(sorted(weights))
    return TokenSpan(positions, tuple(weights[position] for position in positions))
