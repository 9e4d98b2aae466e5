"""Speeds up a model's own modules on a CPU: packed weights, fused projections, one-kernel norms.

Decoding one token is bound by reading weights, and oneDNN reads them twice as fast from its own blocked layout. The
model's layers still run as transformers wrote them; only the `forward` of leaf modules is swapped, for the length of a
forward. A swap is made only where the module is plain and agrees with the original on a random input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch import nn
from torch.nn import functional as F

from heedful.engine.attention import LayerCall, attention

Forward = Callable[..., Any]
# Attention blocks that are nothing but q, k, v, rotary embedding, attention and o.
PLAIN_ATTENTION = {"LlamaAttention", "MistralAttention", "MixtralAttention", "Qwen2Attention"}
BATCH_HINT = 4  # rows that oneDNN chooses the layout for; measured: 1 to 64 make no difference


@dataclass
class Preparation:
    """The swapped forwards of one model, and what tells that they are out of date."""

    model: nn.Module
    calls: list[tuple[nn.Module, LayerCall]]
    swaps: list[tuple[nn.Module, Forward, tuple[nn.Module, ...]]]
    """Module, its new forward, and the children that the new forward bypasses."""
    seals: list[tuple[torch.Tensor, int, int]]

    @classmethod
    def of(cls, model: nn.Module, calls: list[tuple[nn.Module, LayerCall]], wanted: bool | None) -> Preparation | None:
        """Prepares `model`, or None where that is impossible, not wanted, or does not fit into memory."""
        linears: list[Any] = [m for m in model.modules() if is_plain_linear(m)]
        if wanted is False or not linears or not can_pack(linears[0].weight):
            return None
        num_bytes = sum(m.weight.nbytes for m in linears)
        if wanted is None and num_bytes * 1.5 > psutil.virtual_memory().available:
            return None
        swaps = dict(_swaps(model, calls))
        seals: list[tuple[torch.Tensor, int, int]] = [
            (p, p._version, p.data_ptr()) for m in swaps for p in m.parameters()
        ]
        return cls(model, calls, [(m, f, tuple(m.modules())[1:]) for m, f in swaps.items()], seals)

    def install(self) -> None:
        """Swaps the forwards in; packs again first if a weight changed since."""
        if any(p._version != version or p.data_ptr() != at for p, version, at in self.seals):
            fresh = Preparation.of(self.model, self.calls, True)
            self.swaps, self.seals = (fresh.swaps, fresh.seals) if fresh else ([], [])
        for module, forward, bypassed in self.swaps:
            if not any(child._forward_hooks or child._forward_pre_hooks for child in bypassed):
                module.__dict__["forward"] = forward

    def remove(self) -> None:
        """Gives every module its own forward back."""
        for module, forward, _ in self.swaps:
            if module.__dict__.get("forward") is forward:
                del module.__dict__["forward"]


def can_pack(weight: torch.Tensor) -> bool:
    """Whether oneDNN keeps weights of this dtype and device in a layout of its own."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return weight.dtype == torch.bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def is_untouched(module: nn.Module) -> bool:
    """Whether no one else (accelerate, PEFT, a user) has put a forward or hooks on it."""
    return "forward" not in module.__dict__ and not (module._forward_hooks or module._forward_pre_hooks)


def is_plain_linear(module: Any) -> bool:
    """Whether it is `nn.Linear` itself with an ordinary weight: no quantised tensor, no adapter."""
    return type(module) is nn.Linear and type(module.weight) is nn.Parameter and is_untouched(module)


def _swaps(model: nn.Module, calls: list[tuple[nn.Module, LayerCall]]) -> Iterable[tuple[nn.Module, Forward]]:
    covered: set[nn.Module] = set()
    with torch.no_grad():
        block: Any
        for block, call in calls:
            if type(block).__name__ in PLAIN_ATTENTION and is_untouched(block):
                parts = [block.q_proj, block.k_proj, block.v_proj, block.o_proj]
                if all(map(is_plain_linear, parts)):
                    covered.update(parts)
                    yield block, fused_attention(block, call)
        for module in model.modules():
            forward = _leaf_forward(module, covered)
            if forward is not None:
                yield module, forward


