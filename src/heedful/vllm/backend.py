"""vLLM's attention backend, which hands the rows of a steered pass to it; every other pass is vLLM's own.

Only this module subclasses vLLM's attention.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend, CPUAttentionBackendImpl


class SteeredImpl(CPUAttentionBackendImpl):
    """vLLM's CPU attention, but for the rows of a steered pass."""

    is_steerable = True

    def forward(
        self,
        layer: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        attn_metadata: Any,
        output: torch.Tensor,
        *more: Any,
        **named: Any,
    ) -> torch.Tensor:
        """Fills and returns `output`, as vLLM's does."""
        host = getattr(layer, "heedful", None)  # set by the host of the layer's model
        if host is None or host.current is None:
            return super().forward(layer, query, key, value, kv_cache, attn_metadata, output, *more, **named)
        host.current.attend(self, layer, host.index[layer.layer_name], query, key, value, kv_cache, output)
        return output


class SteeredBackend(CPUAttentionBackend):
    """Registered in the place of vLLM's CPU backend, under its name."""

    @staticmethod
    def get_impl_cls() -> type[SteeredImpl]:
        """The implementation above."""
        return SteeredImpl
