"""`heedful serve`: an OpenAI-compatible server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from heedful.cli import options
from heedful.errors import OptionError

if TYPE_CHECKING:
    from heedful.serve.config import Config
    from heedful.serve.storage import Storage


def serve(
    model: options.Model = None,
    host: Annotated[str, typer.Option(help="Where to listen; other machines reach only other hosts.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any that is free.")] = 8000,
    api_key_file: Annotated[Path | None, typer.Option(help="Keys that are let in, one a line.")] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Let other machines in without a key.")] = False,
    heed: Annotated[str, typer.Option(help="tags, or system: system and developer messages too.")] = "tags",
    method: Annotated[str, typer.Option(help=f"For requests that name none. {options.METHOD}")] = "directer",
    max_batch: Annotated[int, typer.Option(min=1, help="Answers at a time.")] = 16,
    max_queue: Annotated[int, typer.Option(min=0, help="Requests that may wait; more are refused (429).")] = 64,
    max_context: Annotated[int | None, typer.Option(min=1, help="Tokens of prompt and answer; else by memory.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Tokens of the longest answer.")] = 2048,
    max_body: Annotated[int, typer.Option(help="Bytes of the largest request.")] = 1 << 20,
    time_limit: Annotated[float, typer.Option(help="Seconds for one request, waiting included.")] = 600.0,
    grace: Annotated[float, typer.Option(help="Seconds for what runs at shutdown.")] = 30.0,
    prefill_chunk: Annotated[
        int, typer.Option(min=1, help="Prompt tokens read between two steps of the others.")
    ] = 512,
    reuse_prefixes: Annotated[bool, typer.Option(help="Do not read again what a slot still holds.")] = True,
    device: options.Device = "cpu",
    dtype: options.Dtype = "auto",
) -> None:
    """Serve a model over OpenAI's API, on this machine alone unless told otherwise."""
    try:
        from heedful.serve import run
        from heedful.serve.app import create_app
        from heedful.serve.config import Config, is_loopback, read_keys, refuse_open_door
        from heedful.serve.marking import Default
        from heedful.serve.service import Service
        from heedful.serve.storage import plan
        from heedful.serve.worker import Limits, TransformersEngine
    except ImportError as error:
        raise OptionError(f"the server needs its extra: pip install 'heedful[serve]' ({error})") from error
    keys = read_keys(api_key_file)
    refuse_open_door(host, bool(keys), insecure)
    config = Config(
        model_name=model or "default",
        heed=heed,  # type: ignore[arg-type]
        method=method,
        max_tokens=max_tokens,
        max_choices=max_batch,
        max_body_bytes=max_body,
        seconds=time_limit,
        grace_seconds=grace,
    )
    Default.of(method)  # to refuse it before the model is loaded
    bound = run.listen(host, port)
    lm = options.load_quietly(model, device, dtype)
    config = named(config, model, lm)
    storage = plan(lm.engine, max_batch, max_context)
    engine = TransformersEngine(lm, storage, Limits(max_batch, max_queue, prefill_chunk, reuse_prefixes))
    app = create_app(Service(lm, engine, config), keys, only_local=is_loopback(host))
    run.serve(app, engine, bound, grace, lambda: print(started(lm, config, storage, run.address(bound)), flush=True))


def named(config: Config, model: str | None, lm: Any) -> Config:
    """The configuration with the name that clients ask for: as it was asked for here, or the built-in model's own."""
    from dataclasses import replace

    return replace(config, model_name=model or lm.engine.shape.name or "default")


def started(lm: Any, config: Config, storage: Storage, address: str) -> str:
    """What is served where, what is heeded, and what memory that takes: two lines."""
    from heedful.serve.storage import gib

    dtype = str(lm.model.dtype).removeprefix("torch.")
    marked = "what <heed> tags mark" + (", system messages" if config.heed == "system" else "")
    return (
        f"heedful: {config.model_name} ({dtype}, {lm.engine.device}) at {address}/v1 · heeded by default: {marked}, "
        f"by {config.method}\n"
        f"heedful: {storage.num_slots} answers at a time, {storage.context} tokens each; "
        f"keys and values take {gib(storage.num_bytes)}"
    )
