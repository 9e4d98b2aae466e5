"""`heedful serve`: an OpenAI-compatible server."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from heedful.checks import choice
from heedful.cli import options
from heedful.errors import OptionError


def serve(
    model: options.Model = None,
    host: Annotated[str, typer.Option(help="Where to listen; other machines reach only other hosts.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any that is free.")] = 8000,
    api_key_file: Annotated[Path | None, typer.Option(help="Keys that are let in, one a line.")] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Let other machines in without a key.")] = False,
    heed: Annotated[
        str, typer.Option(help="tags; system: system and developer messages too; auto: what is found.")
    ] = "tags",
    method: Annotated[str, typer.Option(help=f"For requests that name none. {options.METHOD}")] = "directer",
    settings: options.SettingsFile = None,
    max_batch: Annotated[int, typer.Option(min=1, help="Answers at a time.")] = 16,
    max_queue: Annotated[int, typer.Option(min=0, help="Requests that may wait; more are refused (429).")] = 64,
    max_context: Annotated[
        int | None, typer.Option(min=1, help="Tokens of prompt and answer; else ≤ 4096, by memory.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Tokens of the longest answer.")] = 2048,
    max_body: Annotated[int, typer.Option(help="Bytes of the largest request.")] = 1 << 20,
    time_limit: Annotated[float, typer.Option(help="Seconds for one request, waiting included.")] = 600.0,
    grace: Annotated[float, typer.Option(help="Seconds for what runs at shutdown.")] = 30.0,
    prefill_chunk: Annotated[
        int | None, typer.Option(min=1, help="Prompt tokens read in one step; else 128 on a CPU, 1024 on a GPU.")
    ] = None,
    reuse_prefixes: Annotated[bool, typer.Option(help="Do not read again what a slot still holds.")] = True,
    engine: Annotated[
        str, typer.Option(help="transformers, or vllm where vLLM is installed beside Heedful: docs/vllm.md.")
    ] = "transformers",
    engine_option: Annotated[
        list[str] | None, typer.Option(help="vllm: NAME=VALUE, an option of its EngineArgs; may be repeated.")
    ] = None,
    playground: Annotated[
        bool, typer.Option("--playground", help="Also a page at /playground that shows what steering does.")
    ] = False,
    device: options.Device = "cpu",
    dtype: options.Dtype = "auto",
) -> None:
    """Serve a model over OpenAI's API, on this machine alone unless told otherwise."""
    try:
        from heedful.serve import config as configs
        from heedful.serve import launch, marking, run, worker
    except ImportError as error:
        raise OptionError(f"the server needs its extra: pip install 'heedful[serve]' ({error})") from error
    choice("engine", engine, ("transformers", "vllm"))
    if engine_option and engine != "vllm":
        raise OptionError("--engine-option is for --engine vllm")
    method = options.spelled(method, settings)
    page = _playground() if playground else None
    keys = configs.read_keys(api_key_file)
    configs.refuse_open_door(host, bool(keys), insecure)
    config = configs.Config(
        model_name=model or "default",
        heed=heed,  # type: ignore[arg-type]
        method=method,
        max_tokens=max_tokens,
        max_choices=max_batch,
        max_body_bytes=max_body,
        seconds=time_limit,
        grace_seconds=grace,
    )
    marking.Default.of(method)  # what is wrong with it is better said before the model is loaded
    with run.listen(host, port) as bound:
        limits = worker.Limits(max_batch, max_queue, prefill_chunk, reuse_prefixes)
        if engine == "vllm":
            loaded = _in_vllm(model, device, dtype, limits, max_context, engine_option or [])
        else:
            loaded = launch.local(options.load_quietly(model, device, dtype), limits, max_context)
        config = replace(config, model_name=model or loaded.text.shape.name or config.model_name)
        launch.launch(loaded, config, keys=keys, bound=bound, page=page)


def _in_vllm(model: str | None, device: str, dtype: str, limits: Any, max_context: int | None, given: list[str]) -> Any:
    """The model in vLLM's engine, with further options of it, whose values are JSON where they can be."""
    from heedful.vllm import engine

    if device != "cpu":
        raise OptionError(f"vLLM chooses its device by itself; leave --device {device} out")
    return engine.loaded(model, dtype, limits, max_context, dict(map(_option, given)))


def _option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise OptionError(f"--engine-option must be NAME=VALUE; got {text!r}")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _playground() -> Any:
    """The playground as a page of the server; imported before the model is loaded, so that a lack is told first."""
    try:
        from heedful.playground.mount import PATH, mount
        from heedful.serve.app import WebPage
    except ImportError as error:
        raise OptionError(f"the playground needs its extra: pip install 'heedful[playground]' ({error})") from error
    return WebPage(PATH, mount)
