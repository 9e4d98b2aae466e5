"""The paths of the server: reads a request, sends what `replies` builds. No thought of its own."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from heedful.errors import HeedfulError
from heedful.serve.generation import unless_gone
from heedful.serve.guard import StalledError
from heedful.serve.problems import RequestError, problem_of
from heedful.serve.schemas import ChatRequest, CompletionRequest
from heedful.serve.service import Asked, Service

CLIENT_LEFT = 499
STARTED = 0
LAST_WORD_SECONDS = 5.0  # after the time limit, for the event that says so

log = logging.getLogger("heedful.serve")
router = APIRouter()
ERROR = {
    "description": "OpenAI's error object.",
    "content": {"application/json": {"schema": {"type": "object", "required": ["error"]}}},
}
# With a "default", FastAPI does not promise the 422 that is never sent.
ERRORS: dict[int | str, dict[str, Any]] = dict.fromkeys((400, 401, 404, 413, 429, 500, 503, 504, "default"), ERROR)
ANSWER = {"content": {"application/json": {}, "text/event-stream": {}}, "description": "As in OpenAI's API."}


@router.post("/v1/chat/completions", responses={200: ANSWER, **ERRORS}, tags=["OpenAI"])
async def chat_completions(body: ChatRequest, request: Request) -> Response:
    """Answer a conversation; as a stream of server-sent events with `stream`."""
    return await _answer(_service(request).chat(body, request.scope.get("heedful.owner")), body, request)


@router.post("/v1/completions", responses={200: ANSWER, **ERRORS}, tags=["OpenAI"])
async def completions(body: CompletionRequest, request: Request) -> Response:
    """Continue a text as it stands."""
    return await _answer(_service(request).completion(body, request.scope.get("heedful.owner")), body, request)


@router.get("/v1/models", responses={401: ERROR}, tags=["OpenAI"])
async def models(request: Request) -> dict[str, Any]:
    """The one model that is served."""
    return {"object": "list", "data": [_model(request)]}


@router.get("/v1/models/{name:path}", responses={401: ERROR, 404: ERROR, "default": ERROR}, tags=["OpenAI"])
async def model(name: str, request: Request) -> dict[str, Any]:
    """The model of that name."""
    found = _model(request)
    if name != found["id"]:
        raise RequestError(
            404, f"the model {name!r} is not here; this server has {found['id']!r}", code="model_not_found"
        )
    return found


@router.get("/health", responses={503: {"description": "The engine is out of order."}}, tags=["Operation"])
async def health(request: Request) -> JSONResponse:
    """Whether the engine works, and what it is doing; 503 where it is out of order for good."""
    status = _service(request).engine.status()
    body = {
        "status": status.state,
        "running": status.num_running,
        "waiting": status.num_waiting,
        "slots": status.num_slots,
        "engine_failures": status.num_failures,
        "last_failure": status.failure or None,
    }
    return JSONResponse(body, 503 if status.state in ("failed", "stopped") else 200)


@router.get("/ready", responses={503: {"description": "No request is taken now."}}, tags=["Operation"])
async def ready(request: Request) -> JSONResponse:
    """Whether requests are taken."""
    is_ready = _service(request).engine.status().is_ready
    return JSONResponse({"ready": is_ready}, 200 if is_ready else 503)


@router.get("/metrics", responses={401: ERROR}, response_class=Response, tags=["Operation"])
async def metrics(request: Request) -> Response:
    """Counts and times for Prometheus."""
    return Response(_service(request).metrics.text(), media_type=CONTENT_TYPE_LATEST)


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def _model(request: Request) -> dict[str, Any]:
    service = _service(request)
    name = service.config.model_name
    return {"id": name, "object": "model", "created": STARTED, "owned_by": "heedful"}


async def _answer(asking: Any, body: ChatRequest | CompletionRequest, request: Request) -> Response:
    asked = await unless_gone(request.receive, asking)
    if asked is None:
        return Response(status_code=CLIENT_LEFT)
    if body.stream:
        return EventStream(asked, body.wants_usage)
    choices = await unless_gone(request.receive, asked.generation.finish())
    if choices is None:
        return Response(status_code=CLIENT_LEFT)
    return JSONResponse(asked.envelope.whole(choices))


class EventStream(StreamingResponse):
    """Server-sent events of one generation, which ends with the connection however that ends."""

    def __init__(self, asked: Asked, wants_usage: bool) -> None:
        self.asked = asked
        events = _events(asked, wants_usage)
        super().__init__(events, media_type="text/event-stream", headers={"cache-control": "no-store"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the events; stops where the client leaves, or reads too slowly to have them all within the time limit.

        Raises `StalledError` then.
        """
        seconds = max(0.0, self.asked.generation.seconds_left) + LAST_WORD_SECONDS
        try:
            await asyncio.wait_for(unless_gone(receive, self.stream_response(send)), seconds)
        except asyncio.TimeoutError:
            raise StalledError from None
        finally:
            self.asked.generation.cancel()  # also where not one event was sent


async def _events(asked: Asked, wants_usage: bool) -> AsyncIterator[str]:
    generation, envelope = asked.generation, asked.envelope
    uncounted = {"usage": None} if wants_usage else {}  # as OpenAI's: null in all chunks but the last
    try:
        if envelope.is_chat:
            for choice in generation.choices:
                yield _event({**envelope.opening(choice.index), **uncounted})
        async with aclosing(generation.pieces()) as pieces:
            async for piece in pieces:
                if piece.text or piece.finish_reason or piece.logprobs or envelope.wants_trace:
                    yield _event({**envelope.chunk(piece, generation.choices[piece.index]), **uncounted})
        if wants_usage:
            yield _event(envelope.last(generation.choices))
    except Exception as error:
        if not isinstance(error, HeedfulError):
            log.error("a stream failed", exc_info=error)
        yield _event(problem_of(error).body)
        return
    yield "data: [DONE]\n\n"


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False, allow_nan=False)}\n\n"
