"""What stands before every request: the host asked for, the key, and a body that is neither too big nor too deep.

Plain ASGI, so that a disconnect is seen behind it.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
import re
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import Headers

from heedful.serve.config import Keys, is_loopback
from heedful.serve.problems import RequestError, problem_of

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

log = logging.getLogger("heedful.serve")
OPEN = ("/health", "/ready")
MAX_DEPTH = 32
MAX_PARTS = 1 << 16  # strings, commas and brackets: a long conversation has a quarter as many
SMALL_BODY = 1 << 16  # bytes that are looked through in no time
BODY_SECONDS = 30.0
SEND_SECONDS = 30.0  # for one piece of an answer

# Strings whole, closed or not, so that brackets within them do not count and no character is looked at twice.
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)|[\[{]|[\]}]|,', re.DOTALL)


@dataclass(frozen=True)
class Guard:
    """Refuses before anything is parsed. `only_local`: without keys, other host names than loopback's are not meant.

    `browser_paths`: what a person opens. There a key may come as the password of HTTP's basic authentication, which a
    browser asks for by itself; the name does not count. `count(path, status)` hears of every answer.
    """

    app: App
    keys: Keys
    max_body_bytes: int
    only_local: bool = True
    open_paths: tuple[str, ...] = OPEN
    browser_paths: tuple[str, ...] = ()
    count: Callable[[str, int], None] = lambda path, status: None

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        send = self._counted(scope["path"], _bounded(send))
        try:
            headers = Headers(scope=scope)
            self._check_host(headers.get("host", ""))
            scope["heedful.owner"] = self._owner(scope["path"], headers)
            body = await self._read(headers, receive)
            if scope["method"] == "POST":
                _check_kind(headers.get("content-type", ""))
            if len(body) <= SMALL_BODY:
                check_shape(body)
            else:
                await asyncio.to_thread(check_shape, body)
        except RequestError as error:
            await problem_of(error).response()(scope, receive, send)
            return
        except (_Gone, StalledError):
            return
        with suppress(StalledError):
            await self._pass_on(scope, _replay(body, receive), send)

    async def _pass_on(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answers what nobody foresaw here, where it is counted, and the connection stays."""
        has_begun = False

        async def noted(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self.app(scope, receive, noted)
        except Exception as error:
            if has_begun or isinstance(error, StalledError):
                raise
            log.error("a request failed", exc_info=error)
            await problem_of(error).response()(scope, receive, send)

    def _counted(self, path: str, send: Send) -> Send:
        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.count(path, message["status"])
            await send(message)

        return counted

    def _check_host(self, host: str) -> None:
        """Against pages of other sites that let their name point here (DNS rebinding)."""
        name = host.rpartition(":")[0] if re.search(r":\d*\Z", host) else host
        if self.only_local and not self.keys and not is_loopback(name):
            raise RequestError(421, "this server listens on loopback and answers to its names only, as localhost")

    def _owner(self, path: str, headers: Headers) -> str | None:
        if not self.keys or path in self.open_paths:
            return None
        is_page = any(path == page or path.startswith(f"{page}/") for page in self.browser_paths)
        kind, _, given = headers.get("authorization", "").partition(" ")
        key = given.strip() if kind.lower() == "bearer" else None
        if kind.lower() == "basic" and is_page:
            key = _password(given.strip())
        owner = None if key is None else self.keys.owner(key)
        if owner is None and is_page:
            message = "this server needs an API key: give it as the password, with any name"
            raise RequestError(401, message, code="invalid_api_key", realm="Basic")
        if owner is None:
            raise RequestError(401, "this server needs an API key: Authorization: Bearer KEY", code="invalid_api_key")
        return owner

    async def _read(self, headers: Headers, receive: Receive) -> bytes:
        """The body. Raises `RequestError` where it is too long, or does not come."""
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length[:20]) > self.max_body_bytes:
            raise self._too_long(f"{length[:20]} bytes")
        try:
            return await asyncio.wait_for(self._collect(receive), BODY_SECONDS)
        except asyncio.TimeoutError:
            raise RequestError(408, f"the body did not come within {BODY_SECONDS:g} s") from None

    async def _collect(self, receive: Receive) -> bytes:
        pieces: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _Gone
            pieces.append(message.get("body", b""))
            size += len(pieces[-1])
            if size > self.max_body_bytes:
                raise self._too_long(f"more than {self.max_body_bytes} bytes")
            if not message.get("more_body", False):
                return b"".join(pieces)

    def _too_long(self, size: str) -> RequestError:
        return RequestError(
            413, f"the body has {size}, this server reads at most {self.max_body_bytes}", code="body_too_long"
        )


def _password(given: str) -> str | None:
    """That of basic credentials; None where they are none."""
    try:
        text = base64.b64decode(given, validate=True).decode()
    except (binascii.Error, ValueError):
        return None
    return text.partition(":")[2]


class _Gone(Exception):
    """The client left while its body was read."""


class StalledError(Exception):
    """The client has stopped to read its answer; its connection is given up."""


def _bounded(send: Send) -> Send:
    """`send`, which raises `StalledError` where the client takes nothing for long."""

    async def bounded(message: Message) -> None:
        sending = asyncio.ensure_future(send(message))
        try:  # not `wait_for`, which may take a cancellation that comes as the message is sent for its end
            done, _ = await asyncio.wait({sending}, timeout=SEND_SECONDS)
        finally:
            sending.cancel()
        if not done:
            raise StalledError
        sending.result()

    return bounded


def _check_kind(kind: str) -> None:
    """Raises `RequestError` but for JSON: other sites' pages may send anything else without asking."""
    if kind.partition(";")[0].strip().lower() != "application/json":
        raise RequestError(400, "the body must be sent as Content-Type: application/json", code="bad_content_type")


def check_shape(body: bytes) -> None:
    """Raises `RequestError` where brackets are nested deeper, or parts are more, than those of any request."""
    depth = 0
    for number, match in enumerate(_TOKEN.finditer(body)):
        if number >= MAX_PARTS:
            message = f"the body has more than {MAX_PARTS} strings, commas and brackets"
            raise RequestError(400, message, code="too_many_parts")
        first = body[match.start() : match.start() + 1]
        if first in (b"[", b"{"):
            depth += 1
            if depth > MAX_DEPTH:
                raise RequestError(400, f"the body is nested deeper than {MAX_DEPTH} levels", code="too_deep")
        elif first in (b"]", b"}"):
            depth -= 1


def _replay(body: bytes, receive: Receive) -> Receive:
    """First the body that was read, then what the server hears."""
    pending = [body]

    async def again() -> Message:
        if pending:
            return {"type": "http.request", "body": pending.pop(), "more_body": False}
        return await receive()

    return again
