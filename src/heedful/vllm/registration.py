"""What vLLM calls in each of its processes as it starts: registers the models and the attention backends."""

from __future__ import annotations

import logging
import os
from functools import cache

from heedful.errors import UnsupportedModelError

PREFIX = "Heedful"
ARCHITECTURES = (
    "GemmaForCausalLM",
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "MixtralForCausalLM",
    "Phi3ForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "Qwen3MoeForCausalLM",
)
BACKENDS = ("CPU_ATTN", "FLASH_ATTN", "TRITON_ATTN")
SWITCH = "HEEDFUL_VLLM"
ANY_VERSION = "HEEDFUL_VLLM_ANY_VERSION"


def is_on() -> bool:
    """Whether the plug-in is to do anything: `HEEDFUL_VLLM=off` leaves vLLM alone."""
    return os.environ.get(SWITCH, "on").lower() not in ("off", "0", "no")


def register() -> None:
    """The `vllm.general_plugins` entry point. Registers by name only: nothing of vLLM's is imported or patched.

    Beside a vLLM that it does not know it does nothing but say so.
    """
    if not is_on():
        return
    from vllm import ModelRegistry, __version__

    from heedful.vllm.support import refuse_version

    try:
        refuse_version(__version__)
    except UnsupportedModelError as error:
        warn(str(error))
        return
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    for arch in ARCHITECTURES:
        ModelRegistry.register_model(arch, f"heedful.vllm.models:{PREFIX}{arch}")
    for name in BACKENDS:
        register_backend(AttentionBackendEnum[name], f"heedful.vllm.backend.{PREFIX}{name}")


@cache
def warn(reason: str) -> None:
    """Says once why nothing is steered here."""
    logging.getLogger("vllm.heedful").warning("no request will be steered: %s", reason)
