"""Attention over slots: one function for every model family, registered with transformers' attention interface.

A forward is a list of groups. Raw groups run the fast kernel (SDPA); steered rows, soft-caps and sinks run an explicit
float32 softmax. Does not know what a method is, nor what comes before or after attention.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import functional as F

from heedful.engine.rows import Edit
from heedful.engine.slots import Slots
from heedful.recipe import SpanView, Stage, Steerer

# Query rows per block where a mask or explicit scores are needed in prefill: bounds memory to block × tokens.
BLOCK = 256
# Scores per block where they are explicit. Larger blocks fragment the heap (docs/log.md) and are hardly faster.
MAX_SCORES = 1 << 20


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

    `positions`, `edits (slots, rows)`; row r of slot b has its own key in column `lengths[b] + r`. `low`: first slot.
    """

    store: Slots
    first: int
    last: int
    low: int
    slots: list[int]
    num_rows: int
    positions: list[list[int]]
    edits: list[list[Edit | None]]
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
        self._steered = _rows_by_edit(self.edits)

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, call: LayerCall) -> torch.Tensor:
        """`q (heads, tokens, head_dim)`, `k`, `v (kv_heads, tokens, head_dim)` → `(heads, tokens, value_dim)`."""
        keys, values = self._write(layer, k, v)
        heads, count, dim = q.shape
        q = q.reshape(k.shape[0], heads // k.shape[0], len(self.slots), self.num_rows, dim).permute(2, 0, 1, 3, 4)
        if not self.is_dense:
            q = self._spread(q)
        edits = self._edits(layer, q.device)
        if edits or not call.is_plain:
            out = explicit(q, keys.float(), values.float(), call, self._mask(call.window, q.device), edits, layer)
        else:
            out = self._fast(q, keys, values, call)
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

    def _edits(self, layer: int, device: torch.device) -> list[tuple[Steerer, SpanView]]:
        """The steerers at work in this layer, each with its view of the span."""
        rows: dict[Steerer, tuple[tuple[int, int], ...]] = {}
        for edit, places in self._steered.items():
            if layer in edit.layers:
                rows[edit.steerer] = (*rows.get(edit.steerer, ()), *places)
        return [(steerer, self._view(steerer.stage, places, device)) for steerer, places in rows.items()]

    def _view(self, stage: Stage, places: tuple[tuple[int, int], ...], device: torch.device) -> SpanView:
        """The span as the rows at `places` see it; layers that steer the same rows share one view."""
        key = ("view", stage, places, device)
        if key not in self._masks:
            start, stop, weights = self._span(stage, device)
            active = torch.zeros(self.width, 1, 1, self.num_rows, 1, dtype=torch.bool)
            for slot, row in places:
                active[self.local[slot], :, :, row] = True
            self._masks[key] = SpanView(start, stop, weights, active.to(device), lambda: self._in_prompt(device))
        view: SpanView = self._masks[key]
        return view

    def _span(self, stage: Stage, device: torch.device) -> tuple[int, int, torch.Tensor]:
        """Columns, and weights `(slots, 1, 1, 1 or rows, columns)`; a row's own key has one in stage "scores" only."""
        key = ("span", stage, device)
        if key not in self._masks:
            self._masks[key] = self._build_span(stage, device)
        found: tuple[int, int, torch.Tensor] = self._masks[key]
        return found

    def _build_span(self, stage: Stage, device: torch.device) -> tuple[int, int, torch.Tensor]:
        hulls = [self.store.spans[slot] for slot in self.slots]
        start, stop = min(hull[0] for hull in hulls), min(max(hull[1] for hull in hulls), self.num_columns)
        chosen = self.store.weights[self.slots] if self.is_gathered else self.store.weights[self.low :][: self.width]
        own: list[tuple[int, int, int, float]] = []
        for at, slot, positions, length in zip(self.local, self.slots, self.positions, self.lengths, strict=True):
            weights = [float(self.store.weights[slot, position]) for position in positions]
            own += [(at, row, length + row, weight) for row, weight in enumerate(weights) if weight]
        if own and stage == "scores":
            stop = self.num_columns
        table = chosen[:, None, start:stop].repeat(1, self.num_rows if own else 1, 1)
        for at, length in zip(self.local, self.lengths, strict=True):
            table[at, :, max(0, length - start) :] = 0.0
        if stage == "scores":
            for at, row, column, weight in own:
                table[at, row, column - start] = weight
        return start, stop, table[:, None, None].to(device)

    def _in_prompt(self, device: torch.device) -> torch.Tensor:
        """Whether a column holds a token of the prompt, `(slots, 1, 1, rows, columns)`."""
        columns = torch.arange(self.num_columns)
        found = torch.zeros(self.width, self.num_rows, self.num_columns, dtype=torch.bool)
        for at, slot, positions, length in zip(self.local, self.slots, self.positions, self.lengths, strict=True):
            prompt = self.store.prompts[slot]
            found[at] = columns < min(prompt, length)
            for row, position in enumerate(positions):
                found[at, row, length + row] = position < prompt
        return found[:, None, None].to(device)

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


def _rows_by_edit(edits: list[list[Edit | None]]) -> dict[Edit, tuple[tuple[int, int], ...]]:
    """For each edit, the (slot, row) places that it steers."""
    places: dict[Edit, tuple[tuple[int, int], ...]] = {}
    for slot, per_slot in enumerate(edits):
        for row, edit in enumerate(per_slot):
            if edit is not None:
                places[edit] = (*places.get(edit, ()), (slot, row))
    return places


@dataclass
class ChunkGroup:
    """Tokens `first..last` of the flat forward are a prompt's, stored in `slot` from column `start` on."""

    store: Slots
    first: int
    last: int
    slot: int
    start: int
    edit: Edit | None = None

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, call: LayerCall) -> torch.Tensor:
        """Stores `k`, `v`, then attends causally; never makes a tokens × tokens matrix unless the fast kernel does."""
        stop = self.start + k.shape[1]
        keys, values = self.store.keys[layer][self.slot, :, :stop], self.store.values[layer][self.slot, :, :stop]
        keys[:, self.start :], values[:, self.start :] = k, v
        edit = self.edit if self.edit is not None and layer in self.edit.layers else None
        fits = call.window is None or stop <= call.window
        if call.is_plain and edit is None and fits and self.start == 0:
            return sdpa(q, keys, values, call.scaling, is_causal=True)
        if call.is_plain and edit is None:
            parts = [self._fast(block, keys, values, call) for block in self._blocks(q, call, BLOCK)]
        else:
            # Explicit scores: blocks as high as fit a fixed number of floats, whatever the prompt's length.
            size = max(1, min(BLOCK, MAX_SCORES // (q.shape[0] * stop)))
            blocks = self._blocks(q, call, size)
            wide = keys.float(), values.float()
            share = self._share(blocks, wide[0], call, edit) if edit is not None and edit.steerer.is_pooled else None
            parts = [self._explicit(block, *wide, call, edit, layer, share) for block in blocks]
        return torch.cat(parts, dim=1)

    def _blocks(self, q: torch.Tensor, call: LayerCall, size: int) -> list[Block]:
        return [Block(q[:, at : at + size], self.start + at, call.window) for at in range(0, q.shape[1], size)]

    def _fast(self, block: Block, keys: torch.Tensor, values: torch.Tensor, call: LayerCall) -> torch.Tensor:
        seen = slice(block.low, block.stop)
        return sdpa(block.q, keys[:, seen], values[:, seen], call.scaling, mask=block.mask().to(block.q.dtype))

    def _explicit(
        self,
        block: Block,
        keys: torch.Tensor,
        values: torch.Tensor,
        call: LayerCall,
        edit: Edit | None,
        layer: int,
        share: torch.Tensor | None,
    ) -> torch.Tensor:
        seen = slice(block.low, block.stop)
        edits = [] if edit is None else [(edit.steerer, self._view(block, share))]
        q = block.q.reshape(1, keys.shape[0], -1, *block.q.shape[1:])
        out = explicit(q, keys[None, :, seen], values[None, :, seen], call, block.mask(), edits, layer)
        return out.reshape(*block.q.shape[:2], -1)

    def _share(self, blocks: list[Block], keys: torch.Tensor, call: LayerCall, edit: Edit) -> torch.Tensor:
        """The span's share of attention over all heads and rows of the chunk, for steerers that pool."""
        total, count = torch.zeros((), device=keys.device), 0
        for block in blocks:
            q = block.q.reshape(1, keys.shape[0], -1, *block.q.shape[1:])
            scores = visible_scores(q, keys[None, :, block.low : block.stop], call, block.mask())
            found = edit.steerer.share_of(scores, self._view(block, None))
            total, count = total + found.sum(), count + found.numel()
        return (total / count).view(1, 1, 1, 1, 1)

    def _view(self, block: Block, share: torch.Tensor | None) -> SpanView:
        """The span as the rows of `block` see it."""
        first, last = self.store.spans[self.slot]
        start, stop = max(first, block.low), max(block.low, min(last, block.stop))
        start, device = min(start, stop), block.q.device
        weights = self.store.weights[self.slot, start:stop].to(device)[None, None, None, None]
        everything = torch.ones(1, 1, 1, 1, 1, dtype=torch.bool, device=device)
        width = block.stop - block.low
        return SpanView(
            start - block.low,
            stop - block.low,
            weights,
            everything,
            lambda: everything.repeat(1, 1, 1, 1, width),
            share,
        )


@dataclass(frozen=True)
class Block:
    """Query rows `q (heads, rows, dim)` of a chunk from position `start` on, and the columns that they can see."""

    q: torch.Tensor
    start: int
    window: int | None

    @property
    def stop(self) -> int:
        """One past the last position, and past the last column seen."""
        return self.start + self.q.shape[1]

    @property
    def low(self) -> int:
        """The first column seen."""
        return 0 if self.window is None else max(0, self.start - self.window + 1)

    def mask(self) -> torch.Tensor:
        """Additive float32 mask `(rows, columns)`."""
        position = torch.arange(self.start, self.stop, device=self.q.device)[:, None]
        column = torch.arange(self.low, self.stop, device=self.q.device)
        hidden = column > position
        if self.window is not None:
            hidden |= column <= position - self.window
        return torch.zeros(hidden.shape, device=self.q.device).masked_fill_(hidden, -torch.inf)


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
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    call: LayerCall,
    mask: torch.Tensor | None,
    edits: Sequence[tuple[Steerer, SpanView]],
    layer: int,
) -> torch.Tensor:
    """Attention of `q (slots, kv_heads, group, rows, dim)` with edits, soft-cap and sinks, in float32.

    `keys`, `values (slots, kv_heads, columns, dim)` in float32 → `(slots, kv_heads, group, rows, value_dim)`.
    """
    slots, kv_heads, group, rows, _ = q.shape
    scores = visible_scores(q, keys, call, mask, edits, layer)
    for steerer, span in edits:
        if steerer.stage == "scores":
            steerer.edit(scores, span, layer)
    if call.sinks is None:
        weights = scores.softmax(-1)
    else:
        sinks = call.sinks.float().view(1, kv_heads, -1, 1, 1).expand(*scores.shape[:-1], 1)
        weights = torch.cat([scores, sinks], -1).softmax(-1)[..., :-1]
    out = weights.reshape(slots, kv_heads, group * rows, -1) @ values
    return out.view(slots, kv_heads, group, rows, -1).to(q.dtype)


def visible_scores(
    q: torch.Tensor,
    keys: torch.Tensor,
    call: LayerCall,
    mask: torch.Tensor | None,
    edits: Sequence[tuple[Steerer, SpanView]] = (),
    layer: int = 0,
) -> torch.Tensor:
    """Float32 scores `(slots, kv_heads, group, rows, columns)`, keys edited, soft-capped, hidden columns at -inf."""
    slots, kv_heads, group, rows, dim = q.shape
    flat = q.reshape(slots, kv_heads, group * rows, dim).float()
    scores = (flat @ keys.transpose(-1, -2)).mul_(call.scaling).view(slots, kv_heads, group, rows, -1)
    for steerer, span in edits:
        if steerer.stage == "keys":
            steerer.edit(scores, span, layer)
    if call.softcap is not None:
        scores = torch.tanh(scores / call.softcap) * call.softcap
    return scores if mask is None else scores.add_(mask)


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
