"""`heedful eval ablation`: the paper's ablations by name, each one run of a task under several methods."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from heedful.cli import evaluate, options
from heedful.eval.ablation import ABLATIONS, spelled


def command(
    name: Annotated[str, typer.Argument(help="; ".join(f"{name}: {what}" for name, what in ABLATIONS.items()) + ".")],
    out: Annotated[Path, typer.Option(help="Folder for answers, verdicts and the report.")],
    data: Annotated[list[str] | None, typer.Option(help="The task's rows, as in `heedful eval run`.")] = None,
    task: Annotated[str, typer.Option(help="Any task of `heedful eval`.")] = "ifeval-split",
    seeds: Annotated[int, typer.Option(help="Random draws.")] = 3,
    levels: Annotated[int, typer.Option(help="Steps of the ladder.")] = 5,
    profile: Annotated[
        str | None, typer.Option(help="gate: PASTA's file of heads; without it PASTA is left out.")
    ] = None,
    settings: options.SettingsFile = None,
    limit: options.Limit = None,
    shard: options.Shard = None,
    max_new_tokens: options.NewTokens = None,
    batch: Annotated[int, typer.Option(help="Answers at a time.")] = 32,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run that --out holds.")] = False,
    model: options.Model = None,
    device: options.Device = "cpu",
    dtype: options.Dtype = "auto",
) -> None:
    """Run one of the paper's ablations: `none`, default Directer, and the variants that NAME stands for.

    --settings adds a method of your own.
    """
    evaluate.run_tasks(
        [task],
        out,
        data,
        methods=",".join(spelled(name, seeds=seeds, profile=profile, levels=levels)),
        settings=settings,
        limit=limit,
        shard=shard,
        max_new_tokens=max_new_tokens,
        batch=batch,
        resume=resume,
        model=model,
        device=device,
        dtype=dtype,
    )
