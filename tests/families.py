"""Tiny random float32 models of several families, built from a config: no hub, no tokenizer, milliseconds each.

The weights are drawn wider than transformers' own initialisation, so that attention matters, the text is not one token
repeated, the gate opens at a good part of the steps and steering changes some tokens and is rejected at others. Norms,
biases and sinks are drawn too, so that none of them can be left out unnoticed. No family has an EOS id.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GptOssConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

VOCAB = 128
PROMPT_LENGTH = 20  # longer than every window below
SPAN = tuple(range(12, 18))  # instruction positions that every window still sees as decoding starts

SLIDING, FULL = "sliding_attention", "full_attention"
COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
FIVE_LAYERS = COMMON | {"num_hidden_layers": 5}
GEMMA: dict[str, Any] = {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 12}
EXPERTS: dict[str, Any] = {"head_dim": 16, "num_experts_per_tok": 2}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 150000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 128,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
}

CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": lambda: LlamaConfig(**FIVE_LAYERS),
    "qwen2": lambda: Qwen2Config(**COMMON),
    "qwen3": lambda: Qwen3Config(**COMMON, head_dim=16),
    "mistral": lambda: MistralConfig(**COMMON, head_dim=16, sliding_window=16),
    "gemma2": lambda: Gemma2Config(**COMMON, **GEMMA, attn_logit_softcapping=8.0, final_logit_softcapping=12.0),
    "gemma3": lambda: Gemma3TextConfig(**FIVE_LAYERS, **GEMMA, layer_types=[SLIDING, FULL, SLIDING, FULL, SLIDING]),
    "phi3": lambda: Phi3Config(**COMMON),
    "olmo2": lambda: Olmo2Config(**COMMON),
    "mixtral": lambda: MixtralConfig(**COMMON, **EXPERTS, num_local_experts=4),
    "qwen3_moe": lambda: Qwen3MoeConfig(**COMMON, **EXPERTS, num_experts=4, moe_intermediate_size=48),
    "gpt_oss": lambda: GptOssConfig(
        **COMMON, **EXPERTS, num_local_experts=4, sliding_window=12, rope_parameters=dict(YARN)
    ),
}
NAMES = list(CONFIGS)
EMBEDDING_STD = {"gemma2": 0.125, "gemma3": 0.125}  # Gemma multiplies embeddings by sqrt(hidden_size) = 8; others: 1


def build(name: str, seed: int = 0) -> PreTrainedModel:
    """The family `name` as an evaluation-mode model, the same for the same seed; the global generator is left alone."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(CONFIGS[name](), dtype=torch.float32)
        for path, parameter in model.named_parameters():
            redraw(path, parameter, EMBEDDING_STD.get(name, 1.0))
    return model.eval()


def prompt(seed: int = 0, length: int = PROMPT_LENGTH) -> list[int]:
    """Random token ids."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, VOCAB, (length,), generator=generator).tolist()


def redraw(path: str, parameter: nn.Parameter, embedding_std: float) -> None:
    """Draw one parameter anew, its width by its kind: lm_head decides how peaky the distributions are."""
    if path.endswith("embed_tokens.weight"):
        parameter.normal_(std=embedding_std)
    elif path.endswith("sinks"):
        parameter.normal_(std=1.5)
    elif parameter.ndim == 1 or path.endswith("_bias"):
        parameter.add_(torch.randn_like(parameter), alpha=0.2)
    else:
        gain = 1.5 if path.endswith("lm_head.weight") else 1.0
        parameter.normal_(std=gain * min(parameter.shape[-2:]) ** -0.5)
