"""vLLM's attention backends, which tell the host of each step's batch, and hand the rows of a steered pass to it.

Every other pass is vLLM's own. Only this module subclasses vLLM's attention: `Heedful<NAME>`, built when vLLM asks for
it and registered in the place of its own backend of that name.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch

from heedful.vllm.registration import BACKENDS, PREFIX


class Steerable:
    """What is put before an implementation of vLLM's attention."""

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
            own: Any = super()
            return own.forward(layer, query, key, value, kv_cache, attn_metadata, output, *more, **named)
        host.current.attend(self, layer, host.index[layer.layer_name], query, key, value, kv_cache, output)
        return output


class Telling:
    """What is put before a builder of attention metadata, which vLLM calls before each step, replayed graph or not."""

    vllm_config: Any
    layer_names: list[str]

    def build(self, common_prefix_len: int, common_attn_metadata: Any, *more: Any, **named: Any) -> Any:
        """As vLLM's."""
        layers = self.vllm_config.compilation_config.static_forward_context
        host = getattr(layers.get(next(iter(self.layer_names), "")), "heedful", None)
        if host is not None:
            host.note(common_attn_metadata)
        own: Any = super()
        return own.build(common_prefix_len, common_attn_metadata, *more, **named)


def _steered(name: str) -> type[Any]:
    from vllm.v1.attention.backends.registry import AttentionBackendEnum

    module, _, path = AttentionBackendEnum[name].value.rpartition(".")
    base: type[Any] = getattr(importlib.import_module(module), path)
    steered, telling = _before(Steerable, base.get_impl_cls()), _before(Telling, base.get_builder_cls())

    class Backend(base):
        @staticmethod
        def get_impl_cls() -> type[Any]:
            return steered

        @staticmethod
        def get_builder_cls() -> type[Any]:
            return telling

    Backend.__name__ = Backend.__qualname__ = PREFIX + name
    return Backend


def _before(first: type[Any], own: type[Any]) -> type[Any]:
    return type(PREFIX + own.__name__, (first, own), {"__module__": __name__})


def __getattr__(name: str) -> Any:
    if name.removeprefix(PREFIX) not in BACKENDS:
        raise AttributeError(name)
    found = globals()[name] = _steered(name.removeprefix(PREFIX))
    return found
