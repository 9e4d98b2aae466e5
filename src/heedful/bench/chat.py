"""Time to the first token, turn by turn: a conversation that keeps what it has read against one that reads it anew."""

from __future__ import annotations

import platform
import sys
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from heedful import __version__
from heedful.answer import capacity_for
from heedful.bench import overhead
from heedful.bench.overhead import TASKS, Figure, Report
from heedful.chat import Chat
from heedful.checks import whole
from heedful.decode import Decoder
from heedful.generate import LM, load

SYSTEM = "You are a helpful guide. Never use commas. Answer in at most three sentences."


@dataclass(frozen=True)
class Settings:
    """What to measure."""

    model: str | None = None
    num_turns: int = 10
    num_tokens: int = 64
    num_rounds: int = 3
    num_threads: int = 2
    device: str = "cpu"
    dtype: str = "bfloat16"


def run(settings: Settings) -> Report:
    """Measures: both conversations take each turn in turn, so that a slow moment meets both. Raises `OptionError`."""
    for name in ("num_turns", "num_tokens", "num_rounds", "num_threads"):
        whole(name, getattr(settings, name), low=1)
    torch.set_num_threads(settings.num_threads)
    lm = load(settings.model, device=settings.device, dtype=settings.dtype)  # type: ignore[arg-type]
    _conversation(lm, settings, 1)  # warm-up
    kept: list[list[float]] = []
    fresh: list[list[float]] = []
    for number in range(settings.num_rounds):
        print(f"round {number + 1} of {settings.num_rounds}", file=sys.stderr, flush=True)
        seconds, seconds_anew = _conversation(lm, settings, settings.num_turns)
        kept.append(seconds)
        fresh.append(seconds_anew)
    turns = range(settings.num_turns)
    return Report(
        settings=asdict(settings),
        machine=overhead.machine(settings.num_threads, settings.dtype, settings.device),
        versions={"heedful": __version__, "torch": torch.__version__, "python": platform.python_version()},
        speeds=[],
        figures=[
            *(Figure.of(f"seconds to the first token, turn {turn + 1}", [one[turn] for one in kept]) for turn in turns),
            *(
                Figure.of(f"turn {turn + 1} ÷ read anew", [a[turn] / b[turn] for a, b in zip(kept, fresh, strict=True)])
                for turn in turns
            ),
        ],
    )


def _conversation(lm: LM, settings: Settings, num_turns: int) -> tuple[list[float], list[float]]:
    """Seconds to the first token of each turn: in a conversation, and of the same turn read from its beginning.

    Both know the same rankings. Storage to read anew into is there before the clock starts; that of the conversation
    grows while it runs.
    """
    chat = Chat(lm, system=SYSTEM, max_new_tokens=settings.num_tokens)
    kept, fresh = [], []
    for turn in range(num_turns):
        text = TASKS[turn % len(TASKS)]
        fresh.append(_first_token(_unread(chat, text), text, finish=False))
        kept.append(_first_token(chat, text, finish=True))
    return kept, fresh


def _unread(chat: Chat, text: str) -> Chat:
    """The same conversation, of which nothing was read, with room for `text` and its answer."""
    anew = chat.fork()
    anew._origin = None
    job = chat.job()
    prompt = [*job.prompt, {"role": "user", "content": text}]
    request = chat.lm.request(replace(job, prompt=prompt))
    capacity = capacity_for(request, chat.lm.engine.num_layers)
    anew._decoder = Decoder(chat.lm.engine, request.num_slots, capacity, reuses_prefixes=True)
    return anew


def _first_token(chat: Chat, text: str, *, finish: bool) -> float:
    begun = time.perf_counter()
    events: Any = chat.stream(text)
    next(events)
    seconds = time.perf_counter() - begun
    if finish:
        for _ in events:
            pass
    events.close()
    return seconds
