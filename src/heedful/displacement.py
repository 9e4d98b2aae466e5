"""A method on other tokens than those that were marked: the control that shows whether the instruction matters."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from heedful.errors import OptionError
from heedful.recipe import Method, Recipe


@dataclass(frozen=True)
class Displaced:
    """`method` with its span moved: `place` is "random:SEED" (as many of the prompt's tokens that are not marked, drawn
    by chance, or all of them where there are fewer; one draw for each prompt and seed) or "shift:N" (N tokens later,
    earlier where negative).

    The prompt's last token is never drawn; tokens of the chat template are: positions do not tell them apart.

    Sources: the token ablation of Directer, arXiv 2603.06745; a shift by one is the released code's span error.
    Raises `OptionError` for any other `place`.
    """

    method: Method
    place: str

    def __post_init__(self) -> None:
        if not isinstance(self.place, str) or not re.fullmatch(r"random(:\d{1,18})?|shift:-?\d{1,6}", self.place):
            raise OptionError(f"span must be random, random:SEED or shift:N; got {self.place!r}")

    def recipe(self) -> Recipe:
        """The method's own recipe on the moved span."""
        return replace(self.method.recipe(), displace=self.positions)

    def positions(self, given: Sequence[int], num_tokens: int) -> tuple[int, ...]:
        """Where the span's tokens come to lie in a prompt of `num_tokens`, in the order of `given`, all different.

        As many as `given`, fewer where the prompt has fewer tokens to draw. Raises `OptionError` where it has none, or
        where a shift moves the span out of the prompt.
        """
        kind, _, number = self.place.partition(":")
        if kind == "shift":
            moved = [position + int(number) for position in given]
            if not all(0 <= position < num_tokens for position in moved):
                raise OptionError(f"span=shift:{number} moves the instruction out of the prompt")
            return tuple(moved)
        draw = random.Random(f"{int(number or 0)} {num_tokens} {list(given)}")
        others = sorted(set(range(num_tokens - 1)) - set(given))
        if not others:
            raise OptionError(f"span={self.place} has nothing to draw from: all of the prompt is marked")
        return tuple(sorted(draw.sample(others, min(len(given), len(others)))))

    def describe(self) -> dict[str, Any]:
        """The method's name and settings, and the place."""
        return {**self.method.describe(), "span": self.place}
