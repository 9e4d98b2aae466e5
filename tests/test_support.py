"""What cannot be steered is refused at load, by a named error that says why."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as tf

import families
from heedful.engine import Engine
from heedful.errors import UnsupportedModelError

TINY = {"vocab_size": 32, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def t5() -> Any:
    sizes = {"d_model": 16, "d_ff": 16, "d_kv": 8, "num_layers": 1, "num_heads": 2, "vocab_size": 32}
    return tf.T5ForConditionalGeneration(tf.T5Config(**sizes))


def mamba() -> Any:
    return tf.MambaForCausalLM(tf.MambaConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1, state_size=4))


def qwen3_next() -> Any:
    common = dict(families.COMMON, head_dim=16, linear_num_value_heads=2, linear_num_key_heads=2)
    experts = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16}
    config = tf.Qwen3NextConfig(**common, **experts, shared_expert_intermediate_size=16)
    return tf.AutoModelForCausalLM.from_config(config)


def gemma3n() -> Any:
    model = families.build("gemma3")
    model.config.num_kv_shared_layers = 2
    return model


def headless() -> Any:
    return families.build("llama").model


def static_cache() -> Any:
    model = families.build("llama")
    model.generation_config.cache_implementation = "static"
    return model


def dynamic_rope() -> Any:
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    return tf.LlamaForCausalLM(tf.LlamaConfig(**families.COMMON, rope_parameters=rope))


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (t5, "encoder–decoder"),
        (mamba, "interface|layers"),
        (qwen3_next, "linear_attention"),
        (gemma3n, "shares keys"),
        (headless, "language-model head"),
        (static_cache, "cache_implementation"),
        (dynamic_rope, "rotary"),
    ],
)
def test_refused(build: Callable[[], Any], reason: str) -> None:
    with torch.random.fork_rng(devices=[]), pytest.raises(UnsupportedModelError, match=reason) as caught:
        Engine(build())
    assert "\n" not in str(caught.value)
