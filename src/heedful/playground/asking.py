"""Runs what is asked for on the server's engine: one prompt, one to four methods at once, columns as they grow."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from heedful.errors import OptionError, SpanError
from heedful.methods import GATED, read_spec
from heedful.playground.state import MOST_TOKENS, Column, Inputs, Told
from heedful.prompt import EncodedPrompt
from heedful.recipe import Method, recipe_of
from heedful.sampling import Sampling
from heedful.serve.choice import Choice, Piece
from heedful.serve.generation import Generation
from heedful.serve.protocol import Settings, TokenStream
from heedful.serve.schemas import Heedful
from heedful.serve.service import Service

NUM_ALTERNATIVES = 5
SECONDS_BETWEEN = 0.2  # looks: a person reads no faster, and each look is sent whole
WITH_STRENGTH = ("directer", "static")  # whose strength is the factor of keys that the slider means
WITH_THRESHOLD = "directer"


@dataclass
class Growing:
    """A column while it is written. `layers`: those that the method may steer, None for all."""

    method: str
    choice: Choice
    is_checked: bool
    layers: tuple[int, ...] | None
    num_layers: int
    tokens: list[Told] = field(default_factory=list)
    order: tuple[int, ...] = ()
    sensitivity: tuple[float, ...] = ()

    def take(self, piece: Piece) -> None:
        """Adds a token."""
        token, step = piece.token, piece.step
        self.order = tuple(at for at in token.ranking if self.layers is None or at in self.layers)
        self.sensitivity = token.sensitivity
        others = [
            (self._spelled(one.token_id), _rounded(one.p_raw), _rounded(one.p_steered)) for one in token.alternatives
        ]
        ids = [one.token_id for one in token.alternatives]
        self.tokens.append(
            Told(
                text=piece.text,
                decision=step.decision,
                layers=step.layers,
                trials=step.trials,
                changed=step.changed,
                others=tuple(others),
                taken=ids.index(step.token_id) if step.token_id in ids else 0,
            )
        )

    def shown(self) -> Column:
        """The column so far."""
        reason = self.choice.finish_reason
        return Column(
            method=self.method,
            is_checked=self.is_checked,
            num_layers=self.num_layers,
            order=self.order,
            sensitivity=self.sensitivity,
            tokens=tuple(self.tokens),
            seconds=self.choice.stats.seconds,
            finish_reason=None if reason == "error" else reason,
        )

    def _spelled(self, token_id: int) -> str:
        text: str = self.choice.tokenizer.decode([token_id])
        return text


def _rounded(p: float | None) -> float | None:
    return None if p is None else round(p, 4)


def method_of(service: Service, spec: str, inputs: Inputs) -> Method | None:
    """The method that `spec` names, with the sliders' settings where it has such and says nothing of its own.

    The server's own method may have been made of a profile; no file is read for any other. Raises `OptionError`.
    """
    name, options = read_spec(spec)
    is_default = spec == service.config.method
    wants_strength = name.removesuffix(GATED) in WITH_STRENGTH and "strength" not in options
    wants_threshold = (name == WITH_THRESHOLD or name.endswith(GATED)) and "threshold" not in options
    asked = Heedful(
        instructions=None,
        method=None if is_default else spec,
        strength=inputs.strength if wants_strength else None,
        threshold=inputs.threshold if wants_threshold else None,
        trace=False,
    )
    return service.default.method(asked)


def check_length(service: Service, inputs: Inputs) -> None:
    """Raises `OptionError` for longer answers than the server gives."""
    most = min(MOST_TOKENS, service.config.max_tokens)
    if inputs.max_tokens > most:
        raise OptionError(f"{inputs.max_tokens} tokens are asked for; this server generates at most {most}")


async def ask(service: Service, inputs: Inputs, owner: str) -> AsyncGenerator[tuple[Column, ...], None]:
    """The columns so far, again and again until all are finished; closing it frees their slots.

    Raises the `HeedfulError` that says why there can be no answer, or no more of it.
    """
    begun = time.monotonic()
    check_length(service, inputs)
    methods = [method_of(service, spec, inputs) for spec in inputs.methods]
    encoded = await service.encode(inputs.messages, len(methods), owner)
    if not encoded.span and any(method is not None for method in methods):
        raise SpanError(
            "nothing is marked, so there is nothing to steer: select text and press Heed selection, "
            "or choose no method but none"
        )
    streams = _submit(service, inputs, encoded, methods, owner)
    choices = [Choice(number, service.lm.tokenizer, (), False) for number in range(len(streams))]
    growing = [_growing(service, *pair) for pair in zip(inputs.methods, methods, choices, strict=True)]
    generation = Generation(choices, streams, service.config.seconds, service.metrics, begun)
    async with aclosing(generation.pieces()) as pieces, aclosing(_looks(pieces)) as looks:
        async for some in looks:
            for piece in some:
                growing[piece.index].take(piece)
            yield tuple(column.shown() for column in growing)


def _growing(service: Service, spec: str, method: Method | None, choice: Choice) -> Growing:
    recipe = recipe_of(method)
    is_checked = recipe is not None and recipe.gate is not None
    layers = None if recipe is None else recipe.layers
    return Growing(spec, choice, is_checked, layers, service.lm.shape.num_layers)


def _submit(
    service: Service, inputs: Inputs, encoded: EncodedPrompt, methods: Sequence[Method | None], owner: str
) -> list[TokenStream]:
    """All or none."""
    streams: list[TokenStream] = []
    try:
        for method in methods:
            settings = Settings(
                max_new_tokens=inputs.max_tokens,
                method=method,
                sampling=Sampling(inputs.temperature, seed=inputs.seed),
                num_alternatives=NUM_ALTERNATIVES,
                owner=owner,
            )
            streams.append(service.engine.submit(encoded.token_ids, encoded.span, settings))
    except Exception:
        for stream in streams:
            stream.cancel()
        raise
    service.metrics.prompt_tokens.inc(len(encoded.token_ids) * len(streams))
    return streams


async def _looks(pieces: AsyncGenerator[Piece, None]) -> AsyncGenerator[list[Piece], None]:
    """What came since the last look, at most every `SECONDS_BETWEEN`; nothing too, so that a leaving is noticed."""
    inbox: asyncio.Queue[Piece | None] = asyncio.Queue()

    async def listen() -> None:
        try:
            async for piece in pieces:
                inbox.put_nowait(piece)
        finally:
            inbox.put_nowait(None)

    listening = asyncio.ensure_future(listen())
    has_ended = False
    try:
        while not has_ended:
            await asyncio.wait({listening}, timeout=SECONDS_BETWEEN)
            some: list[Piece] = []
            while not inbox.empty():
                piece = inbox.get_nowait()
                has_ended |= piece is None
                some += [] if piece is None else [piece]
            yield some
        await listening
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)


def owner_of(scope: Any, session: str | None) -> str:
    """Who asks: the holder of the key, else the open page."""
    found: str | None = scope.get("heedful.owner")
    return found or f"page {session or ''}"
