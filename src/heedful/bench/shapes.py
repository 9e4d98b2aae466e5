"""Random weights in the shape of well-known models, for measuring speed where their weights cannot be had."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, Qwen2Config

from heedful.checks import choice

LLAMA = {"vocab_size": 128_256, "num_key_value_heads": 8, "max_position_embeddings": 131_072, "rms_norm_eps": 1e-5}
QWEN = {"max_position_embeddings": 32_768, "rms_norm_eps": 1e-6}


def _shape(
    kind: Callable[..., PreTrainedConfig], common: dict[str, Any], sizes: tuple[int, int, int, int], **more: Any
) -> PreTrainedConfig:
    hidden, inner, layers, heads = sizes
    return kind(
        **{**common, **more},
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
    )


SHAPES: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama-3.2-1b": lambda: _shape(LlamaConfig, LLAMA, (2048, 8192, 16, 32), tie_word_embeddings=True),
    "llama-3.1-8b": lambda: _shape(LlamaConfig, LLAMA, (4096, 14_336, 32, 32)),
    "qwen2.5-7b": lambda: _shape(Qwen2Config, QWEN, (3584, 18_944, 28, 28), vocab_size=152_064, num_key_value_heads=4),
    "qwen2.5-14b": lambda: _shape(Qwen2Config, QWEN, (5120, 13_824, 48, 40), vocab_size=152_064, num_key_value_heads=8),
}


def random_model(shape: str, device: str, dtype: str) -> Any:
    """A model of that shape with small random weights. Raises `OptionError` for an unknown shape."""
    choice("shape", shape, tuple(SHAPES))
    choice("dtype", dtype, ("float32", "bfloat16", "float16"))
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            SHAPES[shape](), dtype=getattr(torch, dtype)
        )
    return model.eval()
