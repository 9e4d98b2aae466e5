"""`heedful bench`: speed and memory, measured against others in the same run."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from heedful.cli import options
from heedful.errors import OptionError

if TYPE_CHECKING:
    from heedful.bench.overhead import Report

Shape = Annotated[str | None, typer.Option(help="Random weights of that shape instead, e.g. llama-3.1-8b.")]
Data = Annotated[Path | None, typer.Option(help="JSONL of prompts with marked instructions; else built-in ones.")]
Prompts = Annotated[int, typer.Option(help="Prompts at batch 1.")]
Batch = Annotated[int, typer.Option(help="The larger batch.")]
Tokens = Annotated[int, typer.Option(help="New tokens a prompt, EOS ignored.")]
Rounds = Annotated[int, typer.Option(help="Interleaved rounds.")]
Threads = Annotated[int, typer.Option(help="CPU threads.")]

app = typer.Typer(no_args_is_help=True, help="Measure speed and memory.")


@app.callback()
def benches() -> None:
    """Measure speed and memory."""


@app.command()
def overhead(
    model: options.Model = None,
    shape: Shape = None,
    gate_rate: Annotated[float | None, typer.Option(help="Open the gate on this share of steps.")] = None,
    data: Data = None,
    prompts: Prompts = 8,
    batch: Batch = 16,
    tokens: Tokens = 128,
    rounds: Rounds = 5,
    sequential: Annotated[bool, typer.Option(help="Also the slow sequential Directer.")] = True,
    threads: Threads = 2,
    device: options.Device = "cpu",
    dtype: options.Dtype = "bfloat16",
    as_json: options.Json = False,
) -> None:
    """Directer and plain decoding against transformers' own generate, interleaved in one run."""
    from heedful.bench.overhead import Settings, run

    path = str(data) if data is not None else None
    settings = Settings(
        model=model,
        shape=shape,
        gate_rate=gate_rate,
        data=path,
        num_prompts=prompts,
        batch=batch,
        num_tokens=tokens,
        num_rounds=rounds,
        sequential=sequential,
        num_threads=threads,
        device=device,
        dtype=dtype,
    )
    _show(run(settings), as_json)


@app.command()
def methods(
    model: options.Model = None,
    shape: Shape = None,
    data: Data = None,
    profile: Annotated[str | None, typer.Option(help="pasta: file of heads; else 25 heads all over the model.")] = None,
    prompts: Prompts = 2,
    batch: Batch = 16,
    tokens: Tokens = 64,
    rounds: Rounds = 5,
    long_prompt: Annotated[int, typer.Option(help="Tokens of the prompt whose memory is measured; 0: none.")] = 16_384,
    threads: Threads = 2,
    device: options.Device = "cpu",
    dtype: options.Dtype = "bfloat16",
    as_json: options.Json = False,
) -> None:
    """Every method against plain decoding, with and without the gate, interleaved in one run."""
    from heedful.bench.methods import run
    from heedful.bench.overhead import Settings

    path = str(data) if data is not None else None
    settings = Settings(
        model=model,
        shape=shape,
        data=path,
        num_prompts=prompts,
        batch=batch,
        num_tokens=tokens,
        num_rounds=rounds,
        sequential=False,
        num_threads=threads,
        device=device,
        dtype=dtype,
    )
    _show(run(settings, profile=profile, long_prompt=long_prompt), as_json)


@app.command()
def serve(
    model: options.Model = None,
    clients: Annotated[int, typer.Option(help="Clients of the mixed load.")] = 64,
    seconds: Annotated[float, typer.Option(help="Seconds of the mixed load.")] = 300.0,
    batch: Annotated[int, typer.Option(help="Answers at a time.")] = 16,
    tokens: Annotated[int, typer.Option(help="New tokens of the longest answers.")] = 64,
    rounds: Annotated[int, typer.Option(help="Rounds of one client against many.")] = 3,
    leavers: Annotated[int, typer.Option(help="Clients that disconnect.")] = 1000,
    bodies: Annotated[int, typer.Option(help="Malformed requests.")] = 10_000,
    out: Annotated[Path | None, typer.Option(help="Also write the figures there, as a page of Markdown.")] = None,
    threads: Threads = 2,
    dtype: options.Dtype = "float32",
    as_json: options.Json = False,
) -> None:
    """A server under load, with clients that leave, malformed requests, and a kill -9."""
    try:
        from heedful.bench.serve import Settings, run, write
    except ImportError as error:
        raise OptionError(f"the server needs its extra: pip install 'heedful[serve]' ({error})") from error
    settings = Settings(
        model=model,
        clients=clients,
        seconds=seconds,
        batch=batch,
        tokens=tokens,
        rounds=rounds,
        leavers=leavers,
        bodies=bodies,
        num_threads=threads,
        dtype=dtype,
    )
    report = run(settings)
    if out is not None:
        write(report, out)
    _show(report, as_json)


@app.command()
def chat(
    model: options.Model = None,
    turns: Annotated[int, typer.Option(help="Turns of the conversation.")] = 10,
    tokens: Annotated[int, typer.Option(help="New tokens a turn at most.")] = 64,
    rounds: Annotated[int, typer.Option(help="Conversations.")] = 3,
    threads: Threads = 2,
    device: options.Device = "cpu",
    dtype: options.Dtype = "bfloat16",
    as_json: options.Json = False,
) -> None:
    """Time to the first token of each turn of a conversation, against reading it anew."""
    from heedful.bench.chat import Settings, run

    _show(run(Settings(model, turns, tokens, rounds, threads, device, dtype)), as_json)


def _show(report: Report, as_json: bool) -> None:
    if as_json:
        print(json.dumps(asdict(report), ensure_ascii=False))
        return
    console = Console(highlight=False)
    for title, rows in (("tokens per second", report.speeds), ("figures", report.figures)):
        if not rows:
            continue
        table = Table(title=title, title_justify="left", box=None)
        for column in ("", "median", "min", "max"):
            table.add_column(column, justify="left" if not column else "right")
        for row in rows:
            table.add_row(row.name, *(f"{value:.3g}" for value in (row.median, row.low, row.high)))
        console.print(table)
    console.print(report.machine, style="dim")
