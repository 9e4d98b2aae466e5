"""How many tokens a slot of a long-lived decoder holds, and the memory that all slots take, told beforehand."""

from __future__ import annotations

from dataclasses import dataclass

import psutil
import torch

from heedful.answer import Request, capacity_for
from heedful.engine import Engine
from heedful.errors import OptionError

SHARE = 0.5  # of what memory is free, for keys and values
SMALLEST = 256
USUAL = 4096  # tokens, where nobody says how many: all slots are reserved at start


@dataclass(frozen=True)
class Storage:
    """`num_slots` slots for prompts and answers of `context` tokens: `capacity` columns each, `num_bytes` in all."""

    num_slots: int
    context: int
    capacity: int
    num_bytes: int


def plan(engine: Engine, num_slots: int, context: int | None, free: int | None = None) -> Storage:
    """Slots of `context` tokens; for None of the model's own, at most 4096, as far as half the free memory goes.

    `free`: bytes to reckon with; None asks the device. Raises `OptionError` where the model reads less than is asked
    for, or the memory is too small.
    """
    if context is not None and engine.context_length is not None and context > engine.context_length:
        raise OptionError(f"the model's context is {engine.context_length} tokens, not {context}")
    budget = int(SHARE * (free_bytes(engine.device) if free is None else free))
    wanted = min(USUAL, engine.context_length or USUAL) if context is None else context
    found = sized(engine, num_slots, wanted)
    if found.num_bytes <= budget:
        return found
    fitting = budget // (bytes_per_token(engine) * num_slots) - (found.capacity - wanted)
    fitting = fitting // 64 * 64
    if context is None and fitting >= SMALLEST:
        return sized(engine, num_slots, fitting)
    raise OptionError(
        f"{num_slots} slots of {wanted} tokens need {gib(found.num_bytes)} for keys and values, and half of the free "
        f"memory is {gib(budget)}; choose a smaller --max-batch or --max-context"
    )


def sized(engine: Engine, num_slots: int, context: int) -> Storage:
    """The storage for that context, whatever the memory."""
    whole_prompt = Request((0,) * max(1, context - 1), 1)
    capacity = capacity_for(whole_prompt, engine.num_layers)
    return Storage(num_slots, context, capacity, capacity * num_slots * bytes_per_token(engine))


def bytes_per_token(engine: Engine) -> int:
    """Bytes of keys and values that one token takes in all layers."""
    return sum(s.kv_heads * (s.key_dim + s.value_dim) * s.dtype.itemsize for s in engine.shapes)


def free_bytes(device: torch.device) -> int:
    """Memory that is free now where the model is."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def gib(num_bytes: int) -> str:
    """Bytes for people."""
    return f"{num_bytes / 2**30:.2f} GiB"
