"""Presence, frequency and repetition penalties, on raw and steered logits alike.

vLLM's V1 runner applies them behind its logits processors, where it is too late to steer: so a steered request's are
applied here. Its V2 runner applies them before, to the raw logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch


@dataclass(eq=False)
class Penalties:
    """One request's. `output` is the list of what it has generated so far."""

    presence: float
    frequency: float
    repetition: float
    prompt: Sequence[int]
    output: Sequence[int]
    _counts: torch.Tensor = field(default_factory=lambda: torch.zeros(0))
    _is_in_prompt: torch.Tensor = field(default_factory=lambda: torch.zeros(0))
    _num_counted: int = 0

    @property
    def is_idle(self) -> bool:
        """Whether they change nothing."""
        return (self.presence, self.frequency, self.repetition) == (0.0, 0.0, 1.0)

    def apply(self, logits: torch.Tensor) -> None:
        """Changes `logits (..., vocab)` in place as vLLM does: repetition first."""
        self._count(logits)
        if self.repetition != 1.0:
            factors = torch.where(self._is_in_prompt | (self._counts > 0), self.repetition, 1.0)
            logits.copy_(torch.where(logits > 0, logits / factors, logits * factors))
        logits -= self.frequency * self._counts + self.presence * (self._counts > 0)

    def _count(self, logits: torch.Tensor) -> None:
        """Takes in what has been generated since."""
        if not len(self._counts):
            self._counts = torch.zeros(logits.shape[-1], device=logits.device)
            self._is_in_prompt = torch.zeros_like(self._counts, dtype=torch.bool)
            self._is_in_prompt[list(self.prompt)] = True
        new = self.output[self._num_counted :]
        if new:
            self._counts += torch.bincount(torch.tensor(new), minlength=len(self._counts)).to(self._counts)
            self._num_counted += len(new)
