"""`heedful playground`: the server with its page, for one person."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from heedful.cli import options
from heedful.cli.serve import serve


def command(
    model: options.Model = None,
    host: Annotated[str, typer.Option(help="Where to listen; other machines reach only other hosts.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any that is free.")] = 7860,
    api_key_file: Annotated[Path | None, typer.Option(help="Keys that are let in, one a line.")] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Let other machines in without a key.")] = False,
    method: Annotated[
        str, typer.Option(help="Offered first; may name a profile, as in pasta:profile=FILE.")
    ] = "directer",
    settings: options.SettingsFile = None,
    max_batch: Annotated[int, typer.Option(min=1, help="Answers at a time, over all open pages.")] = 8,
    max_context: Annotated[
        int | None, typer.Option(min=1, help="Tokens of prompt and answer; else ≤ 4096, by memory.")
    ] = None,
    device: options.Device = "cpu",
    dtype: options.Dtype = "auto",
) -> None:
    """Open a page that shows what steering does to an answer, token by token; it is `heedful serve --playground`."""
    serve(
        model=model,
        host=host,
        port=port,
        api_key_file=api_key_file,
        insecure=insecure,
        method=method,
        settings=settings,
        max_batch=max_batch,
        max_context=max_context,
        playground=True,
        device=device,
        dtype=dtype,
    )
