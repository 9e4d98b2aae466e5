"""Tells what the plug-in cannot steer, in one line that says why. vLLM goes on; requests to be steered are refused."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from heedful.errors import UnsupportedModelError
from heedful.vllm.registration import ANY_VERSION, ARCHITECTURES, BACKENDS, SWITCH

TESTED = ((0, 32), (0, 33))  # from, and before


def refuse_version(version: str) -> None:
    """Raises `UnsupportedModelError` for a vLLM that was not tested, unless the override is set."""
    parts = tuple(int(part) if part.isdigit() else 0 for part in version.split(".")[:2])
    if TESTED[0] <= parts < TESTED[1] or os.environ.get(ANY_VERSION) == "1":
        return
    low, high = (".".join(map(str, bound)) for bound in TESTED)
    raise _refused(f"vLLM {version} is untested (tested: {low} to below {high}); {ANY_VERSION}=1 tries it")


def why_not(config: Any) -> str:
    """Why nothing can be steered under a configuration, as far as that says; empty where it can."""
    try:
        refuse_config(config)
        refuse_architecture(config.model_config.architectures)
    except UnsupportedModelError as error:
        return str(error)
    return ""


def refuse_config(config: Any) -> None:
    """Raises `UnsupportedModelError` for a version or configuration that cannot be steered."""
    from vllm import __version__

    refuse_version(__version__)
    model, parallel, cache = config.model_config, config.parallel_config, config.cache_config
    reasons = {
        "pipeline parallelism": parallel.pipeline_parallel_size > 1,
        "context parallelism": max(
            getattr(parallel, "decode_context_parallel_size", 1), getattr(parallel, "prefill_context_parallel_size", 1)
        )
        > 1,
        "a mixture of experts under data parallelism": parallel.data_parallel_size > 1
        and (parallel.enable_expert_parallel or getattr(model, "is_moe", False)),
        "dual-batch overlap": getattr(parallel, "use_ubatching", False),
        f"a key/value cache in {cache.cache_dtype} (its keys cannot be read back)": str(cache.cache_dtype).startswith(
            ("fp8", "int8", "nvfp4", "turbo", "ultra")
        ),
        "multi-head latent attention": getattr(model, "use_mla", False),
        "speculative decoding": config.speculative_config is not None,
        "LoRA": config.lora_config is not None,
        "sampling sharded over ranks": bool(getattr(parallel, "enable_batch_sharded_sampling", False)),
        "prompts of embeddings (--enable-prompt-embeds)": getattr(model, "enable_prompt_embeds", False),
        "the V1 model runner with graphs of whole passes (choose V2, or set cudagraph_mode=PIECEWISE)": _has_v1_graphs(
            config
        ),
        "any device but CPUs and CUDA": str(config.device_config.device_type) not in ("cpu", "cuda"),
    }
    for reason, is_so in reasons.items():
        if is_so:
            raise _refused(f"{reason} is not supported")


def _has_v1_graphs(config: Any) -> bool:
    """Whether V1's tokens may pass no Python on their way through the model."""
    mode = getattr(config.compilation_config, "cudagraph_mode", None)
    is_v2 = getattr(config, "use_v2_model_runner", False)
    if is_v2 or not mode or str(config.device_config.device_type) == "cpu":
        return False
    from vllm.compilation.breakable_cudagraph import is_breakable_cudagraph_enabled
    from vllm.config import CUDAGraphMode

    return mode != CUDAGraphMode.NONE and (is_breakable_cudagraph_enabled() or bool(mode.has_full_cudagraphs()))


def refuse_layers(config: Any) -> dict[str, Any]:
    """The model's attention layers by name. Raises `UnsupportedModelError` where one of them cannot be steered."""
    from vllm.model_executor.layers.attention import Attention
    from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase

    layers = config.compilation_config.static_forward_context
    keeping = {name: layer for name, layer in layers.items() if isinstance(layer, AttentionLayerBase)}
    found = {name: layer for name, layer in keeping.items() if isinstance(layer, Attention)}
    others = sorted({type(layer).__name__ for name, layer in keeping.items() if name not in found})
    if others or not found:
        raise _refused(f"layers of kind {', '.join(others) or 'none at all'} have no keys that could be scaled")
    for name, layer in found.items():
        if layer.sliding_window is not None:
            raise _refused(f"a sliding window ({layer.sliding_window} tokens, {name}) is not supported")
        if layer.kv_sharing_target_layer_name is not None:
            raise _refused(f"{name} shares keys and values with another layer; they cannot be steered one by one")
        if not getattr(layer.impl, "is_steerable", False):
            raise _refused(
                f"the attention backend {layer.attn_backend.get_name()} is not supported "
                f"(start vLLM with --attention-backend {' or '.join(BACKENDS[1:])})"
            )
    return found


def refuse_architecture(names: Sequence[str]) -> None:
    """Raises `UnsupportedModelError` for a model that the plug-in has not registered."""
    if not any(name in ARCHITECTURES for name in names):
        raise _refused(f"{', '.join(names)} is not supported (supported: {', '.join(ARCHITECTURES)})")


def _refused(reason: str) -> UnsupportedModelError:
    return UnsupportedModelError(f"Heedful cannot steer here: {reason}; {SWITCH}=off takes it out")
