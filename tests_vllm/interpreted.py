"""What vLLM runs on GPUs, on a CPU: its V2 model runner and its Triton attention, through Triton's interpreter.

Kernels of FlashAttention have no interpreter; a reference takes their place, so that all around them is vLLM's own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch


def start(folder: Path | None = None) -> None:
    """Before vLLM is imported: it takes Triton for usable, and runs V2.

    `folder`: an empty one, from which Python processes that are begun later learn to do so too.
    """
    if folder is not None:
        (folder / "sitecustomize.py").write_text("import interpreted\n\ninterpreted.start()\n")
        os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), str(Path(__file__).parent)])
    os.environ.update(TRITON_INTERPRET="1", VLLM_USE_V2_MODEL_RUNNER="1")
    from triton.backends import backends

    backends["cpu"] = SimpleNamespace(driver=SimpleNamespace(is_active=lambda: True), compiler=None)
    try:
        import vllm.triton_utils as found
    finally:
        del backends["cpu"]
    assert found.HAS_TRITON
    import vllm.v1.sample.ops.topk_topp_sampler as sampler

    sampler.HAS_TRITON = False  # the interpreter stumbles over this one kernel
    torch.cuda.get_device_capability = lambda *_: (9, 0)  # type: ignore[assignment]


def is_on() -> bool:
    """Whether this is such a run."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@contextmanager
def using(backend: str) -> Iterator[None]:
    """The engines built inside the `with` have this backend, steerable, in the place of the CPU's."""
    from vllm.plugins import load_general_plugins
    from vllm.v1.attention import selector
    from vllm.v1.attention.backends import registry

    load_general_plugins()
    with pytest.MonkeyPatch.context() as patch:
        if backend == "FLASH_ATTN":
            for name, made in FLASH.items():
                patch.setattr(f"vllm.v1.attention.backends.flash_attn.{name}", made, raising=False)
        path = f"heedful.vllm.backend.Heedful{backend}"
        patch.setitem(registry._ATTN_OVERRIDES, registry.AttentionBackendEnum.CPU_ATTN, path)
        selector._cached_get_attn_backend.cache_clear()
        yield
    selector._cached_get_attn_backend.cache_clear()


def attention(**given: Any) -> None:
    """As FlashAttention's `flash_attn_varlen_func` over a paged cache, as far as vLLM uses it here."""
    starts, out = given["cu_seqlens_q"].tolist(), given["out"]
    group = given["q"].shape[1] // given["k"].shape[2]
    for at, length in enumerate(given["seqused_k"].tolist()):
        query = given["q"][starts[at] : starts[at + 1]].float()
        keys, values = (
            given[name][given["block_table"][at].long()].flatten(0, 1)[:length].float().repeat_interleave(group, 1)
            for name in "kv"
        )
        scores = torch.einsum("qhd,khd->hqk", query, keys) * given["softmax_scale"]
        if cap := given["softcap"]:
            scores = torch.tanh(scores / cap) * cap
        rows = torch.arange(length - len(query), length)
        scores = scores.masked_fill(torch.arange(length) > rows[:, None], -torch.inf)
        out[starts[at] : starts[at + 1]] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), values).to(out)


def store(key: Any, value: Any, keys: Any, values: Any, slots: torch.Tensor, *_: Any) -> None:
    """As vLLM's `reshape_and_cache_flash`; a slot below 0 is padding."""
    kept = slots >= 0
    block, inside = slots[kept] // keys.shape[1], slots[kept] % keys.shape[1]
    keys[block, inside], values[block, inside] = key[: len(slots)][kept], value[: len(slots)][kept]


FLASH = {
    "flash_attn_varlen_func": attention,
    "reshape_and_cache_flash": store,
    "get_flash_attn_version": lambda **_: 2,
}
