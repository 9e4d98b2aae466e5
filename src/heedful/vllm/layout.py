"""Where the numbers of one token's key and value lie in a block of vLLM's cache, whatever order its kernels keep.

Nothing is assumed: numbered keys and values are written through the backend's own `do_kv_cache_update` and looked for
in memory. So raw keys can be read back for prefixes that another request computed, after preemption, and for any
packing; a packing that is no plain copy (fp8) is told apart and refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

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
