"""Speed of every method against plain decoding, and the memory of a long prompt whose prefill is edited.

Ratios are taken round by round, all methods interleaved. EOS is ignored.
"""

from __future__ import annotations

import multiprocessing
import platform
import resource
import sys
from dataclasses import asdict, replace
from typing import Any

import torch

from heedful import __version__
from heedful.answer import Request
from heedful.bench import overhead
from heedful.bench.overhead import Contest, Figure, Report, Settings, as_plain, prepare
from heedful.checks import whole
from heedful.engine import Engine
from heedful.methods import NAMES, method_by_name
from heedful.recipe import Recipe

EDITS_PREFILL = ("pasta", "spotlight", "instaboost")


def run(settings: Settings, *, profile: str | None = None, long_prompt: int = 16_384) -> Report:
    """Measures. `profile`: PASTA's heads. `long_prompt`: tokens of the prompt whose memory is measured, 0 for none.

    Raises `OptionError` for settings that make no sense, `ModelError` where the model cannot be had.
    """
    for name in ("num_prompts", "batch", "num_tokens", "num_rounds", "num_threads"):
        whole(name, getattr(settings, name), low=1)
    if long_prompt:
        whole("long_prompt", long_prompt, low=256)
    # First of all: a child's peak is not below what this process held when it was started.
    peaks = memory(settings, profile, long_prompt) if long_prompt else []
    torch.set_num_threads(settings.num_threads)
    contest = prepare(settings)
    recipes = {name: recipe_of(name, contest.engine, profile) for name in NAMES}
    singles, many = contest.requests[: settings.num_prompts], contest.requests[: settings.batch]
    speeds: dict[str, list[float]] = {}
    _round(contest, recipes, singles[:1], many[:2])  # warm-up
    for number in range(settings.num_rounds):
        print(f"round {number + 1} of {settings.num_rounds}", file=sys.stderr, flush=True)
        for name, speed in _round(contest, recipes, singles, many).items():
            speeds.setdefault(name, []).append(speed)
    figures = [
        Figure.of(f"{name} ÷ none, {label}", ratios(speeds, f"{name}, {label}", f"none, {label}"))
        for label in dict.fromkeys(("batch 1", f"batch {settings.batch}"))
        for name in NAMES
        if name != "none"
    ]
    figures += peaks
    return Report(
        settings={**asdict(settings), "profile": profile, "long_prompt": long_prompt},
        machine=overhead.machine(settings.num_threads, settings.dtype, settings.device),
        versions={"heedful": __version__, "torch": torch.__version__, "python": platform.python_version()},
        speeds=[Figure.of(name, values) for name, values in speeds.items()],
        figures=figures,
    )


def recipe_of(name: str, engine: Engine, profile: str | None) -> Recipe | None:
    """The recipe of the method called `name`; PASTA without a profile steers 25 heads all over the model."""
    options: dict[str, Any] = {}
    if name.startswith("pasta"):
        options = {"profile": profile} if profile is not None else {"heads": _spread(engine)}
    method = method_by_name(name, options)
    return None if method is None else method.recipe()


def _spread(engine: Engine, count: int = 25) -> dict[int, list[int]]:
    total = engine.shape.num_layers * engine.shape.num_heads
    heads: dict[int, list[int]] = {}
    for index in range(count):
        layer, head = divmod(index * total // count, engine.shape.num_heads)
        heads.setdefault(layer, []).append(head)
    return heads


def _round(
    contest: Contest, recipes: dict[str, Recipe | None], singles: list[Request], many: list[Request]
) -> dict[str, float]:
    """Tokens per second of every method, at batch 1 and in one batch."""
    seconds: dict[str, float] = {}
    for request in singles:
        for name, recipe in recipes.items():
            label = f"{name}, batch 1"
            seconds[label] = seconds.get(label, 0.0) + contest.heedful([steered(request, recipe)])[0]
    found = {label: len(singles) * contest.settings.num_tokens / spent for label, spent in seconds.items()}
    for name, recipe in recipes.items() if contest.settings.batch > 1 else ():
        spent = contest.heedful([steered(request, recipe) for request in many])[0]
        found[f"{name}, batch {contest.settings.batch}"] = len(many) * contest.settings.num_tokens / spent
    return found


def steered(request: Request, recipe: Recipe | None) -> Request:
    """The request under another method."""
    return as_plain(request) if recipe is None else replace(request, recipe=recipe)


def ratios(speeds: dict[str, list[float]], over: str, under: str) -> list[float]:
    """Round by round."""
    return [a / b for a, b in zip(speeds[over], speeds[under], strict=True)]


def memory(settings: Settings, profile: str | None, long_prompt: int) -> list[Figure]:
    """Peak memory of a long prompt's prefill, edited ÷ plain; each in a process of its own."""
    context = multiprocessing.get_context("spawn")
    peaks = {}
    for name in ("none", *EDITS_PREFILL):
        print(f"memory of {long_prompt} tokens, {name}", file=sys.stderr, flush=True)
        with context.Pool(1) as pool:
            peaks[name] = pool.apply(peak_bytes, (settings, name, profile, long_prompt))
    label = f"peak memory of a {long_prompt}-token prefill"
    return [Figure.of(f"{label}, {name} ÷ none", [peaks[name] / peaks["none"]]) for name in EDITS_PREFILL]


def peak_bytes(settings: Settings, name: str, profile: str | None, long_prompt: int) -> int:
    """Most memory that this process ever held (on CUDA: that the device did) for one long prompt and one token."""
    torch.set_num_threads(settings.num_threads)
    contest = prepare(replace(settings, num_prompts=1, batch=1, num_tokens=1))
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(10, 10_000, (long_prompt,), generator=generator).tolist()
    middle = long_prompt // 2
    positions = tuple(range(middle, middle + 64))
    recipe = recipe_of(name, contest.engine, profile)
    request = Request(tuple(ids), 1, recipe, positions, (1.0,) * len(positions))
    contest.heedful([steered(request, recipe)])
    if contest.engine.device.type == "cuda":
        return int(torch.cuda.max_memory_allocated())
    kilobytes = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kilobytes
