"""Attention over slots: one function for every model family, registered with transformers' attention interface.

A forward is a list of groups. Raw groups run the fast kernel (SDPA); steered rows, soft-caps and sinks run an explicit
float32 softmax. Does not know what a method is, nor what comes before or after attention.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import functional as F

from heedful.engine.slots import Slots
from heedful.recipe import SpanView, Steerer

# Query rows per block where a mask or explicit scores are needed in prefill: bounds memory to block × tokens.
BLOCK = 256


@dataclass
class LayerCall:
    """What a model's attention module passes besides queries, keys and values."""

    scaling: float
    window: int | None = None
    softcap: float | None = None
    sinks: torch.Tensor | None = None

    @property
    def is_plain(self) -> bool:
        """Whether the fast kernel can do it."""
        return self.softcap is None and self.sinks is None


@dataclass
class RowGroup:
    """Rows `first..last` of the flat forward: `num_rows` rows for each of `slots`, which lie side by side in storage.

    `positions (slots, rows)`; row r of slot b has its own key in column `lengths[b] + r`. `low`: first slot.
    """

    store: Slots
    first: int
    last: int
    low: int
    slots: list[int]
    num_rows: int
    positions: list[list[int]]
    steerer: Steerer | None = None
    active: list[list[frozenset[int]]] | None = None
    _masks: dict[Any, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.lengths = [self.store.lengths[slot] for slot in self.slots]
        self.num_columns = max(self.lengths) + self.num_rows
        reach = self.slots[-1] + 1 - self.low
        self.is_single = len(self.slots) == 1
        # Slots with gaps between them: one row each is computed over the gaps too, several rows on a copy of the keys.
        self.is_gathered = self.num_rows > 1 and reach != len(self.slots)
        self.width = len(self.slots) if self.is_gathered else reach
        self.is_dense = self.width == len(self.slots)
        self.local = list(range(self.width)) if self.is_gathered else [slot - self.low for slot in self.slots]

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, call: LayerCall) -> torch.Tensor:
        """`q (heads, tokens, head_dim)`, `k`, `v (kv_heads, tokens, head_dim)` → `(heads, tokens, value_dim)`."""
        keys, values = self._write(layer, k, v)
        heads, count, dim = q.shape
        q = q.reshape(k.shape[0], heads // k.shape[0], len(self.slots), self.num_rows, dim).permute(2, 0, 1, 3, 4)
        if not self.is_dense:
            q = self._spread(q)
        edited = self.steerer is not None and self._is_active(layer)
        out = self._explicit(layer, q, keys, values, call) if edited or not call.is_plain else None
        out = self._fast(q, keys, values, call) if out is None else out
        if not self.is_dense:
            out = out[self._index("local", self.local, q.device)]
        return out.permute(1, 2, 0, 3, 4).reshape(heads, count, values.shape[-1])

    def _write(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Puts the rows' own keys into scratch columns; returns the views `(slots, kv_heads, columns, dim)` to read."""
        keys, values = self.store.keys[layer], self.store.values[layer]
        if self.is_single:
            start = self.lengths[0]
            keys[self.low, :, start : start + self.num_rows] = k
            values[self.low, :, start : start + self.num_rows] = v
        else:
            slots = self._index("slots", [[slot] for slot in self.slots], k.device)
            own = [[length + row for row in range(self.num_rows)] for length in self.lengths]
            columns = self._index("columns", own, k.device)
            keys[slots, :, columns] = k.transpose(0, 1).reshape(*columns.shape, *k.shape[::2])
            values[slots, :, columns] = v.transpose(0, 1).reshape(*columns.shape, *v.shape[::2])
            if self.is_gathered:
                return keys[slots[:, 0], :, : self.num_columns], values[slots[:, 0], :, : self.num_columns]
        low, high = self.low, self.low + self.width
        return keys[low:high, :, : self.num_columns], values[low:high, :, : self.num_columns]

    def _spread(self, q: torch.Tensor) -> torch.Tensor:
        """Rows of slots with gaps between them, spread over all slots of the range; the gaps hold zeros."""
        full = q.new_zeros(self.width, *q.shape[1:])
        full[self._index("local", self.local, q.device)] = q
        return full

    def _fast(self, q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, call: LayerCall) -> torch.Tensor:
        slots, kv_heads, group, rows, dim = q.shape
        flat = q.reshape(slots, kv_heads, group * rows, dim)
        mask = self._mask(call.window, q.device)
        if mask is not None:
            mask = self._tiled(mask, group, call.window, q.dtype)
        out = F.scaled_dot_product_attention(flat, keys, values, attn_mask=mask, scale=call.scaling)
        return out.view(slots, kv_heads, group, rows, values.shape[-1])

    def _explicit(
        self, layer: int, q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, call: LayerCall
    ) -> torch.Tensor:
        slots, kv_heads, group, rows, dim = q.shape
        flat = q.reshape(slots, kv_heads, group * rows, dim).float()
        scores = (flat @ keys.float().transpose(-1, -2)).mul_(call.scaling).view(slots, kv_heads, group, rows, -1)
        if self.steerer is not None and self._is_active(layer):
            self.steerer.edit(scores, self._span(layer, q.device))
        weights = softmax(scores, call, self._mask(call.window, q.device), kv_heads)
        out = weights.view(slots, kv_heads, group * rows, -1) @ values.float()
        return out.view(slots, kv_heads, group, rows, -1).to(q.dtype)

    def _is_active(self, layer: int) -> bool:
        if "active" not in self._masks:
            rows = [layers for per_slot in self.active or () for layers in per_slot]
            self._masks["active"] = frozenset[int]().union(*rows)
        return layer in self._masks["active"]

    def _span(self, layer: int, device: torch.device) -> SpanView:
        """The span of these slots as the steerer sees it in this layer."""
        key = ("span", device)
        if key not in self._masks:
            self._masks[key] = self._build_span(device)
        start, stop, weights, active = self._masks[key]
        return SpanView(start, stop, weights, active[layer])

    def _build_span(self, device: torch.device) -> tuple[int, int, torch.Tensor, torch.Tensor]:
        """Columns, weights `(slots, 1, 1, 1, columns)`, and who is steered `(layers, slots, 1, 1, rows, 1)`."""
        hulls = [self.store.spans[slot] for slot in self.slots]
        start, stop = min(hull[0] for hull in hulls), max(hull[1] for hull in hulls)
        low = self.low
        chosen = self.store.weights[self.slots] if self.is_gathered else self.store.weights[low : low + self.width]
        active = torch.zeros(len(self.store.keys), self.width, self.num_rows, dtype=torch.bool)
        for at, rows in zip(self.local, self.active or (), strict=True):
            for row, layers in enumerate(rows):
                active[list(layers), at, row] = True
        return (
            start,
            stop,
            chosen[:, None, None, None, start:stop].to(device),
            active[:, :, None, None, :, None].to(device),
        )

    def _mask(self, window: int | None, device: torch.device) -> torch.Tensor | None:
        """Additive float32 mask `(slots, 1, 1, rows, columns)`, or None where every row sees every column."""
        key = ("mask", window, device)
        if key not in self._masks:
            self._masks[key] = self._build_mask(window, device)
        mask: torch.Tensor | None = self._masks[key]
        return mask

    def _build_mask(self, window: int | None, device: torch.device) -> torch.Tensor | None:
        fits = window is None or self.num_columns <= window
        if self.is_single and self.num_rows == 1 and fits and self.positions[0][0] == self.lengths[0]:
            return None
        columns = torch.arange(self.num_columns)
        visible = torch.zeros(self.width, self.num_rows, self.num_columns, dtype=torch.bool)
        position = torch.tensor(self.positions)[:, :, None]
        own = torch.tensor(self.lengths)[:, None, None] + torch.arange(self.num_rows)[None, :, None]
        past = columns < position
        if window is not None:
            past &= columns > position - window
        visible[self.local] = past | (columns == own)
        if not self.is_dense:
            gaps = [i for i in range(self.width) if i not in set(self.local)]
            visible[gaps, :, 0] = True  # a gap row must see something
        return torch.where(visible, 0.0, -torch.inf)[:, None, None].to(device)

    def _tiled(self, mask: torch.Tensor, group: int, window: int | None, dtype: torch.dtype) -> torch.Tensor:
        """The mask for rows flattened to `group · rows`, in the dtype that SDPA wants."""
        key = ("tiled", window, mask.device)
        if key not in self._masks:
            tiled = mask.expand(-1, -1, group, -1, -1).reshape(mask.shape[0], 1, -1, mask.shape[-1])
            self._masks[key] = tiled.to(dtype)
        result: torch.Tensor = self._masks[key]
        return result

    def _index(self, name: str, values: list[Any], device: torch.device) -> torch.Tensor:
        key = (name, device)
        if key not in self._masks:
            self._masks[key] = torch.tensor(values, device=device)
        result: torch.Tensor = self._masks[key]
        return result


@dataclass
class ChunkGroup:
    """Tokens `first..last` of the flat forward are a prompt's, stored in `slot` from column `start` on."""

    store: Slots
    first: int
    last: int
    slot: int
    start: int

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, call: LayerCall) -> torch.Tensor:
        """Stores `k`, `v`, then attends causally; never makes a tokens × tokens matrix unless the fast kernel does."""
        stop = self.start + k.shape[1]
        keys, values = self.store.keys[layer][self.slot, :, :stop], self.store.values[layer][self.slot, :, :stop]
        keys[:, self.start :], values[:, self.start :] = k, v
        fits = call.window is None or stop <= call.window
        if call.is_plain and fits and self.start == 0:
            return sdpa(q, keys, values, call.scaling, is_causal=True)
        size = q.shape[1]
        blocks = [self._block(q[:, i : i + BLOCK], keys, values, self.start + i, call) for i in range(0, size, BLOCK)]
        return torch.cat(blocks, dim=1)

    def _block(
        self, q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, start: int, call: LayerCall
    ) -> torch.Tensor:
        stop = start + q.shape[1]
        low = 0 if call.window is None else max(0, start - call.window + 1)
        keys, values = keys[:, low:stop], values[:, low:stop]
        position = torch.arange(start, stop, device=q.device)[:, None]
        column = torch.arange(low, stop, device=q.device)
        hidden = column > position
        if call.window is not None:
            hidden |= column <= position - call.window
        mask = torch.zeros(hidden.shape, device=q.device).masked_fill_(hidden, -torch.inf)
        if call.is_plain:
            return sdpa(q, keys, values, call.scaling, mask=mask.to(q.dtype))
        return explicit(q, keys, values, call, mask)


def sdpa(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scaling: float,
    mask: torch.Tensor | None = None,
    is_causal: bool = False,
) -> torch.Tensor:
    """The fast kernel on `q (heads, rows, dim)` and `keys`, `values (kv_heads, columns, dim)`."""
    grouped = q.shape[0] != keys.shape[0]
    return F.scaled_dot_product_attention(
        q[None], keys[None], values[None], attn_mask=mask, is_causal=is_causal, scale=scaling, enable_gqa=grouped
    )[0]


def explicit(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, call: LayerCall, mask: torch.Tensor
) -> torch.Tensor:
    """The same in float32 with soft-cap and sinks."""
    heads, rows, dim = q.shape
    kv_heads = keys.shape[0]
    flat = q.reshape(kv_heads, heads // kv_heads * rows, dim).float()
    scores = (flat @ keys.float().transpose(-1, -2)).mul_(call.scaling).view(1, kv_heads, -1, rows, keys.shape[1])
    weights = softmax(scores, call, mask, kv_heads)
    out = weights.view(kv_heads, -1, keys.shape[1]) @ values.float()
    return out.view(heads, rows, -1).to(q.dtype)


def softmax(scores: torch.Tensor, call: LayerCall, mask: torch.Tensor | None, kv_heads: int) -> torch.Tensor:
    """Soft-cap, mask, sinks and softmax of float32 `scores (slots, kv_heads, group, rows, columns)`."""
    if call.softcap is not None:
        scores = torch.tanh(scores / call.softcap) * call.softcap
    if mask is not None:
        scores = scores + mask
    if call.sinks is None:
        return scores.softmax(-1)
    sinks = call.sinks.float().view(1, kv_heads, -1, 1, 1).expand(*scores.shape[:-1], 1)
    return torch.cat([scores, sinks], -1).softmax(-1)[..., :-1].contiguous()


@dataclass
class Pass:
    """One forward in flight: its groups, in the order of their tokens."""

    groups: list[RowGroup | ChunkGroup]

    def attend(
        self, module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, call: LayerCall
    ) -> torch.Tensor:
        """`query (1, heads, tokens, dim)`, `key`, `value (1, kv_heads, tokens, dim)` → `(1, tokens, heads, dim)`."""
        layer: int = module.layer_idx  # type: ignore[assignment]
        q, k, v = query[0], key[0], value[0]
        if len(self.groups) == 1:
            out = self.groups[0].attend(layer, q, k, v, call)
        else:
            parts = [
                g.attend(layer, q[:, g.first : g.last], k[:, g.first : g.last], v[:, g.first : g.last], call)
                for g in self.groups
            ]
            out = torch.cat(parts, dim=1)
        return out.transpose(0, 1)[None]


CURRENT: ContextVar[Any] = ContextVar("heedful_pass")


@contextmanager
def running(current: Any) -> Iterator[None]:
    """Makes `current` (a `Pass` or a probe) the target of every attention call in this context."""
    token = CURRENT.set(current)
    try:
        yield
    finally:
        CURRENT.reset(token)


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers calls in place of its own attention; the running pass does the work."""
    call = LayerCall(
        scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
        window=kwargs.get("sliding_window"),
        softcap=kwargs.get("softcap"),
        sinks=kwargs.get("s_aux"),
    )
    return CURRENT.get().attend(module, query, key, value, call), None
