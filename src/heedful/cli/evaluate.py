"""`heedful eval`: runs benchmarks under several methods, and reports what came out."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markdown import Markdown
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from typer.core import TyperGroup

from heedful import journal
from heedful.checks import whole
from heedful.cli import judge, options
from heedful.data import shard as rows_of
from heedful.sampling import Sampling

Runner = Callable[..., None]
"""Runs a plan, given also `resume` and `report`; see `heedful.eval.run.run`."""


class TaskFirst(TyperGroup):
    """`heedful eval TASK… …` is `heedful eval run TASK …`: what is no command is a task."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that `args` begin with, or `run`."""
        return super().resolve_command(ctx, args if args[0] in self.commands else ["run", *args])


TASK_NAMES = (
    "ifeval",
    "ifeval-split",
    "ifbench",
    "multi-if",
    "followbench",
    "gsm8k-format",
    "lifbench",
    "advfactuality",
    "drift",
    "far",
)
app = typer.Typer(cls=TaskFirst, no_args_is_help=True, help="Measure methods on benchmarks, and report.")
app.command("judge")(judge.command)


@app.command("run")
def run_tasks(
    tasks: Annotated[list[str], typer.Argument(metavar="TASK", help=f"One or more of {', '.join(TASK_NAMES)}.")],
    out: Annotated[
        Path, typer.Option(help="Folder for answers, verdicts and the report; each task gets its own inside it.")
    ],
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="The task's rows: a file (JSONL, or a JSON array), or a set of the hub as OWNER/NAME[:SPLIT]; "
            "TASK=FILE where there are several tasks; may be repeated. Else the task's own set of the hub."
        ),
    ] = None,
    methods: Annotated[str, typer.Option(help="Separated by commas, as in `heedful compare`.")] = "none,directer",
    settings: options.SettingsFile = None,
    limit: options.Limit = None,
    shard: options.Shard = None,
    max_new_tokens: options.NewTokens = None,
    auto: Annotated[
        bool, typer.Option("--auto", help="Find the instructions; do not use the task's own spans.")
    ] = False,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_k: Annotated[int, typer.Option(help="0 keeps all.")] = 0,
    top_p: Annotated[float, typer.Option(help="1 keeps all.")] = 1.0,
    seeds: Annotated[int, typer.Option(help="Runs of each method, where tokens are drawn.")] = 3,
    batch: Annotated[int, typer.Option(help="Answers at a time.")] = 32,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run that --out holds.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="--resume, and ask rows that failed again.")] = (
        False
    ),
    ray: options.RayAddress = None,
    replicas: options.Replicas = 1,
    cpus: options.Cpus = None,
    model: options.Model = None,
    device: options.Device = "cpu",
    dtype: options.Dtype = "auto",
    judge_url: judge.Url = None,
    judge_model: judge.Name = None,
) -> None:
    """Run each TASK under every method (`run` may be left out); write each answer as it comes, then the report."""
    from heedful.eval import report, run, runs, seen, sources
    from heedful.eval.tasks import TASKS, examples
    from heedful.methods import parse_methods
    from heedful.ray.cluster import connected

    given = sources.by_task(tasks, data or [])
    options.needs_ray(ray, replicas, cpus)
    whole("batch", batch, low=1)
    whole("seeds", seeds, low=1)
    sampling = Sampling(temperature, top_k, top_p)
    spans: Literal["given", "auto"] = "auto" if auto else "given"
    if limit is not None:
        whole("limit", limit, low=1)
    named = parse_methods(methods if settings is None else f"{methods},@{settings}")
    console = Console(stderr=True, highlight=False)
    plans = []
    for name, places in given.items():
        found, failed = examples(TASKS[name], rows_of(sources.records(TASKS[name], places, limit), shard))
        options.tell_left_out(console, name, failed)
        TASKS[name].check()
        chosen_on = seen.chosen_on(named, found, places)
        for method, one in chosen_on.items():
            for line in seen.told(method, one):
                console.print(f"{name}: {line}", style="yellow", markup=False)
        plan = run.Plan(
            TASKS[name], found, named, out, batch, max_new_tokens, failed, sampling, seeds, spans, chosen_on
        )
        plans.append(plan)
    judging = judge.opened(judge_url, judge_model, given, plans[0].variants)
    if ray is None:
        _run_all(console, *_here(model, device, dtype), plans, judging, resume, retry_failed)
    else:
        with connected(ray):
            _run_all(console, *_there(model, device, dtype, replicas, cpus), plans, judging, resume, retry_failed)
    print(report.write(out, runs.gather(runs.read(out))))


def _here(model: str | None, device: str, dtype: str) -> tuple[Any, Runner]:
    """What a run notes of the model in this process, and how it is run."""
    from heedful.eval import run
    from heedful.provenance import facts_of

    lm = options.load_quietly(model, device, dtype)
    return facts_of(lm), partial(run.run, lm)


def _there(model: str | None, device: str, dtype: str, replicas: int, cpus: float | None) -> tuple[Any, Runner]:
    """The same of replicas on the cluster that is connected."""
    from heedful.batch import Source
    from heedful.ray import evaluation
    from heedful.ray.cluster import place
    from heedful.ray.pool import Pool

    pool = Pool(Source(model, device, dtype), replicas, place(replicas, device, cpus))
    return pool.facts, partial(evaluation.answer, pool)


def _run_all(
    console: Console, facts: Any, runner: Runner, plans: list[Any], judging: Any, resume: bool, retry_failed: bool
) -> None:
    from heedful.eval import run

    resume = resume or retry_failed

    for plan in plans:  # before the first answer: one that is refused later would end hours of work
        run.checked(facts, plan, resume=resume)
    for plan in plans:
        with journal.alone(plan.folder):
            run.begin(facts, plan, resume=resume)
            count = run.forget_failed(plan) if retry_failed else 0
        if count:
            console.print(f"{plan.task.name}: {count} rows that failed are asked again", markup=False)
    for plan in plans:
        _run_one(console, runner, plan)
        if judging is not None:
            judge.judge_folder(plan.out / plan.task.name, judging)


def _run_one(console: Console, runner: Runner, plan: Any) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[speed]}"), console=console) as bar:
        total = len(plan.examples) * plan.task.num_turns
        bars = {name: bar.add_task(f"{plan.task.name} {name}", total=total, speed="") for name in plan.variants}
        runner(plan, resume=True, report=lambda now: _advance(bar, bars, now))


def _advance(bar: Progress, bars: dict[str, Any], now: Any) -> None:
    task = bar.tasks[bars[now.method]]
    speed = f"{now.num_tokens / task.elapsed:.0f} tokens/s" if task.elapsed else ""
    bar.update(bars[now.method], completed=now.done, speed=speed)


@app.command("report")
def make_report(
    folders: Annotated[list[Path], typer.Argument(help="Folders of runs; shards of one are merged, others compared.")],
    out: Annotated[Path | None, typer.Option(help="Where to write it; else into the first folder.")] = None,
) -> None:
    """Make the report of one or more runs anew, and show it."""
    from heedful.eval import report, runs

    found = [run for folder in dict.fromkeys(map(Path.resolve, folders)) for run in runs.read(folder)]
    path = report.write(out or folders[0], runs.gather(found))
    Console(highlight=False).print(Markdown(path.read_text(encoding="utf-8")))
    print(path)
