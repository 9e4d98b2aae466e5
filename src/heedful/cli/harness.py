"""`heedful eval lm-eval`: lm-eval's tasks, answered under a method."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from heedful.checks import whole
from heedful.cli import options
from heedful.errors import OptionError


def lm_eval(
    tasks: Annotated[str, typer.Option(help="Names or patterns of lm-eval, or YAML files; separated by commas.")],
    method: Annotated[str, typer.Option(help=options.METHOD)] = "directer",
    settings: options.SettingsFile = None,
    include_path: Annotated[Path | None, typer.Option(help="A folder with tasks of your own.")] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first documents of each task.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for lm-eval's result files, each answer included.")] = None,
    instruction: options.Marked = None,
    unmarked: Annotated[str, typer.Option(help="A document in which nothing is marked: error, or plain.")] = "error",
    num_fewshot: Annotated[int | None, typer.Option(help="Examples before each document.")] = None,
    system_instruction: Annotated[str | None, typer.Option(help="A system message before each document.")] = None,
    gen_kwargs: Annotated[str | None, typer.Option(help="As in lm-eval: max_gen_toks=64,do_sample=true …")] = None,
    batch: Annotated[int, typer.Option(help="Answers at a time.")] = 16,
    raw: options.Raw = False,
    model: options.Model = None,
    device: options.Device = "cpu",
    dtype: options.Dtype = "auto",
) -> None:
    """Run lm-eval's tasks under a method, and print its table.

    Heeded is what --instruction names, or the <heed> tags in a task's prompts, or the documents' own columns.
    """
    from heedful.harness.asking import Asking
    from heedful.harness.lm_eval_run import Plan, run
    from heedful.methods import parse_method

    method = options.spelled(method, settings)
    whole("batch", batch, low=1)
    if limit is not None:
        whole("limit", limit, low=1)
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    if not names:
        raise OptionError("--tasks names no task")
    arguments: dict[str, Any] = {
        "model": model or "default",
        "device": device,
        "dtype": dtype,
        "method": method,
        "unmarked": unmarked,
    }
    marked = options.instructions(instruction)
    Asking(parse_method(method), marked, unmarked)  # what is wrong with it is said before lm-eval is started
    if marked is not None:
        arguments["instructions"] = marked
    plan = Plan(names, arguments, batch, include_path, limit, num_fewshot, gen_kwargs, system_instruction, raw, out)
    print(run(plan))
