"""Steering of logits: the prompt is read twice, with and without its instruction, and the difference is widened.

The second reading is a slot of its own in the same batch. Attention stays raw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from heedful.checks import keep_finite
from heedful.gate import Plausibility, check_gate
from heedful.recipe import Recipe

STRONGEST = 1e6  # beyond, what it multiplies could overflow float32


@dataclass(frozen=True)
class ContextAware:
    """Context-aware decoding: `(1 + γ) · logits - γ · logits_without` the instruction's tokens.

    `strength` is γ ≥ 0; 0 is plain decoding. The same as classifier-free guidance on the prompt with scale 1 + γ.
    With a gate, a token that it makes likeliest is taken only where it is plausible. Sources: context-aware decoding,
    NAACL 2024, arXiv 2305.14739 (γ = 0.5); classifier-free guidance for language models, arXiv 2306.17806 (scale
    1.5). Raises `OptionError` where γ is not a number from 0 to 1e6.
    """

    strength: float = 0.5
    gate: Plausibility | None = None

    def __post_init__(self) -> None:
        keep_finite(self, "strength", high=STRONGEST)
        check_gate(self.gate)

    def hide(self, token_ids: Sequence[int], positions: Sequence[int], neutral_id: int) -> tuple[int, ...]:
        """The prompt with the instruction's tokens taken out; where it is nothing else, one neutral token."""
        hidden = set(positions)
        return tuple(token for at, token in enumerate(token_ids) if at not in hidden) or (neutral_id,)

    def combine(self, logits: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """Steered logits `(vocab,)`."""
        return logits + self.strength * (logits - hidden)

    def recipe(self) -> Recipe:
        """As published, or gated where a gate is given."""
        return Recipe(contrast=self, gate=self.gate)

    def describe(self) -> dict[str, Any]:
        """Name and settings, as JSON values."""
        return {"name": "context-aware", **asdict(self)}


@dataclass(frozen=True)
class Anchoring:
    """Selective prompt anchoring: `ω · logits + (1 - ω) · logits_masked`, the instruction's tokens masked in place.

    `strength` is ω ≥ 1; 1 is plain decoding. With a gate, a token that it makes likeliest is taken only where it is
    plausible. Source: selective prompt anchoring, ICML 2025, arXiv 2408.09121. Raises `OptionError` where ω is not a
    number from 1 to 1e6.
    """

    strength: float = 1.5
    gate: Plausibility | None = None

    def __post_init__(self) -> None:
        keep_finite(self, "strength", low=1.0, high=STRONGEST)
        check_gate(self.gate)

    def hide(self, token_ids: Sequence[int], positions: Sequence[int], neutral_id: int) -> tuple[int, ...]:
        """The prompt with a neutral token in the place of each of the instruction's."""
        hidden = set(positions)
        return tuple(neutral_id if at in hidden else token for at, token in enumerate(token_ids))

    def combine(self, logits: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """Steered logits `(vocab,)`."""
        return logits + (self.strength - 1.0) * (logits - hidden)

    def recipe(self) -> Recipe:
        """As published, or gated where a gate is given."""
        return Recipe(contrast=self, gate=self.gate)

    def describe(self) -> dict[str, Any]:
        """Name and settings, as JSON values."""
        return {"name": "anchoring", **asdict(self)}
