"""Slow references for the steerers: whole sequences, no cache, the full attention matrix edited by hand.

Nothing of Heedful is used. `Reference.logits(ids)` computes every token anew; an edit is a function of the full matrix
of scores `(heads, T, T)` and of the layer. Edits of stage "keys" act before the soft-cap, all others after the mask.
"""

import math
from collections.abc import Callable, Collection
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface

Edit = Callable[[torch.Tensor, int], None]


@dataclass
class Reference:
    model: Any
    before_cap: Edit = lambda scores, layer: None
    after_mask: Edit = lambda scores, layer: None
    repeated: tuple[int, ...] = ()  # positions whose keys and values are there twice

    @torch.no_grad()
    def logits(self, ids: list[int]) -> torch.Tensor:
        """The last token's logits (vocab,)."""
        AttentionInterface.register("by_hand", self._attention)
        with attention_of(self.model, "by_hand"):
            out = self.model(torch.tensor([ids]), use_cache=False, attention_mask=None)
        return out.logits[0, -1]

    def greedy(self, ids: list[int], new: int) -> list[int]:
        ids = list(ids)
        for _ in range(new):
            ids.append(int(self.logits(ids).argmax()))
        return ids[-new:]

    def _attention(self, module: Any, query: Any, key: Any, value: Any, mask: Any, **kwargs: Any) -> Any:
        q, k, v = query[0], key[0], value[0]
        heads, length, dim = q.shape
        group = heads // k.shape[0]
        k, v = k.repeat_interleave(group, 0), v.repeat_interleave(group, 0)
        scaling = kwargs.get("scaling")
        scores = q @ k.transpose(1, 2) * (dim**-0.5 if scaling is None else scaling)
        self.before_cap(scores, module.layer_idx)
        if kwargs.get("softcap") is not None:
            scores = torch.tanh(scores / kwargs["softcap"]) * kwargs["softcap"]
        row, column = torch.arange(length)[:, None], torch.arange(length)[None]
        window = kwargs.get("sliding_window") or length
        scores = scores.masked_fill((column > row) | (column <= row - window), -math.inf)
        self.after_mask(scores, module.layer_idx)
        scores, v = torch.cat([scores, scores[:, :, self.repeated]], -1), torch.cat([v, v[:, self.repeated]], 1)
        if kwargs.get("s_aux") is not None:
            sink = kwargs["s_aux"].view(heads, 1, 1).expand(heads, length, 1)
            weights = torch.cat([scores, sink], -1).softmax(-1)[..., :-1]
        else:
            weights = scores.softmax(-1)
        return (weights @ v).transpose(0, 1)[None], None


@contextmanager
def attention_of(model: Any, name: str) -> Any:
    before = model.config._attn_implementation
    model.config._attn_implementation_internal = name
    try:
        yield
    finally:
        model.config._attn_implementation_internal = before


def only_in(layers: Collection[int] | None, rows: Callable[[int], bool], edit: Callable[..., None]) -> Edit:
    """`edit(scores, row)` for each row of the matrix that `rows` names, in `layers`."""

    def each_row(scores: torch.Tensor, layer: int) -> None:
        if layers is None or layer in layers:
            for row in range(scores.shape[1]):
                if rows(row):
                    edit(scores, row, layer)

    return each_row


def key_scaling(span: Collection[int], strength: float) -> Callable[..., None]:
    def edit(scores: torch.Tensor, row: int, layer: int) -> None:
        for i in span:
            if i != row:
                scores[:, row, i] *= strength

    return edit


def instaboost(span: Collection[int], multiplier: float) -> Callable[..., None]:
    def edit(scores: torch.Tensor, row: int, layer: int) -> None:
        for i in span:
            scores[:, row, i] += math.log(multiplier)

    return edit


def pasta(span: Collection[int], prompt: int, heads: dict[int, list[int]], strength: float) -> Callable[..., None]:
    def edit(scores: torch.Tensor, row: int, layer: int) -> None:
        for head in heads.get(layer, ()):
            for i in range(prompt):
                if i not in span:
                    scores[head, row, i] += math.log(strength)

    return edit


def spotlight(span: Collection[int], target: float) -> Callable[..., None]:
    def edit(scores: torch.Tensor, row: int, layer: int) -> None:
        for head in range(scores.shape[0]):
            seen = [i for i in range(row + 1) if scores[head, row, i] > -math.inf]
            inside, rest = [i for i in seen if i in span], [i for i in seen if i not in span]
            if inside and rest:
                weights = scores[head, row, seen].double().softmax(-1)
                share = float(sum(w for w, i in zip(weights, seen, strict=True) if i in span))
                if share < target:
                    lift = math.log(target / (1 - target)) - math.log(share / (1 - share))
                    scores[head, row, inside] += lift

    return edit
