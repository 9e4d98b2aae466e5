"""`heedful batch`: answers every row of a file, here or on a Ray cluster."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from heedful.checks import whole
from heedful.cli import options
from heedful.methods import parse_methods
from heedful.sampling import Sampling

TOLD = 10  # failures that are shown one by one


def command(
    file: Annotated[Path, typer.Argument(metavar="IN.jsonl", help="Rows: messages, or a prompt; and instructions.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the answers: a file a method.")],
    methods: Annotated[
        str | None,
        typer.Option("--methods", "--method", help="Separated by commas, as in `heedful compare`; else directer."),
    ] = None,
    settings: options.SettingsFile = None,
    instruction: options.Marked = None,
    auto: options.Auto = False,
    limit: Annotated[int | None, typer.Option(help="Only the first rows.")] = None,
    max_new_tokens: options.NewTokens = None,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_k: Annotated[int, typer.Option(help="0 keeps all.")] = 0,
    top_p: Annotated[float, typer.Option(help="1 keeps all.")] = 1.0,
    seed: Annotated[int, typer.Option(help="For sampling; each row draws from random numbers of its own.")] = 0,
    stop: Annotated[list[str] | None, typer.Option(help="Ends the answer. May be repeated.")] = None,
    batch: Annotated[int, typer.Option(help="Answers at a time, of each replica.")] = 16,
    engine: Annotated[str, typer.Option(help="transformers, or vllm.")] = "transformers",
    ray: options.RayAddress = None,
    replicas: options.Replicas = 1,
    cpus: options.Cpus = None,
    model: options.Model = None,
    device: options.Device = "cpu",
    dtype: options.Dtype = "auto",
) -> None:
    """Answer every row of IN.jsonl; the same command goes on where it was stopped.

    -i and --auto are for rows that bring no instructions of their own.
    """
    from heedful.batch import Asked, Plan, Source, rows

    whole("batch", batch, low=1)
    if limit is not None:
        whole("limit", limit, low=1)
    options.needs_ray(ray, replicas, cpus)
    source = Source(model, device, dtype, engine)
    asked = Asked(
        parse_methods(",".join(filter(None, (methods, f"@{settings}" if settings else None))) or "directer"),
        max_new_tokens,
        Sampling(temperature, top_k, top_p, seed),
        tuple(stop or ()),
        options.instructions(instruction, auto),
    )
    plan = Plan(rows(file, limit), asked, out, engine)
    summary = _here(plan, source, batch) if ray is None else _there(plan, source, batch, ray, replicas, cpus)
    for name, line, why in summary.failed[:TOLD]:
        print(f"heedful: {name}: line {line}: {why}", file=sys.stderr)
    if len(summary.failed) > TOLD:
        print(f"heedful: {len(summary.failed) - TOLD} more have no answer; their `error` says why", file=sys.stderr)
    print(f"{summary.num_answered} answers, {len(summary.failed)} failures: {out}")


def _here(plan: Any, source: Any, batch: int) -> Any:
    from heedful.batch import answers

    model = source.open()
    return _watched(plan, model.facts(), partial(answers, model, plan.asked, batch=batch))


def _there(plan: Any, source: Any, batch: int, address: str, replicas: int, cpus: float | None) -> Any:
    from heedful.ray.cluster import connected, place
    from heedful.ray.pool import Pool, answered

    with connected(address):
        pool = Pool(source, replicas, place(replicas, source.device, cpus))
        return _watched(plan, pool.facts, partial(answered, pool, plan.asked, batch))


def _watched(plan: Any, facts: Any, answered: Any) -> Any:
    """Runs the plan under a bar a method."""
    from heedful.batch import run
    from heedful.data import Record

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True, highlight=False)) as bar:
        total = sum(isinstance(row, Record) for row in plan.rows)
        bars = {name: bar.add_task(name, total=total) for name in plan.asked.methods}
        return run(plan, facts, answered, lambda name, done: bar.update(bars[name], completed=done))
