"""Everything that can go wrong, as an HTTP status and OpenAI's error object: one clear line, never a traceback."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from heedful.errors import ContextLengthError, HeedfulError, NumericError, OptionError, SpanError
from heedful.serve.protocol import BusyError, EngineError, StoppingError
from heedful.spans import excerpt

LONGEST = 600  # characters of a message
VAGUE = {"literal_error": 1, "string_type": 2, "list_type": 2, "model_type": 2, "model_attributes_type": 2}


class RequestError(HeedfulError):
    """A request is refused with `status`; `param` is the field at fault, `realm` how a key may be given (with 401)."""

    def __init__(
        self, status: int, message: str, *, code: str | None = None, param: str | None = None, realm: str = "Bearer"
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param, self.realm = status, code, param, realm


class TimeLimitError(HeedfulError):
    """A request took longer than the server allows."""


@dataclass(frozen=True)
class Problem:
    """An error as the client sees it."""

    status: int
    message: str
    kind: str = "invalid_request_error"
    code: str | None = None
    param: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def body(self) -> dict[str, Any]:
        """OpenAI's error object."""
        message = excerpt(_clean(self.message), LONGEST)
        param = None if self.param is None else excerpt(_clean(self.param), LONGEST)
        return {"error": {"message": message, "type": self.kind, "param": param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The whole answer."""
        return JSONResponse(self.body, self.status, dict(self.headers))


# No sense in asking again for what failed for its own reasons; OpenAI's clients heed this header.
NO_RETRY = {"x-should-retry": "false"}


def problem_of(error: Exception) -> Problem:
    """The problem that an error is; what nobody foresaw is a 500 that tells nothing."""
    message = str(error)
    if isinstance(error, RequestError):
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(error.status, "invalid_request_error")
        realm = error.realm if error.realm == "Bearer" else f'{error.realm} realm="heedful", charset="UTF-8"'
        headers = {"www-authenticate": realm} if error.status == 401 else {}
        return Problem(error.status, message, kind, error.code, error.param, headers)
    if isinstance(error, BusyError):
        return Problem(429, message, "rate_limit_error", "queue_full", headers={"retry-after": str(error.retry_after)})
    if isinstance(error, StoppingError):
        return Problem(503, message, "server_error", "shutting_down", headers={"retry-after": "5"})
    if isinstance(error, TimeLimitError):
        return Problem(504, message, "server_error", "time_limit", headers=NO_RETRY)
    if isinstance(error, NumericError):
        return Problem(500, message, "server_error", "not_finite", headers=NO_RETRY)
    if isinstance(error, EngineError):
        return Problem(500, message, "server_error", "engine_failed")
    if isinstance(error, HeedfulError):
        codes = ((ContextLengthError, "context_length_exceeded"), (SpanError, "bad_span"), (OptionError, "bad_option"))
        return Problem(400, message, code=next((code for kind, code in codes if isinstance(error, kind)), "bad_prompt"))
    return Problem(500, "the server failed to answer this request", "server_error", "internal_error")


def handle_errors(app: FastAPI) -> None:
    """Answers every error of `app` in OpenAI's shape."""
    app.add_exception_handler(HeedfulError, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _by_status)
    app.add_exception_handler(Exception, _refused)


async def _refused(request: Request, error: Exception) -> JSONResponse:
    return problem_of(error).response()


async def _by_status(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    message = {404: f"no such path: {request.url.path}", 405: f"{request.method} cannot be done here"}
    text = message.get(error.status_code, str(error.detail))
    return Problem(error.status_code, text, headers=error.headers or {}).response()


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    # A field that may be one thing or another is complained of twice; what stands deepest tells most.
    first = min(error.errors(), key=lambda one: (-len(one["loc"]), VAGUE.get(one["type"], 0)))
    where = _path(first["loc"], error.body, is_missing=first["type"] == "missing")
    if first["type"] == "json_invalid":
        reason = first.get("ctx", {}).get("error", "it cannot be read")
        return Problem(400, f"the body is no JSON: {reason}", code="bad_json").response()
    if first["type"] == "unsupported":
        where = ".".join(filter(None, (where, str(first["ctx"]["field"]))))
        return Problem(400, f"{where} is not supported by this server", code="unsupported", param=where).response()
    if first["type"] == "extra_forbidden":
        return Problem(400, f"unknown field: {where}", code="unknown_field", param=where).response()
    message = str(first["msg"])
    text = f"{where}: {message}" if where else message
    return Problem(400, text, code="bad_value", param=where or None).response()


def _path(loc: Sequence[Any], body: Any, *, is_missing: bool) -> str:
    """Where in the body, as in `messages[0].content`; names of types, which pydantic puts between, are left out."""
    path = ""
    for part in loc[1:]:
        if isinstance(part, int) and isinstance(body, list):
            path += f"[{part}]"
            body = body[part]
        elif isinstance(body, dict) and (part in body or is_missing):
            path += f".{part}"
            body = body.get(part)
    return path.removeprefix(".")


def _clean(text: str) -> str:
    """`text` on one line: what cannot be sent or seen, half surrogate pairs and control characters, written out."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