def _leaf_forward(module: Any, covered: set[nn.Module]) -> Forward | None:
    if not is_untouched(module) or module in covered:
        return None
    if all(is_plain_linear(getattr(module, name, None)) for name in ("gate_proj", "up_proj", "down_proj")):
        candidate, width = fused_mlp(module), module.gate_proj.in_features
        if _agrees(module, candidate, int(width)):
            covered.update((module.gate_proj, module.up_proj, module.down_proj))
            return candidate
    if is_plain_linear(module):
        return packed([module])
    if type(module).__name__.endswith("RMSNorm") and isinstance(getattr(module, "weight", None), nn.Parameter):
        candidate = fused_norm(module)
        return candidate if _agrees(module, candidate, module.weight.shape[-1]) else None
    return None


def _agrees(module: nn.Module, candidate: Forward, width: int) -> bool:
    """Whether both give the same on random rows, within the dtype's rounding."""
    weight = next(module.parameters())
    sample = torch.randn(1, 4, width, generator=torch.Generator().manual_seed(0)).to(weight.dtype)
    ours, theirs = candidate(sample).float(), module(sample).float()
    return bool(torch.linalg.norm(ours - theirs) <= 1e-2 * torch.linalg.norm(theirs))


def packed(layers: list[nn.Linear]) -> Callable[[torch.Tensor], torch.Tensor]:
    """One linear map that gives the outputs of all `layers` side by side."""
    weight = torch.cat([layer.weight.detach() for layer in layers]).contiguous()
    biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
    bias = torch.cat(biases) if len(biases) == len(layers) else None
    blocked = torch.ops.mkldnn._reorder_linear_weight(weight, BATCH_HINT)
    run = torch.ops.mkldnn._linear_pointwise.default

    def forward(x: torch.Tensor) -> torch.Tensor:
        if x.numel() == 0:
            return x.new_zeros(*x.shape[:-1], weight_rows)
        result: torch.Tensor = run(x, blocked, bias, "none", [], "")
        return result

    weight_rows = weight.shape[0]
    return forward


def fused_mlp(module: Any) -> Forward:
    """`down(act(gate(x)) · up(x))` with gate and up in one product."""
    gate_up, down = packed([module.gate_proj, module.up_proj]), packed([module.down_proj])
    act, width = module.act_fn, module.gate_proj.out_features

    def forward(x: torch.Tensor) -> torch.Tensor:
        both = gate_up(x)
        return down(act(both[..., :width]).mul_(both[..., width:]))

    return forward


def fused_norm(module: Any) -> Forward:
    """PyTorch's own RMS norm, one kernel in place of a chain of six."""
    weight = module.weight.detach()
    epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", 1e-6))
    return lambda x: F.rms_norm(x, weight.shape, weight, epsilon)


def fused_attention(module: Any, call: LayerCall) -> Forward:
    """An attention block with one product for q, k and v, and one rotation for q and k together."""
    project, output = packed([module.q_proj, module.k_proj, module.v_proj]), packed([module.o_proj])
    width = module.head_dim
    num_heads, num_kv_heads = module.q_proj.out_features // width, module.k_proj.out_features // width
    rotated = num_heads + num_kv_heads

    def forward(
        hidden_states: torch.Tensor, position_embeddings: tuple[torch.Tensor, torch.Tensor], **kwargs: Any
    ) -> tuple[torch.Tensor, None]:
        count = hidden_states.shape[1]
        heads = project(hidden_states).view(count, rotated + num_kv_heads, width)
        both = rotate(heads[:, :rotated], *position_embeddings)
        q, k = both[:, :num_heads].transpose(0, 1), both[:, num_heads:].transpose(0, 1)
        v = heads[:, rotated:].transpose(0, 1)
        out, _ = attention(module, q[None], k[None], v[None], None, scaling=call.scaling, sliding_window=call.window)
        return output(out.reshape(1, count, -1)), None

    return forward


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of `x (tokens, heads, dim)` by `cos`, `sin (1, tokens, dim)`."""
    half = x.shape[-1] // 2
    cos, sin = cos[0, :, None], sin[0, :, None]
    out = x * cos
    out[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-1)
    out[..., half:].addcmul_(x[..., :half], sin[..., half:])
    return out
