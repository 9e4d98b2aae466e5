"""`heedful models`: what is cached; `fetch` and `verify` the built-in model."""

from __future__ import annotations

import typer
from rich.console import Console
from rich.table import Table

from heedful import models

app = typer.Typer(
    invoke_without_command=True, help="List the models on this machine; fetch or verify the built-in one."
)


@app.callback()
def cached(context: typer.Context) -> None:
    """List what is cached."""
    if context.invoked_subcommand is not None:
        return
    found = models.list_cached()
    if not found:
        print("no model is cached yet; 'heedful models fetch' gets the built-in one (93 MB)")
        return
    table = Table(box=None)
    for title in ("model", "size", "source", "folder"):
        table.add_column(title, overflow="fold")
    for model in found:
        table.add_row(model.name, f"{model.size_bytes / 1e6:,.0f} MB", model.source, str(model.path))
    Console(highlight=False).print(table)


@app.command()
def fetch() -> None:
    """Fetch and convert the built-in model, unless it is there."""
    print(models.default_model_path())


@app.command()
def verify() -> None:
    """Hash every file of the built-in model again."""
    print(f"{models.verify_default_model()}: every file is as it was written")
