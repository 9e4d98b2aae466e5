"""`heedful compare`: one prompt, several methods, one batch; a table of what each answered and what it cost."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from heedful.cli import options
from heedful.comparison import DEFAULT_METHODS, Compared, compare


def command(
    prompt: options.Prompt = None,
    file: options.PromptFile = None,
    system: options.System = None,
    instruction: options.Marked = None,
    auto: options.Auto = False,
    methods: Annotated[
        str, typer.Option(help="Separated by commas, each with its options: static:strength=10,pasta:profile=FILE.")
    ] = ",".join(DEFAULT_METHODS),
    settings: options.SettingsFile = None,
    check: Annotated[
        list[str] | None, typer.Option(help="no_comma, json, regex:…, max_words:100 … May be repeated.")
    ] = None,
    max_new_tokens: options.NewTokens = None,
    model: options.Model = None,
    device: options.Device = "cpu",
    dtype: options.Dtype = "auto",
    as_json: options.Json = False,
) -> None:
    """Answer PROMPT by several methods at once, and show what each costs and keeps."""
    from heedful.methods import parse_methods

    message = options.read_prompt(prompt, file, system)
    named = parse_methods(methods if settings is None else f"{methods},@{settings}")
    rows = compare(
        message,
        named,
        instructions=options.instructions(instruction, auto),
        checks=check or (),
        max_new_tokens=max_new_tokens,
        lm=options.load_quietly(model, device, dtype),
    )
    options.tell(rows[-1].result)
    if as_json:
        print(json.dumps([row.to_dict() for row in rows], ensure_ascii=False))
        return
    console = Console(highlight=False)
    for row in rows:
        console.rule(Text(row.name), align="left")
        console.print(Text(row.result.text))
    console.rule()
    console.print(_figures(rows))


def _figures(rows: Sequence[Compared]) -> Table:
    table = Table(box=None)
    table.add_column("method", overflow="fold")
    checks = list(rows[0].checks)
    for name in ("tokens/s", "changed", "rejected", "perplexity", *checks):
        table.add_column(Text(name), justify="right", overflow="fold")
    for row in rows:
        verdicts = [Text("yes", "green") if row.checks[name] else Text("no", "red") for name in checks]
        figures = [f"{row.tokens_per_second:.1f}", str(row.changed), str(row.rejected), f"{row.perplexity:.3g}"]
        table.add_row(Text(row.name), *figures, *verdicts)
    return table
