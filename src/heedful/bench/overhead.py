"""Speed and memory of Heedful against transformers' own `generate`, all contenders interleaved in one run.

Ratios are taken round by round, so that a machine whose speed drifts slows both sides alike. EOS is ignored.
"""

from __future__ import annotations

import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from heedful import __version__, data
from heedful.answer import Request, capacity_for, slots_for
from heedful.bench import sequential
from heedful.bench.shapes import random_model
from heedful.checks import finite, whole
from heedful.decode import Decoder
from heedful.directer import Directer
from heedful.engine import Engine
from heedful.errors import SpanError
from heedful.gate import Plausibility
from heedful.generate import load
from heedful.prompt import Instructions, Messages, encode
from heedful.trace import Stats

TASKS = (
    "Plan a weekend in Lisbon for two friends who like food and music.",
    "Explain how a bicycle stays upright to a ten-year-old child.",
    "Write a short letter to a neighbour whose dog barks at night.",
    "Describe the water cycle and why it matters to farmers.",
    "Tell a story about a lighthouse keeper who finds a bottle.",
    "Compare trains and planes for a journey of six hundred kilometres.",
    "Give advice to someone who starts to learn the violin at forty.",
    "Summarise what a central bank does and how it sets interest rates.",
)
INSTRUCTION = "Do not use any commas. Answer in at least 200 words. Highlight two sections with *asterisks*."


@dataclass(frozen=True)
class Settings:
    """What to measure."""

    model: str | None = None
    shape: str | None = None
    gate_rate: float | None = None
    data: str | None = None
    num_prompts: int = 8
    batch: int = 16
    num_tokens: int = 128
    num_rounds: int = 5
    sequential: bool = True
    num_threads: int = 2
    device: str = "cpu"
    dtype: str = "bfloat16"


@dataclass(frozen=True)
class Figure:
    """Median, smallest and largest over the rounds."""

    name: str
    median: float
    low: float
    high: float

    @classmethod
    def of(cls, name: str, values: list[float]) -> Figure:
        """The figure called `name` over `values`."""
        return cls(name, statistics.median(values), min(values), max(values))


@dataclass
class Report:
    """All figures of a run with what is needed to read them."""

    settings: dict[str, Any]
    machine: str
    versions: dict[str, str]
    speeds: list[Figure]
    figures: list[Figure]


@dataclass(frozen=True)
class RateGate(Plausibility):
    """Opens on a fixed share of steps: random weights have no natural rate.

    Only the likeliest token is plausible, so that, as with a trained model, nearly every step ends in a guessed token.
    """

    threshold: float = 0.999
    rate: float = 0.12
    random: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0), compare=False)

    def is_open(self, p_second: float, p_top: float) -> bool:
        """By chance."""
        return bool(torch.rand((), generator=self.random) < self.rate)


@dataclass
class Contest:
    """The contenders on one model."""

    model: Any
    engine: Engine
    settings: Settings
    requests: list[Request]

    def heedful(self, requests: list[Request]) -> tuple[float, list[Stats], int]:
        """Seconds, stats and bytes of storage for `requests` in one batch."""
        begun = time.perf_counter()
        decoder = self._decoder(requests)
        answers = [decoder.submit(request) for request in requests]
        while not decoder.is_idle:
            decoder.step()
        self._wait()
        return time.perf_counter() - begun, [answer.stats for answer in answers], decoder.slots.num_bytes

    def first_token(self, request: Request) -> float:
        """Seconds to the first token."""
        begun = time.perf_counter()
        decoder = self._decoder([request])
        decoder.submit(request)
        while not decoder.step():
            pass
        self._wait()
        return time.perf_counter() - begun

    def transformers(self, requests: list[Request]) -> float:
        """Seconds of `model.generate`, prompts padded on the left."""
        longest = max(len(request.token_ids) for request in requests)
        pads = [longest - len(request.token_ids) for request in requests]
        ids = torch.tensor([[0] * pad + list(r.token_ids) for pad, r in zip(pads, requests, strict=True)])
        mask = torch.tensor([[0] * pad + [1] * (longest - pad) for pad in pads])
        device, count = self.engine.device, self.settings.num_tokens
        begun = time.perf_counter()
        options = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": False}
        self.model.generate(ids.to(device), attention_mask=mask.to(device), pad_token_id=0, **options)
        self._wait()
        return time.perf_counter() - begun

    def sequential(self, requests: list[Request]) -> float:
        """Seconds of the sequential Directer, one prompt after another."""
        begun = time.perf_counter()
        for r in requests:
            sequential.directer(self.model, list(r.token_ids), list(r.positions), max_new_tokens=r.max_new_tokens)
        return time.perf_counter() - begun

    def _decoder(self, requests: list[Request]) -> Decoder:
        capacity = max(capacity_for(request, self.engine.num_layers) for request in requests)
        return Decoder(self.engine, slots_for(requests, len(requests)), capacity)

    def _wait(self) -> None:
        if self.engine.device.type == "cuda":
            torch.cuda.synchronize()


