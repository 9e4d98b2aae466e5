"""vLLM's own models, each with a host of its own: `Heedful<Arch>`, built when vLLM asks for one."""

from __future__ import annotations

import importlib
from typing import Any

from heedful.vllm.host import Host
from heedful.vllm.registration import PREFIX


def _wrapped(arch: str) -> type[Any]:
    from vllm.model_executor.models.registry import _TEXT_GENERATION_MODELS

    module, name = _TEXT_GENERATION_MODELS[arch]
    base: type[Any] = getattr(importlib.import_module(f"vllm.model_executor.models.{module}"), name)

    class Wrapped(base):
        def __init__(self, *, vllm_config: Any, prefix: str = "", **more: Any) -> None:
            super().__init__(vllm_config=vllm_config, prefix=prefix, **more)
            self.heedful = Host(self, vllm_config)

        def forward(self, input_ids: Any, positions: Any, *args: Any, **kwargs: Any) -> Any:
            self.heedful.note_tokens(input_ids)
            return super().forward(input_ids, positions, *args, **kwargs)

    Wrapped.__name__ = Wrapped.__qualname__ = PREFIX + arch
    Wrapped.__module__ = __name__
    return Wrapped


def __getattr__(name: str) -> Any:
    if not name.startswith(PREFIX):
        raise AttributeError(name)
    found = globals()[name] = _wrapped(name.removeprefix(PREFIX))
    return found
