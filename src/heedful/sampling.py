"""Turns logits into a token: greedy, or drawn with temperature, top-k, top-p and a seed of the request's own."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from heedful.checks import finite, whole


class Drawing(Protocol):
    """How tokens are chosen; `Sampling` is ours, `hf` has transformers'."""

    @property
    def is_greedy(self) -> bool:
        """Whether the token is simply the argmax."""

    def generator(self) -> torch.Generator:
        """Where a request's random numbers come from."""

    def filter(self, logits: torch.Tensor) -> torch.Tensor:
        """float32 `logits (vocab,)` with -inf where a token cannot be drawn."""


@dataclass(frozen=True)
class Sampling:
    """`temperature` 0 is greedy; `top_k` 0 and `top_p` 1 leave the distribution whole; `seed` None draws a fresh one.

    The filters act in the order that transformers' `generate` uses: temperature, top-k, top-p. Raises `OptionError`
    where a value lies outside its range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        finite("temperature", self.temperature)
        whole("top_k", self.top_k, low=0)
        finite("top_p", self.top_p, low_open=True, high=1.0)
        if self.seed is not None:
            whole("seed", self.seed, low=0)

    @property
    def is_greedy(self) -> bool:
        """Whether the token is simply the argmax."""
        return self.temperature < 1e-6  # below that, dividing float32 logits overflows

    def of(self, key: object) -> Sampling:
        """With random numbers of `key`'s own, the same in every run with this seed; without a seed, as it is."""
        if self.is_greedy or self.seed is None:
            return self
        return replace(self, seed=zlib.crc32(f"{self.seed} {key}".encode()))

    def generator(self) -> torch.Generator:
        """A source of random numbers that no other request shares."""
        source = torch.Generator()
        source.seed() if self.seed is None else source.manual_seed(self.seed)
        return source

    def filter(self, logits: torch.Tensor) -> torch.Tensor:
        """float32 `logits (vocab,)` after temperature, top-k and top-p; what is filtered out is -inf."""
        logits = (logits - logits.max()) / self.temperature
        if 0 < self.top_k < logits.shape[-1]:
            logits = logits.masked_fill(logits < logits.topk(self.top_k).values[-1], -torch.inf)
        if self.top_p < 1.0:
            ordered, order = logits.sort(descending=False)
            drop = ordered.softmax(-1).cumsum(-1) <= 1.0 - self.top_p
            drop[-1] = False
            logits = logits.masked_fill(drop.scatter(0, order, drop), -torch.inf)
        return logits


def draw(filtered: torch.Tensor, plausible: torch.Tensor | None, source: torch.Generator) -> int:
    """A token drawn from `filtered (vocab,)`, restricted to the mask `plausible (vocab,)` where one is given."""
    if plausible is not None:
        filtered = filtered.masked_fill(~plausible, -torch.inf)
    return int(torch.multinomial(filtered.softmax(-1).cpu(), 1, generator=source))
