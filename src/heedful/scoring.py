"""What the raw model thinks of an answer that is already there: one forward, nothing generated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from heedful.engine import Chunk, Engine

SCORED_TOKENS = 512


@dataclass(frozen=True)
class Score:
    """For each token of the answer: its log-probability under the raw model, and the raw model's own argmax there."""

    log_probs: tuple[float, ...]
    likeliest: tuple[int, ...]

    @property
    def perplexity(self) -> float:
        """exp of the mean negative log-probability; infinite where that is too large for a float."""
        try:
            return math.exp(-sum(self.log_probs) / len(self.log_probs))
        except OverflowError:
            return math.inf


@torch.inference_mode()
def score(engine: Engine, prompt: Sequence[int], answer: Sequence[int]) -> Score:
    """Scores `answer` (at least one token) after `prompt`, in pieces of 512 tokens."""
    tokens = [*prompt, *answer[:-1]]
    slots = engine.slots(1, len(tokens))
    log_probs: list[float] = []
    likeliest: list[int] = []
    for start in range(0, len(tokens), SCORED_TOKENS):
        piece = tokens[start : start + SCORED_TOKENS]
        wanted = min(len(piece), start + len(piece) - len(prompt) + 1)
        result = engine.forward(slots, [], [Chunk(0, piece, start, num_logits=max(0, wanted))])
        if wanted > 0:
            logits = result.logits.float()
            targets = torch.tensor(answer[len(likeliest) : len(likeliest) + wanted], device=logits.device)
            found = logits.gather(-1, targets[:, None])[:, 0] - logits.logsumexp(-1)
            log_probs += found.tolist()
            likeliest += logits.argmax(-1).tolist()
    return Score(tuple(log_probs), tuple(likeliest))
