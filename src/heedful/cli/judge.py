"""`heedful eval judge`, and the judging of a run that has just ended: the endpoint is tried before any work is done."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from heedful.checks import whole
from heedful.errors import OptionError

Url = Annotated[str | None, typer.Option("--judge", help="URL of an OpenAI-compatible endpoint, as in https://…/v1.")]
Name = Annotated[
    str | None,
    typer.Option("--judge-model", help="The model that judges; key: HEEDFUL_JUDGE_KEY or OPENAI_API_KEY."),
]


def command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a run: its --out, or one task's part.")],
    url: Url = None,
    model: Name = None,
    criteria: Annotated[
        str | None, typer.Option(help="fidelity, quality or corrected, separated by commas; else all that apply.")
    ] = None,
    concurrency: Annotated[int | None, typer.Option(help="Questions at a time.")] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds to wait for a reply.")] = None,
) -> None:
    """Have a language model judge a run's answers; write each verdict as it comes, then the report. Goes on by itself
    with what an earlier call left open or failed."""
    from heedful.eval import judge as judges
    from heedful.eval import judged, report, runs
    from heedful.eval.run import read_answers, read_header

    if url is None or model is None:
        raise OptionError("judging needs --judge URL and --judge-model NAME")
    judge = judges.Judge(url, model, timeout_seconds=judges.TIMEOUT_SECONDS if timeout is None else timeout)
    number = whole("concurrency", judges.CONCURRENCY if concurrency is None else concurrency, low=1)
    asked = [name.strip() for name in criteria.split(",")] if criteria is not None else None
    found = runs.folders(folder)
    for one in found:
        header = read_header(one / "run.json")
        judged.criteria_for(header["settings"]["task"], read_answers(one, header), asked)
    for one in found:
        judge_folder(one, judge, asked, number)
    print(report.write(folder, runs.gather(runs.read(folder))))


def opened(url: str | None, model: str | None, tasks: Iterable[str], methods: dict[str, Any]) -> Any:
    """The judge, tried out, or None where none is asked for. Raises where it, or the run to come, is of no use."""
    from heedful.eval.judge import Judge
    from heedful.eval.judged import criteria_for

    if url is None and model is None:
        return None
    if url is None or model is None:
        raise OptionError("--judge URL and --judge-model NAME are given together")
    judge = Judge(url, model)
    for task in tasks:
        criteria_for(task, methods)
    judge.check()
    return judge


def judge_folder(folder: Path, judge: Any, asked: list[str] | None = None, concurrency: int | None = None) -> None:
    """Judges one task's run under a progress bar."""
    from heedful.eval.judge import CONCURRENCY
    from heedful.eval.judged import judge_run

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True, highlight=False)) as bar:
        shown = bar.add_task(f"judging {folder.name}", total=None)
        judge_run(
            folder,
            judge,
            asked,
            concurrency=concurrency or CONCURRENCY,
            report=lambda done, total: bar.update(shown, completed=done, total=total),
        )