def run(settings: Settings) -> Report:
    """Measures. Raises `OptionError` for settings that make no sense, `ModelError` where the model cannot be had."""
    for name in ("num_prompts", "num_tokens", "num_rounds", "num_threads"):
        whole(name, getattr(settings, name), low=1)
    if settings.gate_rate is not None:
        finite("gate_rate", settings.gate_rate, high=1.0)
    torch.set_num_threads(settings.num_threads)
    contest = prepare(settings)
    singles = contest.requests[: settings.num_prompts]
    many = contest.requests[: settings.batch]
    speeds: dict[str, list[float]] = {}
    figures: dict[str, list[float]] = {}
    _round(contest, singles[:1], many[:2], {}, {})  # warm-up
    for number in range(settings.num_rounds):
        print(f"round {number + 1} of {settings.num_rounds}", file=sys.stderr, flush=True)
        _round(contest, singles, many, speeds, figures)
    return Report(
        settings=asdict(settings),
        machine=machine(settings.num_threads, settings.dtype, settings.device),
        versions={"heedful": __version__, "torch": torch.__version__, "python": platform.python_version()},
        speeds=[Figure.of(name, values) for name, values in speeds.items()],
        figures=[Figure.of(name, values) for name, values in figures.items()],
    )


def _round(
    contest: Contest,
    singles: list[Request],
    many: list[Request],
    speeds: dict[str, list[float]],
    figures: dict[str, list[float]],
) -> None:
    """Every contender once on every prompt, prompt by prompt; adds one value to each figure."""
    seconds: dict[str, float] = {}
    stats: list[Stats] = []
    num_bytes: dict[str, int] = {}

    def clock(name: str, work: Callable[..., float], *arguments: Any) -> None:
        seconds[name] = seconds.get(name, 0.0) + work(*arguments)

    def steered(name: str, requests: list[Request]) -> float:
        spent, counted, num_bytes[name] = contest.heedful(requests)
        if name == "directer":
            stats.extend(counted)
        return spent

    for request in singles:
        plain = as_plain(request)
        clock("transformers", contest.transformers, [plain])
        clock("plain", steered, "plain", [plain])
        clock("directer", steered, "directer", [request])
        if contest.settings.sequential and contest.settings.gate_rate is None:
            clock("sequential", contest.sequential, [request])
        clock("first plain", contest.first_token, plain)
        clock("first directer", contest.first_token, request)
    if contest.settings.batch > 1:
        plains = [as_plain(request) for request in many]
        clock("transformers batch", contest.transformers, plains)
        clock("plain batch", steered, "plain batch", plains)
        clock("directer batch", steered, "directer batch", many)

    for name, spent in seconds.items():
        if not name.startswith("first"):
            count = len(many) if name.endswith("batch") else len(singles)
            speeds.setdefault(name, []).append(count * contest.settings.num_tokens / spent)
    for name, value in _figures(seconds, stats, num_bytes).items():
        figures.setdefault(name, []).append(value)


def _figures(seconds: dict[str, float], stats: list[Stats], num_bytes: dict[str, int]) -> dict[str, float]:
    """What one round's times, steps and storage say of each other."""
    found = {}
    for over, under in RATIOS:
        if over in seconds and under in seconds:
            sign = -1 if over.startswith("first") else 1  # a time to first token is compared as time, not as speed
            found[f"{over} ÷ {under}"] = (seconds[under] / seconds[over]) ** sign
    generated = sum(s.generated_tokens for s in stats)
    found["forward passes per token, directer"] = sum(s.forward_passes for s in stats) / generated
    found["share of steps with the gate open"] = sum(s.gated for s in stats) / generated
    found["key/value bytes, directer ÷ plain"] = num_bytes["directer"] / num_bytes["plain"]
    return found


RATIOS = (
    ("plain", "transformers"),
    ("directer", "transformers"),
    ("directer", "sequential"),
    ("directer", "plain"),
    ("first directer", "first plain"),
    ("directer batch", "plain batch"),
    ("plain batch", "transformers batch"),
)


def as_plain(request: Request) -> Request:
    """The same prompt without steering."""
    return replace(request, recipe=None, positions=(), weights=())


def prepare(settings: Settings) -> Contest:
    """The model and its requests."""
    count = max(settings.num_prompts, settings.batch)
    recipe = Directer().recipe()
    if settings.gate_rate is not None:
        recipe = replace(recipe, gate=RateGate(rate=settings.gate_rate))
    if settings.shape is not None:
        model = random_model(settings.shape, settings.device, settings.dtype)
        ids = torch.randint(10, 10_000, (count, 100), generator=torch.Generator().manual_seed(0)).tolist()
        marked = [(tuple(row), tuple(range(60, 95))) for row in ids]
        engine = Engine(model)
    else:
        lm = load(settings.model, device=settings.device, dtype=settings.dtype)  # type: ignore[arg-type]
        model, engine = lm.model, lm.engine
        encoded = [encode(lm.tokenizer, *prompt) for prompt in prompts(settings.data, count)]
        if not all(prompt.span for prompt in encoded):
            raise SpanError(f"a prompt of {settings.data} marks no instruction: there is nothing to steer")
        marked = [(prompt.token_ids, prompt.span.positions) for prompt in encoded]
    requests = [
        Request(ids, settings.num_tokens, recipe, positions, (1.0,) * len(positions)) for ids, positions in marked
    ]
    return Contest(model, engine, settings, requests)


def prompts(path: str | None, count: int) -> list[tuple[Messages, Instructions]]:
    """The first `count` prompts of a data file, or built-in tasks, over again where there are fewer."""
    if path is None:
        texts: list[tuple[Messages, Instructions]] = [(f"{task}\n\n<heed>{INSTRUCTION}</heed>", None) for task in TASKS]
    else:
        texts = [record.prompt for record in data.read(path, count)]
    return [texts[index % len(texts)] for index in range(count)]


def machine(num_threads: int, dtype: str, device: str) -> str:
    """What was measured on, in words."""
    return f"{_processor()}, {num_threads} threads, {dtype}, {device}"


def _processor() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
