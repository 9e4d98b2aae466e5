"""The server as one ASGI application, around an engine that somebody else starts and stops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fastapi import FastAPI

import heedful
from heedful.serve.config import Keys
from heedful.serve.guard import Guard
from heedful.serve.problems import handle_errors
from heedful.serve.routes import router
from heedful.serve.service import Service

ABOUT = "OpenAI's API, with instructions that are heeded: mark them by <heed> tags or by the `heedful` field."


@dataclass(frozen=True)
class WebPage:
    """Something for a person to open, beside the API: `mount(app, service)` puts it at `path`."""

    path: str
    mount: Callable[[FastAPI, Service], None]


def create_app(service: Service, keys: Keys, *, only_local: bool = True, page: WebPage | None = None) -> FastAPI:
    """The application. `only_local`: answer to loopback's names only. No CORS: other sites' pages cannot read it."""
    app = FastAPI(title="Heedful", version=heedful.__version__, description=ABOUT)
    app.state.service = service
    app.include_router(router)
    handle_errors(app)
    if page is not None:
        page.mount(app, service)
    app.add_middleware(
        Guard,
        keys=keys,
        max_body_bytes=service.config.max_body_bytes,
        only_local=only_local,
        browser_paths=() if page is None else ("/", "/favicon.ico", page.path),
        count=service.metrics.answered,
    )
    return app
