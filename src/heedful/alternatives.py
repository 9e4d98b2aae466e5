"""The likeliest tokens at a step, raw and steered, for whoever wants to see what steering did there."""

from __future__ import annotations

import torch

from heedful.trace import Alternative


def alternatives(
    raw: torch.Tensor | None, steered: torch.Tensor | None, token: int, count: int
) -> tuple[Alternative, ...]:
    """The `count` likeliest tokens of each distribution and `token` itself, the likeliest first.

    `raw`, `steered`: logits `(vocab,)`, at least one of them given; None where there are none.
    """
    chances = [None if logits is None else logits.float().softmax(-1) for logits in (raw, steered)]
    wanted = {token}
    for p in chances:
        if p is not None:
            wanted |= set(p.topk(min(count, p.shape[-1])).indices.tolist())
    found = [Alternative(one, *(None if p is None else float(p[one]) for p in chances)) for one in wanted]
    return tuple(sorted(found, key=_order))


def _order(one: Alternative) -> tuple[float, float, int]:
    raw, steered = one.p_raw or 0.0, one.p_steered or 0.0
    return (-max(raw, steered), -raw, one.token_id)
