"""`heedful tune`: finds a method and its settings for the user's own prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from heedful.cli import options
from heedful.eval.paired import LEVEL
from heedful.tuning import DEFAULT_METHODS, NONE, Settings, Tuned, Tuner


def command(
    data: Annotated[Path, typer.Option(help="JSONL of prompts with marked instructions, or rows of --task.")],
    metric: options.MetricName = None,
    task: options.TaskName = None,
    out: Annotated[Path, typer.Option(help="The settings file; its scores are kept beside it.")] = Path("tuned.json"),
    methods: Annotated[str, typer.Option(help="What to search, separated by commas.")] = ",".join(DEFAULT_METHODS),
    profile: Annotated[str | None, typer.Option(help="pasta: file of heads.")] = None,
    budget: Annotated[int | None, typer.Option(help="Answers to generate in all.", show_default="27 settings")] = None,
    held_out: Annotated[float, typer.Option(help="Share of the rows for the final test.")] = Settings.held_out,
    limit: options.Limit = None,
    shard: options.Shard = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", "-n")] = Settings.max_new_tokens,
    seed: Annotated[int, typer.Option(help="For the split and the order of settings.")] = Settings.seed,
    batch: Annotated[int, typer.Option(help="Answers at a time.")] = 32,
    model: options.Model = None,
    device: options.Device = "cpu",
    dtype: options.Dtype = "auto",
) -> None:
    """Search method, strength, threshold and schedule on your prompts; test the winner on prompts it never saw."""
    names = tuple(name.strip() for name in methods.split(",") if name.strip())
    name = options.metric_name(metric, task)
    settings = Settings(str(data), name, names, profile, budget, held_out, max_new_tokens, seed, limit, shard)
    console = Console(stderr=True, highlight=False)
    tuner = Tuner(options.load_quietly(model, device, dtype), settings, out)
    for path in tuner.unknown:
        console.print(
            f"nothing tells on which rows {path} was made: they may be held out", style="yellow", markup=False
        )
    options.tell_left_out(console, name, tuner.left_out)
    rounds = ", then ".join(f"{rung.num_candidates} settings on {rung.num_rows} rows" for rung in tuner.rungs)
    console.print(f"{rounds}; the winner, none and directer on {len(tuner.test_rows)} held-out rows")
    options.tell_cost(console, tuner, max_new_tokens, batch)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        shown = bar.add_task("searching", total=None)
        tuned = tuner.run(
            batch, lambda now: bar.update(shown, completed=now.done, total=now.total, description=now.stage)
        )
        bar.update(shown, completed=bar.tasks[shown].total)
    if tuner.book.failed:
        console.print(tuner.book.told_failed, style="yellow", markup=False)
    result = Console(highlight=False)
    result.print(_table(tuned))
    result.print(Text(verdict(tuned)))
    print(out)


def _table(tuned: Tuned) -> Table:
    table = Table(box=None, title=f"on {tuned.num_held_out} held-out rows", title_justify="left")
    for name in ("method", "score", "winner's gain over it", "fixed", "broken", "p (Holm)"):
        table.add_column(name, justify="left" if name == "method" else "right", overflow="fold")
    for name, score in tuned.scores.items():
        row = [name, f"{score.value:.3f} [{score.low:.3f}, {score.high:.3f}]"]
        found = tuned.against.get(name)
        if found is not None:
            gain = found.difference
            row += [f"{gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]", str(found.fixed), str(found.broken)]
            row.append(f"{tuned.p_values[name]:.3f}")
        table.add_row(*map(Text, row))
    if any(tuned.failed.values()):
        counts = ", ".join(f"{name} {count}" for name, count in tuned.failed.items() if count)
        table.caption = f"failed, and no point here: {counts}"
    return table


def verdict(tuned: Tuned) -> str:
    """What the held-out rows say of the winner, in one line: interval and corrected p must agree on a difference."""
    gain = tuned.against[NONE]
    if gain.is_noise or tuned.p_values[NONE] >= LEVEL:
        return f"{tuned.method}: not distinguishable from plain decoding on the held-out rows"
    better = gain.difference.value > 0
    return f"{tuned.method}: {'better' if better else 'worse'} than plain decoding on the held-out rows"
