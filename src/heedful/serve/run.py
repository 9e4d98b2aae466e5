"""Runs the server: listens, works, and on SIGTERM or Ctrl-C finishes what runs before it goes."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import uvicorn

from heedful.errors import OptionError
from heedful.serve.protocol import Engine

BACKSTOP_SECONDS = 10  # for connections to close once the engine has ended what it ran


class Server(uvicorn.Server):
    """uvicorn, which tells the engine first: no more requests, and so many seconds for those that run."""

    def __init__(self, app: Any, engine: Engine, grace_seconds: float) -> None:
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            ws="none",
            timeout_graceful_shutdown=int(grace_seconds) + BACKSTOP_SECONDS,
        )
        super().__init__(config)
        self.engine, self.grace_seconds = engine, grace_seconds

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Waits for what runs, at most the grace; then ends it."""
        self.engine.drain()
        loop = asyncio.get_running_loop()
        timer = loop.call_later(self.grace_seconds, lambda: loop.run_in_executor(None, self.engine.stop))
        try:
            await super().shutdown(sockets)
        finally:
            timer.cancel()


def listen(host: str, port: int) -> socket.socket:
    """A bound socket; it takes no connection before the server runs. Raises `OptionError` where that cannot be had."""
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, place = found[0]
        with ExitStack() as on_failure:
            bound = on_failure.enter_context(socket.socket(family, kind, protocol))
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(place)
            on_failure.pop_all()
    except (OSError, OverflowError, UnicodeError) as error:
        raise OptionError(f"cannot listen on {host}:{port}: {error}") from error
    return bound


def address(bound: socket.socket) -> str:
    """Where a client finds the server."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(app: Any, engine: Engine, bound: socket.socket, grace_seconds: float, ready: Callable[[], None]) -> None:
    """Serves until SIGTERM or Ctrl-C; `ready` is called as work begins. The engine is stopped in any case."""
    engine.start()
    try:
        with _terminated_quietly():
            ready()
            Server(app, engine, grace_seconds).run(sockets=[bound])
    finally:
        engine.stop()


@contextmanager
def _terminated_quietly() -> Iterator[None]:
    """uvicorn raises a signal again once it has shut down; SIGTERM has done its work then, and is no failure."""
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
