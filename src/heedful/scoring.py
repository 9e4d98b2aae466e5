"""What the raw model thinks of an answer that is already there: one forward, nothing generated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from heedful.engine import Chunk, Engine
from heedful.recipe import Recipe
from heedful.trace import Step

SCORED_TOKENS = 512


@dataclass(frozen=True)
class Score:
    """For each token of the answer: its log-probability under the raw model, and the raw model's own argmax there."""

    log_probs: tuple[float, ...]
    likeliest: tuple[int, ...]

    @property
    def perplexity(self) -> float:
        """That of the answer, see `perplexity`."""
        return perplexity(self.log_probs)


def perplexity(log_probs: Sequence[float]) -> float:
    """exp of the mean negative log-probability; infinite where that is too large for a float."""
    try:
        return math.exp(-sum(log_probs) / len(log_probs))
    except OverflowError:
        return math.inf


def noted(steps: Sequence[Step], recipe: Recipe | None) -> tuple[float, ...] | None:
    """The raw log-probabilities that decoding itself took note of: equal to `score`'s, with no further forward.

    None where it could not: an ungated steerer makes no raw pass, and a probability below the smallest float is 0.
    """
    has_raw = recipe is None or recipe.gate is not None or recipe.contrast is not None
    if not has_raw or not all(step.p_raw for step in steps):
        return None
    return tuple(math.log(step.p_raw) for step in steps)


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
