"""Key/value storage: one slot a sequence. Columns below a slot's length are committed; those above are scratch.

A forward writes the keys of its rows into scratch columns only: what is stored changes only by a commit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class LayerShape:
    """What one attention layer stores: key and value `(kv_heads, head_dim)`, dtype and device."""

    kv_heads: int
    key_dim: int
    value_dim: int
    dtype: torch.dtype
    device: torch.device


class Slots:
    """Keys and values of `num_slots` sequences of up to `capacity` tokens.

    `keys[layer]`, `values[layer]`: `(slots, kv_heads, tokens, head_dim)`. Layers of one shape share a block
    `(layers, slots, kv_heads, tokens, head_dim)`, so that a commit is one copy a block and not one a layer.
    """

    def __init__(self, shapes: Sequence[LayerShape], num_slots: int, capacity: int) -> None:
        self.num_slots, self.capacity = num_slots, capacity
        self.lengths = [0] * num_slots
        self.prompts = [0] * num_slots
        self.written = [0] * num_slots  # columns that were ever written since they were zeros
        self.spans: list[tuple[int, int]] = [(0, 0)] * num_slots
        self.weights = torch.zeros(num_slots, capacity)
        self.keys: list[torch.Tensor] = [torch.empty(0)] * len(shapes)
        self.values: list[torch.Tensor] = [torch.empty(0)] * len(shapes)
        self._blocks: list[torch.Tensor] = []
        for shape in dict.fromkeys(shapes):
            self._allocate(shape, [layer for layer, other in enumerate(shapes) if other == shape])

    def _allocate(self, shape: LayerShape, layers: list[int]) -> None:
        size = (len(layers), self.num_slots, shape.kv_heads, self.capacity)
        for target, width in ((self.keys, shape.key_dim), (self.values, shape.value_dim)):
            # Zeros, not garbage: a masked column still meets a weight of 0, and 0 · NaN would be NaN.
            block = torch.zeros(*size, width, dtype=shape.dtype, device=shape.device)
            self._blocks.append(block)
            for index, layer in enumerate(layers):
                target[layer] = block[index]

    @property
    def num_bytes(self) -> int:
        """Bytes of key and value storage."""
        return sum(block.numel() * block.element_size() for block in self._blocks)

    def open(
        self, slot: int, num_tokens: int, positions: Sequence[int], weights: Sequence[float], kept: int = 0
    ) -> None:
        """Makes `slot` ready for a prompt of `num_tokens` tokens whose span is `positions`, with a weight each.

        It is empty then, but for the first `kept` tokens that it holds: the rest are zeros. What was written there
        may have been NaN, and a masked column would hand it on.
        """
        for block in self._blocks:
            block[:, slot, :, kept : self.written[slot]] = 0.0
        self.written[slot] = kept
        self.lengths[slot], self.prompts[slot] = kept, num_tokens
        self.set_span(slot, positions, weights)

    def take_over(self, other: Slots) -> None:
        """Copies the keys and values of `other`, of the same model and no larger, into the first slots and columns."""
        for mine, theirs in zip(self._blocks, other._blocks, strict=True):
            mine[:, : other.num_slots, :, : other.capacity] = theirs
        for slot, written in enumerate(other.written):
            self.written[slot] = max(self.written[slot], written)

    def set_span(self, slot: int, positions: Sequence[int], weights: Sequence[float]) -> None:
        """Makes `positions` the span of `slot`; what is stored stays."""
        self.weights[slot] = 0.0
        self.spans[slot] = (min(positions), max(positions) + 1) if positions else (0, 0)
        if positions:
            self.weights[slot, torch.tensor(positions)] = torch.tensor(weights, dtype=torch.float32)

    def note(self, slot: int, stop: int) -> None:
        """Columns below `stop` are about to be written."""
        self.written[slot] = max(self.written[slot], stop)

    def commit(self, slot: int, column: int) -> None:
        """Makes the scratch `column` the slot's next stored token."""
        length = self.lengths[slot]
        if column != length:
            for block in self._blocks:
                block[:, slot, :, length] = block[:, slot, :, column]
        self.lengths[slot] = length + 1
