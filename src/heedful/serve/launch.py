"""Puts a server together, from a loaded model to a socket that answers, and says what it is."""

from __future__ import annotations

import socket

from heedful.generate import LM
from heedful.serve import run
from heedful.serve.app import WebPage, create_app
from heedful.serve.config import Config, Keys, is_loopback
from heedful.serve.service import Service
from heedful.serve.storage import Storage, gib, plan
from heedful.serve.worker import Limits, TransformersEngine


def launch(
    lm: LM,
    config: Config,
    limits: Limits,
    *,
    keys: Keys,
    bound: socket.socket,
    max_context: int | None = None,
    page: WebPage | None = None,
) -> None:
    """Serves `lm` on the bound socket until SIGTERM or Ctrl-C. Raises `OptionError` where the memory is too small."""
    storage = plan(lm.engine, limits.max_running, max_context)
    engine = TransformersEngine(lm, storage, limits)
    only_local = is_loopback(bound.getsockname()[0])
    app = create_app(Service(lm, engine, config), keys, only_local=only_local, page=page)
    line = started(lm, config, storage, run.address(bound))
    if page is not None:
        how = ", with an API key as the password" if keys else ""
        line += f"\nheedful: open {run.address(bound)}{page.path} in a browser{how}"
    run.serve(app, engine, bound, config.grace_seconds, lambda: print(line, flush=True))


def started(lm: LM, config: Config, storage: Storage, address: str) -> str:
    """What is served where, what is heeded, and what memory that takes: two lines."""
    dtype = str(lm.model.dtype).removeprefix("torch.")
    marked = "what <heed> tags mark" + (", and system messages" if config.heed == "system" else "")
    return (
        f"heedful: {config.model_name} ({dtype}, {lm.engine.device}) at {address}/v1\n"
        f"heedful: heeds {marked}, by {config.method} · {storage.num_slots} answers at a time, "
        f"{storage.context} tokens each, {gib(storage.num_bytes)} of keys and values"
    )
