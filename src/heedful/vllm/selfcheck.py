"""Proof, before the first token of an engine, that steering steers: on a few made-up tokens in a block no one owns.

Forks and hooks have been known to skip steering in silence. Three things are asked for: a factor of 1 gives the raw
logits, a factor of 100 gives in the first layer what the formula says and other logits, and not one stored bit is
another afterwards.
"""

from __future__ import annotations

import logging
from typing import Any

import torch

from heedful.errors import UnsupportedModelError
from heedful.vllm.steered import Part

NUM_TOKENS, SPAN, STRENGTH = 8, (2, 5), 100.0


@torch.inference_mode()
def check(host: Any) -> None:
    """Raises `UnsupportedModelError` where the steered pass does not do what it should."""
    layer = host.layers[0]
    device = layer.kv_cache.device
    before = [each.kv_cache[0].clone() for each in host.layers]
    try:
        _check(host, device)
    finally:
        for each, block in zip(host.layers, before, strict=True):
            each.kv_cache[0].copy_(block)
    logging.getLogger("vllm.heedful").info(
        "Heedful steers: %d layers, %s, checked against the raw pass", host.num_layers, layer.attn_backend.get_name()
    )


def _check(host: Any, device: torch.device) -> None:
    vocab = host.config.model_config.get_vocab_size()
    tokens = (torch.arange(NUM_TOKENS, device=device) * 7 + 1) % vocab
    table = torch.zeros(1, dtype=torch.int32, device=device)
    slots = torch.arange(NUM_TOKENS, device=device)
    raw = host.prefill(tokens, table, slots)[-1].float()
    stored = [layer.kv_cache[0].clone() for layer in host.layers]
    none, everywhere = frozenset[int](), frozenset(range(host.num_layers))
    factors = torch.full((SPAN[1] - SPAN[0],), STRENGTH, device=device)
    part = Part(
        int(tokens[-1]), NUM_TOKENS - 1, table, NUM_TOKENS - 1, slots[SPAN[0] : SPAN[1]], factors, (none, everywhere)
    )
    watched: list[tuple[int, torch.Tensor, torch.Tensor]] = []
    plain, steered = host.forward([part], watched=watched)[:, 0].float()
    close = {torch.float32: 1e-3}.get(host.config.model_config.dtype, 5e-2)
    scale = raw.abs().max()
    if not (plain - raw).abs().max() <= close * scale:
        raise _failed("a steered pass that scales nothing differs from the raw pass")
    if not (steered - raw).abs().max() > 1e-6 * scale:
        raise _failed(f"scaling keys by {STRENGTH:g} changes nothing")
    if any(not torch.equal(layer.kv_cache[0], block) for layer, block in zip(host.layers, stored, strict=True)):
        raise _failed("stored keys or values are not what they were before a steered pass")
    _check_formula(host, slots, factors, watched[0], close)


def _check_formula(
    host: Any, slots: torch.Tensor, factors: torch.Tensor, seen: tuple[int, torch.Tensor, torch.Tensor], close: float
) -> None:
    """The first layer's output of the steered row, computed by hand from what is stored."""
    _, query, output = seen
    layer = host.layers[0]
    keys, values = (tensor.float() for tensor in host.layout.read(layer.kv_cache, slots))
    keys[SPAN[0] : SPAN[1]] *= factors[:, None, None]
    group = layer.num_heads // layer.num_kv_heads
    keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
    scores = torch.einsum("hd,thd->ht", query[1].float(), keys) * layer.impl.scale
    cap = getattr(layer.impl, "logits_soft_cap", None)
    if cap:
        scores = torch.tanh(scores / cap) * cap
    expected = torch.einsum("ht,thd->hd", scores.softmax(-1), values)
    found = output[1].float().view_as(expected)
    if not (found - expected).abs().max() <= max(close, 1e-3) * expected.abs().max():
        raise _failed("the first layer's steered attention is not what the formula gives")


def _failed(reason: str) -> UnsupportedModelError:
    return UnsupportedModelError(f"Heedful's self-check failed: {reason}; nothing would be steered as it should")
