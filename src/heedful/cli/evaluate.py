"""`heedful eval`: runs benchmarks under several methods, and reports what came out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markdown import Markdown
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from typer.core import TyperGroup

from heedful.checks import choice, whole
from heedful.cli import judge, options
from heedful.errors import OptionError


class TaskFirst(TyperGroup):
    """`heedful eval TASK …` is `heedful eval run TASK …`: what is no command is a task."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that `args` begin with, or `run`."""
        return super().resolve_command(ctx, args if args[0] in self.commands else ["run", *args])


app = typer.Typer(cls=TaskFirst, no_args_is_help=True, help="Measure methods on benchmarks, and report.")
app.command("judge")(judge.command)


@app.command("run")
def run_task(
    task: Annotated[str, typer.Argument(help="ifeval, ifeval-split, gsm8k-format, lifbench or advfactuality.")],
    data: Annotated[
        list[Path], typer.Option(help="JSONL of the task's rows. May be repeated (LIFBench: a subtask each).")
    ],
    out: Annotated[Path, typer.Option(help="Folder for answers, verdicts and the report.")],
    methods: Annotated[str, typer.Option(help="Separated by commas, as in `heedful compare`.")] = "none,directer",
    limit: Annotated[int | None, typer.Option(help="Only the first rows of each file.")] = None,
    shard: Annotated[str | None, typer.Option(help="i/n: every n-th row, from the i-th on (from 0).")] = None,
    max_new_tokens: options.NewTokens = None,
    batch: Annotated[int, typer.Option(help="Answers at a time.")] = 32,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run that --out holds.")] = False,
    model: options.Model = None,
    device: options.Device = "cpu",
    dtype: options.Dtype = "auto",
    judge_url: judge.Url = None,
    judge_model: judge.Name = None,
) -> None:
    """Run TASK under every method (`run` may be left out); write each answer as it comes, then the report."""
    from heedful import data as files
    from heedful.eval import report, run
    from heedful.eval.tasks import TASKS, examples
    from heedful.methods import parse_methods

    choice("task", task, tuple(TASKS))
    whole("batch", batch, low=1)
    if limit is not None:
        whole("limit", limit, low=1)
    named = parse_methods(methods)
    records = [record for path in data for record in files.read(path, limit)]
    found, failed = examples(TASKS[task], _shard(records, shard))
    console = Console(stderr=True, highlight=False)
    for where, why in failed.items():
        console.print(f"left out: {where}: {why}", style="yellow", markup=False)
    TASKS[task].check()
    judging = judge.opened(judge_url, judge_model, task, named)
    lm = options.load_quietly(model, device, dtype)
    plan = run.Plan(TASKS[task], found, named, out, batch, max_new_tokens, failed)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[speed]}"), console=console) as bar:
        bars = {name: bar.add_task(name, total=len(found), speed="") for name in named}
        run.run(lm, plan, resume=resume, report=lambda now: _advance(bar, bars, now))
    if judging is not None:
        judge.judge_folder(out / task, judging)
    print(report.write(out, report.read(out)))


def _shard(records: list[Any], shard: str | None) -> list[Any]:
    if shard is None:
        return records
    index, slash, count = shard.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise OptionError(f"--shard must be i/n with i from 0 to n - 1; got {shard!r}")
    return records[int(index) :: int(count)]


def _advance(bar: Progress, bars: dict[str, Any], now: Any) -> None:
    task = bar.tasks[bars[now.method]]
    speed = f"{now.num_tokens / task.elapsed:.0f} tokens/s" if task.elapsed else ""
    bar.update(bars[now.method], completed=now.done, speed=speed)


@app.command("report")
def make_report(
    folders: Annotated[list[Path], typer.Argument(help="Folders of runs; shards of one run are merged.")],
    out: Annotated[Path | None, typer.Option(help="Where to write it; else into the first folder.")] = None,
) -> None:
    """Make the report of one or more runs anew, and show it."""
    from heedful.eval import report

    runs = report.merge([run for folder in folders for run in report.read(folder)])
    path = report.write(out or folders[0], runs)
    Console(highlight=False).print(Markdown(report.markdown(runs)))
    print(path)
