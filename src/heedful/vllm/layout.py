"""Where the numbers of one token's key and value lie in a block of vLLM's cache, whatever order its kernels keep.

Nothing is assumed: numbered keys and values are written through the backend's own `do_kv_cache_update` and looked for
in memory. So raw keys can be read back for prefixes that another request computed, after preemption, and for any
packing; a packing that is no plain copy (fp8) is told apart and refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch

from heedful.errors import UnsupportedModelError

Store = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None]
BASE = 128  # digits of the numbers written: whole numbers up to 256 are exact in bfloat16


@dataclass(frozen=True)
class Layout:
    """`keys`, `values` `(block_size, kv_heads, head_dim)`: each number's distance from the start of its block."""

    keys: torch.Tensor
    values: torch.Tensor
    block_size: int
    block_stride: int

    def blocks(self, cache: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys `(blocks, kv_heads, head_dim, block_size)` and values `(blocks, kv_heads, block_size, head_dim)`."""
        keys, values = (_gathered(cache, places, ids, self.block_stride) for places in self._places)
        return keys, values

    @cached_property
    def _places(self) -> tuple[_Places, _Places]:
        return _places(self.keys.permute(1, 2, 0)), _places(self.values.permute(1, 0, 2))

    def read(self, cache: torch.Tensor, slots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values `(tokens, kv_heads, head_dim)` of the tokens in `slots`."""
        memory = _memory(cache)
        base = (slots // self.block_size * self.block_stride)[:, None, None]
        inside = slots % self.block_size
        return memory[base + self.keys[inside]], memory[base + self.values[inside]]


def learn(cache: torch.Tensor, block_size: int, heads: int, dims: tuple[int, int], store: Store) -> Layout:
    """The layout of `cache`, whose blocks are its first dimension, found out with block 0, which comes back as it was.

    `dims`: of keys and of values. vLLM keeps block 0 for padding: no sequence ever owns it. Raises
    `UnsupportedModelError` where the numbers are not found again as they were written.
    """
    slots = torch.arange(block_size, device=cache.device)
    key, value = (torch.empty(block_size, heads, dim, dtype=torch.long, device=cache.device) for dim in dims)
    total = key.numel() + value.numel()
    numbers = torch.arange(1, total + 1, device=cache.device)
    block = cache[0]
    before = block.clone()
    found = torch.zeros(block.shape, dtype=torch.long, device=cache.device)
    place = 1
    while place <= total:
        block.zero_()
        digits = (numbers // place % BASE).to(cache.dtype)
        store(digits[: key.numel()].view(key.shape), digits[key.numel() :].view(value.shape), slots)
        found += block.long() * place
        place *= BASE
    block.copy_(before)
    order = found.flatten().argsort()[found.numel() - total :]
    if not torch.equal(found.flatten()[order], numbers):
        raise UnsupportedModelError("this attention backend changes what it stores (fp8?): keys cannot be read back")
    places = _offsets(block).flatten()[order]
    keys, values = places[: key.numel()].view(key.shape), places[key.numel() :].view(value.shape)
    return Layout(keys, values, block_size, cache.stride(0))


@dataclass(frozen=True)
class _Places:
    """Distances of numbers from the start of their block; `steps` along each dimension where they are even."""

    offsets: torch.Tensor
    start: int
    steps: tuple[int, ...] | None


def _places(offsets: torch.Tensor) -> _Places:
    start, even = int(offsets[0, 0, 0]), offsets[:1, :1, :1]
    steps = []
    for dim, size in enumerate(offsets.shape):
        line = offsets[tuple(slice(None) if each == dim else slice(1) for each in range(offsets.ndim))]
        steps.append(int(line.flatten()[min(1, size - 1)]) - start)
        shape = [size if each == dim else 1 for each in range(offsets.ndim)]
        even = even + (torch.arange(size, device=offsets.device) * steps[-1]).view(shape)
    return _Places(offsets, start, tuple(steps) if torch.equal(even, offsets) else None)


def _gathered(cache: torch.Tensor, places: _Places, ids: torch.Tensor, block_stride: int) -> torch.Tensor:
    """What lies at `places` of each of these blocks, as a copy."""
    if places.steps is None:
        return _memory(cache)[(ids * block_stride)[:, None, None, None] + places.offsets]
    shape, strides = (len(cache), *places.offsets.shape), (block_stride, *places.steps)
    return cache.as_strided(shape, strides, cache.storage_offset() + places.start)[ids]


def _memory(cache: torch.Tensor) -> torch.Tensor:
    """The storage under `cache`, from its first number to its last, flat."""
    length = 1 + sum((size - 1) * stride for size, stride in zip(cache.shape, cache.stride(), strict=True))
    return cache.as_strided((length,), (1,))


def _offsets(block: torch.Tensor) -> torch.Tensor:
    """Each number's distance in memory from the block's first."""
    offsets = torch.zeros(block.shape, dtype=torch.long, device=block.device)
    for dim, (size, stride) in enumerate(zip(block.shape, block.stride(), strict=True)):
        shape = [1] * block.ndim
        shape[dim] = size
        offsets += (torch.arange(size, device=block.device) * stride).view(shape)
    return offsets
