"""`heedful profile`: finds the attention heads that a method should steer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from heedful.cli import options
from heedful.profiling import Profiler, Settings

app = typer.Typer(no_args_is_help=True, help="Find what a method should steer in a model.")


@app.callback()
def profiles() -> None:
    """Find what a method should steer in a model."""


@app.command()
def pasta(
    data: Annotated[Path, typer.Option(help="JSONL of prompts with marked instructions, or rows of --task.")],
    metric: options.MetricName = None,
    task: options.TaskName = None,
    out: Annotated[Path, typer.Option(help="The profile; its scores are kept beside it.")] = Path("heads.json"),
    top_k: Annotated[int, typer.Option(help="Heads to keep.")] = Settings.top_k,
    strength: Annotated[float, typer.Option(help="How strongly to steer (α).")] = Settings.strength,
    rows: Annotated[int, typer.Option(help="Lines of the data to use.")] = Settings.num_rows,
    screen_rows: Annotated[int, typer.Option(help="Lines on which every head is tried first.")] = Settings.screen_rows,
    keep: Annotated[int | None, typer.Option(help="Heads that go on to all lines.")] = Settings.keep,
    limit: options.Limit = None,
    shard: options.Shard = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", "-n")] = Settings.max_new_tokens,
    batch: Annotated[int, typer.Option(help="Answers at a time.")] = 32,
    model: options.Model = None,
    device: options.Device = "cpu",
    dtype: options.Dtype = "auto",
) -> None:
    """Steer one head at a time, rank the heads by the metric, write the best ones, layer by layer, as JSON."""
    name = options.metric_name(metric, task)
    settings = Settings(str(data), name, top_k, strength, rows, screen_rows, keep, max_new_tokens, limit, shard)
    console = Console(stderr=True, highlight=False)
    profiler = Profiler(options.load_quietly(model, device, dtype), settings, out)
    options.tell_left_out(console, name, profiler.left_out)
    options.tell_cost(console, profiler, max_new_tokens, batch)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        shown = bar.add_task("screening", total=None)
        profile = profiler.run(
            batch,
            lambda now: bar.update(
                shown, completed=now.done, total=now.total, description="screening" if now.is_screen else "scoring"
            ),
        )
    if profiler.book.failed:
        console.print(profiler.book.told_failed, style="yellow", markup=False)
    if profile.num_tied:
        console.print(
            f"{profile.num_tied} heads that were left out score just as well as the last ones kept, and the choice "
            "between them is by number: take more rows (--rows, --screen-rows), of a kind that the model sometimes "
            "follows and sometimes does not",
            style="yellow",
            markup=False,
        )
    best = sorted(profile.scores.items(), key=lambda item: (-item[1], item[0]))[:5]
    console.print(f"plain {profile.plain:.3f}; best heads alone: " + ", ".join(f"{h} {s:.3f}" for h, s in best))
    print(out)
