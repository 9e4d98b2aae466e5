"""One steered forward: every candidate set of every gated request in one batch of rows, over vLLM's own cache.

Linear layers see all rows at once. In attention, a layer's rows go through the backend's own kernel one candidate set
after the other, the span's keys being scaled in place just before and put back just after: no scratch blocks, no copy
of a cache, and no bit of what is stored differs afterwards.

A candidate's rows equal the raw ones up to the first layer that it steers, so they enter there, as copies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from heedful.vllm.layout import Layout


@dataclass(frozen=True)
class Part:
    """One request's share: its current token, and the slots of the span's tokens before it with a factor each.

    `sets`: the layers to steer, one set for each candidate.
    """

    token: int
    position: int
    block_table: torch.Tensor
    slot: int
    span_slots: torch.Tensor
    factors: torch.Tensor
    sets: tuple[frozenset[int], ...]


@dataclass
class SteeredPass:
    """Rows of `parts`, candidate after candidate: row `c · len(parts) + r` is part r under its set number `order[c]`.

    All parts have as many sets. The first candidate's rows run through all layers, and are raw for as long as others
    are still to enter. `keeps`: the steered token's own key and value stay stored, as static steering wants.
    `metadata`: the backend's, for one row of each part. `watched`: where each layer's number, queries and outputs are
    noted, if they are asked for.
    """

    parts: list[Part]
    num_layers: int
    layout: Layout
    metadata: Any
    keeps: bool = False
    watched: list[tuple[int, torch.Tensor, torch.Tensor]] | None = None

    def __post_init__(self) -> None:
        device = self.parts[0].span_slots.device
        entries = [self._entry(c) for c in range(self.num_candidates)]
        first = max(range(self.num_candidates), key=entries.__getitem__)
        self.order = sorted(range(self.num_candidates), key=lambda c: (c != first, entries[c]))
        self.is_in_order = self.order == sorted(self.order)
        self._active = [1 + sum(entries[c] <= at for c in self.order[1:]) for at in range(self.num_layers)]
        lengths = torch.tensor([len(part.span_slots) for part in self.parts])
        self._own = torch.tensor([part.slot for part in self.parts], device=device)
        self._slots = torch.cat([*(part.span_slots for part in self.parts), self._own])
        factors = torch.cat([part.factors for part in self.parts])
        owner = torch.repeat_interleave(torch.arange(len(self.parts)), lengths).to(device)
        span_slots = self._slots[: len(owner)]
        self._is_shared = len(self.parts) > 1 and len(torch.unique(span_slots)) < len(span_slots)
        self._is_on = [
            [[layer in part.sets[c] for part in self.parts] for c in self.order] for layer in range(self.num_layers)
        ]
        self._leaders = _leaders(self._is_on, self._active)
        scaled = torch.where(torch.tensor(self._is_on, device=device)[:, :, owner], factors, 1.0)
        self._factors = scaled[..., None, None]  # (layers, candidates, span tokens, 1, 1)
        self._all = factors[:, None, None]
        self._rows = [slice(c * len(self.parts), (c + 1) * len(self.parts)) for c in range(self.num_candidates)]
        self.tokens = torch.tensor([part.token for part in self.parts], device=device)
        self.positions = torch.tensor([part.position for part in self.parts] * self.num_candidates, device=device)

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
        key, value = key.contiguous(), value.contiguous()
        stored = _Stored(impl, layer, cache, self._slots, *self.layout.read(cache, self._slots))
        try:
            previous = None
            for candidate, rows in enumerate(self._rows[: self._active[index]]):
                leader = self._leaders[index][candidate]
                if leader != candidate:
                    output[rows] = output[self._rows[leader]]
                    continue
                if self._is_shared and len(set(self._is_on[index][candidate])) > 1:
                    self._attend_shared(impl, layer, index, candidate, stored, (query, key, value), cache, output)
                    continue
                stored.put(
                    self._factors[index, candidate], key[rows], value[rows], self._changes(index, candidate, previous)
                )
                previous = candidate
                impl.attend(layer, query[rows], key[rows], value[rows], cache, self.metadata, output[rows])
        finally:
            stored.put_back(key[: len(self.parts)] if self.keeps else None, value[: len(self.parts)])
        if self.watched is not None:
            self.watched.append((index, query.clone(), output.clone()))

    def _changes(self, index: int, candidate: int, previous: int | None) -> bool:
        """Whether the span's keys are to be written anew; if not, they are as the `previous` candidate left them."""
        on = self._is_on[index]
        return previous is None or self._is_shared or on[candidate] != on[previous]

    def _attend_shared(
        self,
        impl: Any,
        layer: Any,
        index: int,
        candidate: int,
        stored: _Stored,
        heads: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        cache: torch.Tensor,
        output: torch.Tensor,
    ) -> None:
        """Parts that read the same stored span, some steered and some not: once for either, each keeps its own."""
        rows = self._rows[candidate]
        query, key, value = (tensor[rows] for tensor in heads)
        on = torch.tensor(self._is_on[index][candidate], device=output.device)
        for is_on, factors in ((True, self._all), (False, torch.ones_like(self._all))):
            found = torch.empty_like(output[rows])
            stored.put(factors, key, value, True)
            impl.attend(layer, query, key, value, cache, self.metadata, found)
            output[rows][on == is_on] = found[on == is_on]


def _leaders(is_on: list[list[list[bool]]], active: list[int]) -> list[list[int]]:
    """For each layer and candidate the first candidate whose rows are the same up to there: it is computed for all.

    `active`: candidates that have entered; the others are the first one's still.
    """
    leaders, so_far = [], [0] * len(is_on[0])
    for layer, count in zip(is_on, active, strict=True):
        first: dict[tuple[int, tuple[bool, ...]], int] = {}
        so_far = [first.setdefault((so_far[at], tuple(on)), at) for at, on in enumerate(layer[:count])] + so_far[count:]
        leaders.append(so_far)
    return leaders


class _Stored:
    """What a layer's cache holds in the slots that a pass touches: the span's, then each row's own."""

    def __init__(
        self, impl: Any, layer: Any, cache: torch.Tensor, slots: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> None:
        self._impl, self._layer, self._cache, self._slots = impl, layer, cache, slots
        self._keys, self._values = keys, values

    def put(self, factors: torch.Tensor, key: torch.Tensor, value: torch.Tensor, is_changed: bool) -> None:
        """Writes the rows' own `key` and `value`, and where it `is_changed` the span's keys times `factors`."""
        span = len(self._slots) - len(key)
        if is_changed and span:
            scaled = self._keys[:span].float() * factors
            if scaled.dtype != key.dtype:  # half precision ends early: the largest number is as good as an overflow
                largest = torch.finfo(key.dtype).max
                scaled = scaled.clamp_(-largest, largest).to(key.dtype)
            self._write(torch.cat([scaled, key]), torch.cat([self._values[:span], value]), self._slots)
        else:
            self._write(key, value, self._slots[span:])

    def put_back(self, key: torch.Tensor | None, value: torch.Tensor) -> None:
        """Everything as it was found; but the rows' own are `key` and `value` where given."""
        if key is not None:
            span = len(self._slots) - len(key)
            self._keys, self._values = (
                torch.cat([self._keys[:span], key]),
                torch.cat([self._values[:span], value]),
            )
        self._write(self._keys, self._values, self._slots)

    def _write(self, keys: torch.Tensor, values: torch.Tensor, slots: torch.Tensor) -> None:
        self._impl.do_kv_cache_update(self._layer, keys, values, self._cache, slots)
