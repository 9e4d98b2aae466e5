"""Proof, before an engine's first steered token, that steering steers: on a few made-up tokens in a block no one owns.

Forks and hooks have been known to skip steering in silence. So a factor of 1 must give the raw logits, a factor of 100
in the first layer what the formula says and other logits, and not one stored bit may be another afterwards.
"""

from __future__ import annotations

import logging

import torch

from heedful.errors import UnsupportedModelError
from heedful.sampling import Sampling
from heedful.vllm.arguments import NAME, read
from heedful.vllm.host import Batch, Host
from heedful.vllm.steered import Part

NUM_TOKENS, SPAN, STRENGTH = 8, (2, 5), 100.0


@torch.inference_mode()
def check(host: Host) -> None:
    """Raises `UnsupportedModelError` where the steered pass does not do what it should."""
    layer = host.layers[0]
    device = layer.kv_cache.device
    before = [each.kv_cache[0].clone() for each in host.layers]
    try:
        _check(host, device)
    finally:
        for each, block in zip(host.layers, before, strict=True):
            each.kv_cache[0].copy_(block)
    log = logging.getLogger("vllm.heedful")
    log.info(
        "Heedful steers: %d layers, %s, checked against the raw pass", host.num_layers, layer.attn_backend.get_name()
    )
    if device.type != "cpu":
        log.warning(
            "Heedful's authors had no GPU to test steering on; its self-check has passed here. Compare some answers "
            "with those of `heedful generate`"
        )


def _check(host: Host, device: torch.device) -> None:
    vocab = host.config.model_config.get_vocab_size()
    tokens = (torch.arange(NUM_TOKENS, device=device) * 7 + 1) % vocab
    table = torch.zeros(1, dtype=torch.int32, device=device)
    slots = torch.arange(NUM_TOKENS, device=device)
    host.is_wanted, is_wanted = True, host.is_wanted
    hidden = host.prefill(tokens, table, slots)[-1:]
    host.is_wanted, batch = is_wanted, host.batch()
    if batch is None:
        raise _failed("vLLM's batches are not told of")
    raw = hidden[0].float()
    stored = [layer.kv_cache[0].clone() for layer in host.layers]
    none, everywhere = frozenset[int](), frozenset(range(host.num_layers))
    factors = torch.full((SPAN[1] - SPAN[0],), STRENGTH, device=device)
    part = Part(
        int(tokens[-1]),
        NUM_TOKENS - 1,
        table,
        NUM_TOKENS - 1,
        torch.arange(*SPAN, device=device),
        factors,
        (none, everywhere),
    )
    watched: list[tuple[int, torch.Tensor, torch.Tensor]] = []
    plain, steered = host.forward([part], watched=watched)[:, 0].float()
    close = {torch.float32: 1e-3}.get(host.config.model_config.dtype, 5e-2)
    scale = raw.abs().max()
    reasons = {
        "a steered pass that scales nothing differs from the raw pass": not (plain - raw).abs().max() <= close * scale,
        f"scaling keys by {STRENGTH:g} changes nothing": not (steered - raw).abs().max() > 1e-6 * scale,
        "stored keys or values are not what they were before a steered pass": any(
            not torch.equal(layer.kv_cache[0], block) for layer, block in zip(host.layers, stored, strict=True)
        ),
        "the first layer's steered attention is not what the formula gives": not _is_formula(
            host, slots, factors, watched[0], close
        ),
    }
    # All ranks make all passes, whatever one of them has found: each pass waits for every rank.
    reasons |= _misdecided(host, batch, tokens, hidden, host.forward([part])[1])
    for reason, is_so in reasons.items():
        if is_so:
            raise _failed(reason)


def is_so_anywhere(is_so: bool) -> bool:
    """Whether it is so on any tensor-parallel rank; all must ask."""
    from vllm.distributed.parallel_state import get_tp_group, model_parallel_is_initialized

    if not model_parallel_is_initialized() or get_tp_group().world_size == 1:
        return is_so
    verdict = torch.tensor([int(is_so)])
    torch.distributed.all_reduce(verdict, torch.distributed.ReduceOp.MAX, get_tp_group().cpu_group)
    return bool(verdict)


def _is_formula(
    host: Host, slots: torch.Tensor, factors: torch.Tensor, seen: tuple[int, torch.Tensor, torch.Tensor], close: float
) -> bool:
    """Whether the first layer's output of the steered row is what comes by hand of what is stored."""
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
    return bool((found - expected).abs().max() <= max(close, 1e-3) * expected.abs().max())


def _misdecided(
    host: Host, batch: Batch, tokens: torch.Tensor, raw: torch.Tensor, steered: torch.Tensor
) -> dict[str, bool]:
    """What is wrong, and whether it is so, of decisions on `raw`, `steered (1, hidden)`.

    Of two tokens that are made the likeliest ones, one is so raw and one steered.
    """
    from heedful.vllm.decide import Decider, State

    found = {}
    logits, other = (host.model.compute_logits(hidden).float()[0] for hidden in (raw, steered))
    gain = other - logits
    up, down = int(gain.argmax()), int(gain.argmin())
    middle = float((logits + other)[up] - (logits + other)[down]) / 2
    ahead = float(logits.max() - logits.min() + other.max() - other.min()) + abs(middle)
    bias = {up: ahead - middle, down: ahead}
    for threshold, token in ((0.0, up), (2.0, down)):
        given = {"spans": [SPAN], "prompt_tokens": NUM_TOKENS, "strength": STRENGTH, "threshold": threshold}
        asked = read({NAME: {**given, "method": {"name": "directer", "ranking": list(range(host.num_layers))}}})
        assert asked is not None
        state = State(asked, tokens.tolist(), [], Sampling(), bias, is_masked=False, ends=())
        row = logits.clone()[None]
        for at, more in bias.items():
            row[0, at] += more
        decided = int(Decider(host, {0: state}, counts=False).decide(row, batch).argmax())
        found[f"with a threshold of {threshold:g} another token is decided on than the formula gives"] = (
            decided != token
        )
    return found


def _failed(reason: str) -> UnsupportedModelError:
    return UnsupportedModelError(f"Heedful's self-check failed: {reason}; nothing would be steered as it should")
