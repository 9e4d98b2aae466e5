"""One steered forward: every candidate set of every gated request in one batch of rows, over vLLM's own cache.

Linear layers see all rows at once. In attention the keys and values before each request's current token are read from
the cache once for all of its candidates, and scores are scaled as in the core: nothing that is stored is touched, so
that requests may share it, however each is steered.

A candidate's rows equal the raw ones up to the first layer that it steers, so they enter there, as copies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from heedful.vllm.layout import Layout

LARGEST = 1 << 27  # numbers at a time, of keys, values and scores; more are taken a few parts after the other


@dataclass(frozen=True)
class Part:
    """One request's share: its current token, and the span's tokens before it with a factor each.

    `sets`: the layers to steer, one set for each candidate.
    """

    token: int
    position: int
    block_table: torch.Tensor
    slot: int
    span: torch.Tensor
    factors: torch.Tensor
    sets: tuple[frozenset[int], ...]


@dataclass
class SteeredPass:
    """Rows of `parts`, candidate after candidate: row `c · len(parts) + r` is part r under its set number `order[c]`.

    All parts have as many sets. The first candidate's rows run through all layers, and are raw for as long as others
    are still to enter. `keeps`: the steered token's own key and value are stored, as static steering wants. `watched`:
    where each layer's number, queries and outputs are noted, if they are asked for.
    """

    parts: list[Part]
    num_layers: int
    layout: Layout
    keeps: bool = False
    watched: list[tuple[int, torch.Tensor, torch.Tensor]] | None = None

    def __post_init__(self) -> None:
        device = self.parts[0].block_table.device
        entries = [self._entry(c) for c in range(self.num_candidates)]
        first = max(range(self.num_candidates), key=entries.__getitem__)
        self.order = sorted(range(self.num_candidates), key=lambda c: (c != first, entries[c]))
        self.is_in_order = self.order == sorted(self.order)
        self._active = [1 + sum(entries[c] <= at for c in self.order[1:]) for at in range(self.num_layers)]
        self.tokens = torch.tensor([part.token for part in self.parts], device=device)
        self.positions = torch.tensor([part.position for part in self.parts] * self.num_candidates, device=device)
        on = [[[layer in part.sets[c] for c in self.order] for part in self.parts] for layer in range(self.num_layers)]
        self._on = torch.tensor(on, device=device)[:, :, None, :, None, None]  # (layers, parts, 1, candidates, 1, 1)
        self._find_columns(device)

    def _find_columns(self, device: torch.device) -> None:
        """What of the cache each part reads: as many blocks each, of which those behind its own are block 0."""
        size = self.layout.block_size
        own = self.positions[: len(self.parts)]
        self._num_blocks = int(own.max()) // size + 1
        tables = torch.stack([part.block_table[: self._num_blocks] for part in self.parts]).long()
        is_behind = torch.arange(self._num_blocks, device=device) > (own // size)[:, None]
        self._blocks = tables.masked_fill(is_behind, 0)
        columns = torch.arange(self._num_blocks * size, device=device)
        self._hidden = (columns >= own[:, None])[:, None, None, None]  # (parts, 1, 1, 1, columns)
        spans = torch.cat([part.span for part in self.parts])
        self._begin, self._end = (int(spans.min()), int(spans.max()) + 1) if len(spans) else (0, 0)
        factors = torch.ones(len(self.parts), self._end - self._begin, device=device)
        for at, part in enumerate(self.parts):
            factors[at, part.span - self._begin] = part.factors
        self._factors = factors[:, None, None, None]  # (parts, 1, 1, 1, columns of the spans)

    def _entry(self, candidate: int) -> int:
        """The first layer that the candidate steers in any part; the last layer where it steers none."""
        last = self.num_layers - 1
        return min(min(part.sets[candidate], default=last) for part in self.parts)

    @property
    def num_candidates(self) -> int:
        """Candidate sets, as many for each part."""
        return len(self.parts[0].sets)

    def enter(self, index: int, tensor: torch.Tensor) -> torch.Tensor:
        """What enters layer `index`: positions of all rows that run there, or `tensor (rows, hidden)` with new rows."""
        wanted = self._active[index] * len(self.parts)
        if not tensor.is_floating_point():
            return self.positions[:wanted]
        missing = (wanted - len(tensor)) // len(self.parts)
        return torch.cat([tensor, tensor[: len(self.parts)].repeat(missing, 1)]) if missing else tensor

    def all_rows(self, tensor: torch.Tensor) -> torch.Tensor:
        """`tensor (rows, hidden)` of a layer as `(candidates, parts, hidden)`: those not there yet are still raw."""
        found = tensor.view(-1, len(self.parts), tensor.shape[-1])
        return torch.cat([found, found[:1].expand(self.num_candidates - len(found), -1, -1)])

    def attend(
        self,
        impl: Any,
        layer: Any,
        index: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        cache: torch.Tensor,
        output: torch.Tensor,
    ) -> None:
        """One layer's attention of all rows, `output` filled; `index`: the layer's."""
        heads, parts = impl.num_kv_heads, len(self.parts)
        shape = (self._active[index], parts, heads)
        queries = query.view(*shape, impl.num_heads // heads, -1).permute(1, 2, 0, 3, 4)
        keys, values = (tensor.view(*shape, -1).permute(1, 2, 0, 3) for tensor in (key, value))
        found = output.view(*shape, impl.num_heads // heads, -1).permute(1, 2, 0, 3, 4)
        numbers = 3 * heads * (keys.shape[-1] + values.shape[-1]) + 4 * impl.num_heads * shape[0]  # with their copies
        for begin in range(0, parts, step := max(1, LARGEST // (numbers * self._hidden.shape[-1]))):
            some = slice(begin, begin + step)
            found[some] = self._attended(impl, index, some, queries[some], keys[some], values[some], cache)
        if self.keeps:
            slots = torch.tensor([part.slot for part in self.parts], device=key.device)
            impl.do_kv_cache_update(layer, key[:parts].contiguous(), value[:parts].contiguous(), cache, slots)
        if self.watched is not None:
            self.watched.append((index, query.clone(), output.clone()))

    def _attended(
        self,
        impl: Any,
        index: int,
        some: slice,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        cache: torch.Tensor,
    ) -> torch.Tensor:
        """Attention `(parts, kv_heads, candidates, group, head_dim)` of `queries` of that shape in `some` parts.

        `keys`, `values (parts, kv_heads, candidates, head_dim)`: the rows' own, which are not scaled.
        """
        parts, heads, count, group, _ = queries.shape
        size = self.layout.block_size
        cached, contents = self.layout.blocks(cache, self._blocks[some].flatten())
        for at, part in enumerate(self.parts[some]):  # what is stale there may be no number
            contents[at * self._num_blocks + part.position // size, :, part.position % size :] = 0.0
        scaled = queries.float() * impl.scale
        flat = scaled.reshape(parts, 1, heads, count * group, -1)
        scores = (flat @ cached.float().view(parts, self._num_blocks, *cached.shape[1:])).permute(0, 2, 3, 1, 4)
        scores = scores.reshape(parts, heads, count, group, -1)
        if self._end > self._begin:
            factors = torch.where(self._on[index, some, :, :count], self._factors[some], 1.0)
            scores[..., self._begin : self._end] *= factors
        own = (scaled * keys.float()[:, :, :, None]).sum(-1, keepdim=True)
        if impl.logits_soft_cap:
            scores, own = (torch.tanh(each / impl.logits_soft_cap) * impl.logits_soft_cap for each in (scores, own))
        scores.masked_fill_(self._hidden[some], -torch.inf)
        chances = torch.cat([scores, own], -1).softmax(-1)
        spread = chances[..., :-1].reshape(parts, heads, count * group, self._num_blocks, size).permute(0, 3, 1, 2, 4)
        mixed = (spread @ contents.float().view(parts, self._num_blocks, *contents.shape[1:])).sum(1)
        return mixed.view(parts, heads, count, group, -1) + chances[..., -1:] * values.float()[:, :, :, None]
