"""Puts a server together, from a loaded model to a socket that answers, and says what it is."""

from __future__ import annotations

import socket
from dataclasses import dataclass

from heedful.generate import LM
from heedful.serve import run
from heedful.serve.app import WebPage, create_app
from heedful.serve.config import Config, Keys, is_loopback
from heedful.serve.core import TransformersEngine
from heedful.serve.protocol import Engine, Text
from heedful.serve.service import Service
from heedful.serve.storage import gib, plan
from heedful.serve.worker import Limits


@dataclass(frozen=True)
class Loaded:
    """A model that can be served: its engine and text side; what it runs on and how much it holds, in words."""

    text: Text
    engine: Engine
    place: str
    room: str


def local(lm: LM, limits: Limits, max_context: int | None = None) -> Loaded:
    """`lm` in the core's own engine. Raises `OptionError` where the memory is too small."""
    storage = plan(lm.engine, limits.max_running, max_context)
    dtype = str(lm.model.dtype).removeprefix("torch.")
    room = (
        f"{storage.num_slots} answers at a time, {storage.context} tokens each, "
        f"{gib(storage.num_bytes)} of keys and values"
    )
    return Loaded(lm, TransformersEngine(lm, storage, limits), f"{dtype}, {lm.engine.device}", room)


def launch(loaded: Loaded, config: Config, *, keys: Keys, bound: socket.socket, page: WebPage | None = None) -> None:
    """Serves a model on the bound socket until SIGTERM or Ctrl-C."""
    only_local = is_loopback(bound.getsockname()[0])
    app = create_app(Service(loaded.text, loaded.engine, config), keys, only_local=only_local, page=page)
    line = started(loaded, config, run.address(bound))
    if page is not None:
        how = ", with an API key as the password" if keys else ""
        line += f"\nheedful: open {run.address(bound)}{page.path} in a browser{how}"
    run.serve(app, loaded.engine, bound, config.grace_seconds, lambda: print(line, flush=True))


def started(loaded: Loaded, config: Config, address: str) -> str:
    """What is served where, what is heeded, and what memory that takes: two lines."""
    marked = "what <heed> tags mark" + (", and system messages" if config.heed == "system" else "")
    return (
        f"heedful: {config.model_name} ({loaded.place}) at {address}/v1\n"
        f"heedful: heeds {marked}, by {config.method} · {loaded.room}"
    )
