"""Finds out at load whether a model's attention can be steered, and what each layer stores; refuses with the reason."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from heedful.engine.attention import LayerCall
from heedful.engine.slots import LayerShape
from heedful.errors import UnsupportedModelError

# Kinds of layer whose keys live in a cache, one a token; others (linear, chunked …) have none to scale.
STEERABLE_LAYERS = {"full_attention", "sliding_attention"}


@dataclass
class Layout:
    """What a probe forward found, in layer order: what is stored, and the attention modules."""

    shapes: list[LayerShape]
    calls: list[tuple[torch.nn.Module, LayerCall]]


@dataclass
class Probe:
    """Stands in for a pass during one two-token forward and notes who called; see `attention.running`."""

    found: dict[int, tuple[torch.nn.Module, LayerShape, LayerCall]] = field(default_factory=dict)

    def attend(
        self, module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, call: LayerCall
    ) -> torch.Tensor:
        """Zeros `(1, tokens, heads, value_dim)`."""
        shape = LayerShape(key.shape[1], key.shape[-1], value.shape[-1], key.dtype, key.device)
        self.found[int(module.layer_idx)] = (module, shape, call)  # type: ignore[arg-type]
        return query.new_zeros(1, query.shape[2], query.shape[1], value.shape[-1])


class Handover:
    """The few methods that model and mask code ask of a cache; hands new keys and values straight to attention."""

    is_compileable = False
    is_sliding = (False,)

    def __init__(self) -> None:
        self.updated: set[int] = set()

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values as they came."""
        self.updated.add(layer_idx)
        return keys, values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """0: positions are given with each forward."""
        return 0

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """0, as above."""
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """Length and offset of a mask that no one builds."""
        return query_length, 0


def refuse_by_config(model: Any) -> None:
    """Raises `UnsupportedModelError` where the configuration alone says that the model cannot be steered."""
    config = model.config.get_text_config()
    name = type(model).__name__
    if getattr(model.config, "is_encoder_decoder", False):
        raise UnsupportedModelError(f"{name} is an encoder–decoder; Heedful steers decoder-only models")
    if model.get_output_embeddings() is None:
        raise UnsupportedModelError(f"{name} has no language-model head; load it with AutoModelForCausalLM")
    kinds = set(getattr(config, "layer_types", None) or ()) - STEERABLE_LAYERS
    if kinds:
        raise UnsupportedModelError(
            f"{name} has layers of kind {', '.join(sorted(kinds))}, which keep no key per token that could be scaled"
        )
    if getattr(config, "num_kv_shared_layers", 0):
        raise UnsupportedModelError(f"{name} shares keys and values between layers; they cannot be steered one by one")
    if getattr(config, "use_bidirectional_attention", False):
        raise UnsupportedModelError(f"{name} attends in both directions; Heedful steers causal models")
    if not getattr(model, "_supports_attention_backend", False):
        raise UnsupportedModelError(f"{name} does not use transformers' attention interface, so it cannot be steered")
    if rope_type(config) == "dynamic":
        raise UnsupportedModelError(f"{name} rescales its rotary embedding as the text grows, so stored keys go stale")
    refuse_cache(getattr(getattr(model, "generation_config", None), "cache_implementation", None))


def refuse_cache(implementation: str | None) -> None:
    """Raises `UnsupportedModelError` for a cache implementation that would have to be honoured and cannot be."""
    if implementation == "quantized" or str(implementation).startswith("static"):
        raise UnsupportedModelError(
            f"cache_implementation={implementation!r} cannot be steered: Heedful stores keys itself; leave it unset"
        )


def rope_type(config: Any) -> str:
    """The kind of rotary embedding, "default" where none is named."""
    parameters = getattr(config, "rope_parameters", None) or {}
    kind = parameters.get("rope_type", "default")
    return kind if isinstance(kind, str) else "default"


def context_length(config: Any) -> int | None:
    """How many tokens the model takes, or None where its configuration does not say."""
    limit = getattr(config, "max_position_embeddings", None)
    if rope_type(config) == "longrope":
        # Past this length the embedding switches factors by the longest row of a forward: stored keys would go stale.
        limit = (config.rope_parameters or {}).get("original_max_position_embeddings", limit)
    return int(limit) if limit else None


def layout(model: Any, probe: Probe, updated: set[int]) -> Layout:
    """Orders what the probe found. Raises `UnsupportedModelError` where a layer did not show up or shares its cache."""
    name, expected = type(model).__name__, model.config.get_text_config().num_hidden_layers
    found = probe.found
    missing = sorted(set(range(expected)) - set(found))
    if missing:
        raise UnsupportedModelError(f"{name}: layers {missing} do not use transformers' attention interface")
    shared = sorted(set(range(expected)) - updated)
    if shared:
        raise UnsupportedModelError(f"{name}: layers {shared} share keys and values with others")
    layers = [found[i] for i in range(expected)]
    return Layout([shape for _, shape, _ in layers], [(module, call) for module, _, call in layers])
