"""The units of a forward pass: rows, kept only when committed, and chunks of prompt, stored at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from heedful.recipe import Steerer


@dataclass(frozen=True, slots=True)
class Edit:
    """A steerer and the layers in which a row is steered."""

    steerer: Steerer
    layers: frozenset[int]


@dataclass(frozen=True, slots=True)
class Row:
    """One token computed at `position` of `slot`: it sees the slot's stored tokens at smaller positions, and itself."""

    token: int
    position: int
    slot: int
    edit: Edit | None = None
    wants_logits: bool = True


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive tokens of `slot`, stored by the forward that computes them, from position `start` on.

    `start` must be the slot's length. Rows of the same slot in the same forward see the chunk's tokens. `edit`: how
    its tokens are steered, None for raw. `num_logits`: for how many of its last tokens logits are asked.
    """

    slot: int
    tokens: Sequence[int]
    start: int
    num_logits: int = 0
    edit: Edit | None = None
