"""Puts the page into a server, behind a door: the paths that the page needs, and nothing else of Gradio's."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI
from starlette.datastructures import MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Mount

from heedful.playground.app import build
from heedful.serve.guard import App, Message, Receive, Send
from heedful.serve.protocol import Engine
from heedful.serve.service import Service

log = logging.getLogger("heedful.playground")
PATH = "/playground"
HERE = Path(__file__).parent
SECONDS_BETWEEN = 0.5  # looks at whether the server is shutting down

# What the page asks for. Gradio can do more: upload and serve files, fetch from other hosts, be called as an API.
PAGES = ("", "/", "/config", "/theme.css", "/favicon.ico", "/manifest.json")
FOLDERS = ("/assets/", "/static/")
API = ("/queue/join", "/queue/data", "/cancel", "/reset", "/startup-events", "/app_id")
JOIN = "/gradio_api/queue/join"
LONGEST_SESSION = 64
HEARTBEAT = "/gradio_api/heartbeat/"

# Gradio's page needs inline scripts and compiles its templates; nothing is ever loaded from another place.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; object-src 'none'; "
    "frame-ancestors 'none'; base-uri 'self'; form-action 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


def mount(app: FastAPI, service: Service) -> None:
    """Adds the page to the server's application at `PATH`; the first page leads there."""
    # Gradio asks for an event loop; without one it would make one, and leave it open.
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, _mount(app, service)).result()


async def _mount(app: FastAPI, service: Service) -> None:
    blocks = build(service)
    gr.mount_gradio_app(
        app,
        blocks,
        PATH,
        footer_links=[],
        run_history=False,
        show_error=False,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        max_file_size=0,
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]).set(
            block_info_text_color="*neutral_600", block_info_text_color_dark="*neutral_400"
        ),
        css=(HERE / "page.css").read_text(encoding="utf-8"),
        head=f"<script>{(HERE / 'page.js').read_text(encoding='utf-8')}</script>",
    )
    (route,) = (route for route in app.routes if isinstance(route, Mount) and route.path == PATH)
    route.app = Door(route.app, service.engine, {number: len(fn.inputs) for number, fn in blocks.fns.items()})

    app.add_api_route("/", lambda: RedirectResponse(f"{PATH}/"), include_in_schema=False)
    app.add_api_route("/favicon.ico", lambda: Response(status_code=204), include_in_schema=False)


@dataclass(frozen=True)
class Door:
    """Lets through what the page needs, takes out what would let other sites' pages read along.

    `events`: how many values each event of the page takes, by its number.
    """

    app: App
    engine: Engine
    events: Mapping[int, int]

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"].removeprefix(PATH)
        if scope["method"] not in ("GET", "HEAD", "POST") or not is_needed(path):
            await PlainTextResponse("no such path", 404)(scope, receive, send)
            return
        if path.startswith(HEARTBEAT):
            receive = _until(self.engine, receive)
        if path.rstrip("/") == JOIN:
            message = await receive()
            problem = self._problem(message.get("body", b""))
            if problem:
                await PlainTextResponse(problem, 400)(scope, receive, send)
                return
            receive = _again(message, receive)
        await self._pass_on(scope, receive, _guarded(send))

    async def _pass_on(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """What Gradio raises once it has begun to answer, for a session that is gone, is no failure of the server."""
        has_begun = False

        async def noted(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self.app(scope, receive, noted)
        except Exception as error:
            if not has_begun:
                raise
            log.info("the page's answer ended: %s", type(error).__name__)
            with suppress(Exception):
                await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _problem(self, body: bytes) -> str:
        """What is wrong with an event, so that Gradio need not find out; empty where nothing is."""
        try:
            event = json.loads(body)
        except ValueError:
            return "the body is no JSON"
        event = event if isinstance(event, dict) else {}
        number, data, session = (event.get(key) for key in ("fn_index", "data", "session_hash"))
        if not isinstance(number, int) or number not in self.events:
            return "fn_index is no event of this page"
        if not isinstance(data, list) or len(data) != self.events[number]:
            return f"data must be a list of {self.events[number]} values"
        if not isinstance(session, str) or not 0 < len(session) <= LONGEST_SESSION:
            return f"session_hash must be a text of at most {LONGEST_SESSION} characters"
        return ""


def _again(message: Message, receive: Receive) -> Receive:
    pending = [message]

    async def again() -> Message:
        return pending.pop() if pending else await receive()

    return again


def is_needed(path: str) -> bool:
    """Whether the page asks for this path below its own."""
    if path.startswith("/gradio_api/"):
        return path.removeprefix("/gradio_api").rstrip("/") in API or path.startswith(HEARTBEAT)
    return path in PAGES or path.startswith(FOLDERS)


def _guarded(send: Send) -> Send:
    async def guarded(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name in [name for name in headers if name.startswith("access-control-")]:
                del headers[name]
            headers.update(HEADERS)
        await send(message)

    return guarded


def _until(engine: Engine, receive: Receive) -> Receive:
    """Ends a connection that an open page holds for good, once the server shuts down: it would wait for it."""

    async def until() -> Message:
        hearing = asyncio.ensure_future(receive())
        try:
            while not (await asyncio.wait({hearing}, timeout=SECONDS_BETWEEN))[0]:
                if engine.status().state in ("draining", "stopped"):
                    return {"type": "http.disconnect"}
            return hearing.result()
        finally:
            hearing.cancel()

    return until
