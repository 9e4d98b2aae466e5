"""Orders layers by how much steering them alone disturbs the attention blocks, from one forward of L + 1 probe rows.

Row 0 is raw, row ℓ + 1 is steered in layer ℓ alone; all hold one token of the prompt: its last, or,
in a conversation, the last that it had when the marked tokens came to be marked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch.nn.functional import cosine_similarity

from heedful.engine import Edit, Row
from heedful.recipe import Ranking, Recipe

Captured = Sequence[tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Measured:
    """Layers, most sensitive first, and each layer's score, by layer."""

    order: tuple[int, ...]
    scores: tuple[float, ...]


def probe_rows(recipe: Recipe, raw: Row, num_layers: int) -> list[Row]:
    """The L + 1 rows, `raw` and the same steered in each layer; only the raw one's logits are read."""
    assert recipe.steerer is not None
    edits = [Edit(recipe.steerer, frozenset([layer])) for layer in range(num_layers)]
    return [raw, *(replace(raw, edit=edit, wants_logits=False) for edit in edits)]


def measured(ranking: Ranking, captured: Captured) -> Measured:
    """The layers' order and scores, from input and output `(L + 1, hidden)` of each layer's attention block."""
    pre = torch.stack([pair[0].cpu() for pair in captured]).double()
    post = torch.stack([pair[1].cpu() for pair in captured]).double()
    scores = released_scores(pre, post) if ranking == "released" else sensitivity(pre, post)
    # A layer whose window hides the span scores 0 up to rounding: such ties go by layer index.
    order = torch.argsort(scores.round(decimals=6), descending=True, stable=True).tolist()
    return Measured(tuple(reversed(order)) if ranking == "reversed" else tuple(order), tuple(scores.tolist()))


def sensitivity(pre: torch.Tensor, post: torch.Tensor) -> torch.Tensor:
    """Sensitivity(ℓ) of the paper, `(L,)`, from `pre`, `post (L, L + 1, hidden)`; design §2."""
    cross = _distance(pre[:, :1], post[:, 1:]) + _distance(pre[:, 1:], post[:, :1])
    undisturbed = _distance(pre[:, :1], post[:, :1])
    return (cross - 2 * undisturbed).mean(dim=0)


def released_scores(pre: torch.Tensor, post: torch.Tensor) -> torch.Tensor:
    """What the authors' released code computes instead, `(L,)`: per layer, averaged over the probed ones; design §7."""
    cross = _distance(pre[:, :1], post[:, 1:]) + _distance(post[:, :1], pre[:, 1:])
    return cross.clamp_min(0).mean(dim=1)


def _distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return 1 - cosine_similarity(a, b, dim=-1)


def given(ranking: Ranking, num_layers: int) -> tuple[int, ...]:
    """A ranking that needs no measuring: a fixed list, or a random order."""
    if isinstance(ranking, str):
        seed = int(ranking.partition(":")[2] or 0)
        return tuple(torch.randperm(num_layers, generator=torch.Generator().manual_seed(seed)).tolist())
    return tuple(ranking)
