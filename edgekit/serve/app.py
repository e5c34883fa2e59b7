"""The web application: routes, what goes before them, and what becomes of errors."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from edgekit.errors import EdgekitError
from edgekit.runtime.asking import Asker
from edgekit.serve import endpoints
from edgekit.serve.guard import Counted, Guard
from edgekit.serve.service import Service
from edgekit.serve.settings import Settings
from edgekit.serve.web import page_routes
from edgekit.serve.wire import (
    HttpError,
    anthropic_error,
    as_http_error,
    json_response,
    openai_error,
)

_HEADERS = ("Authorization", "Content-Type", "X-Api-Key", "Anthropic-Version", "Anthropic-Beta",
            "Anthropic-Dangerous-Direct-Browser-Access")  # fmt: skip
_log = logging.getLogger("edgekit.serve")


def make_app(
    asker: Asker, settings: Settings, *, on_made: Callable[[Service], None] = lambda _: None
) -> Starlette:
    """The application over a loaded engine, which it does not close.

    `on_made` gets its service when it starts. Its end cancels what is still in work.
    """

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        service = Service(asker, settings)
        service.scheduler.start()
        app.state.service = service
        on_made(service)
        try:
            yield
        finally:
            service.scheduler.close()

    routes = endpoints.routes()
    if settings.has_page:
        routes += page_routes()
    before = [Middleware(Counted, [route.path for route in routes])]
    if settings.origins:
        before.append(
            Middleware(
                CORSMiddleware,
                allow_origins=settings.origins,
                allow_methods=["GET", "POST"],
                allow_headers=[*_HEADERS],
                expose_headers=["Retry-After"],
            )
        )
    before.append(Middleware(Guard, settings))
    return Starlette(
        routes=routes,
        middleware=before,
        lifespan=lifespan,
        exception_handlers={
            HttpError: _on_error,
            EdgekitError: _on_error,
            HTTPException: _on_missing,
            ClientDisconnect: _on_gone,
            Exception: _on_error,
        },
    )


async def _on_error(request: Request, error: Exception) -> Response:
    told = as_http_error(error)
    if told.status >= 500 and not isinstance(error, HttpError | EdgekitError):
        _log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return _response(request, told)


async def _on_missing(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}"
    if error.status_code in (404, 405):
        message += "; /openapi.json lists what there is"
    return _response(request, HttpError(error.status_code, message, headers=error.headers))


async def _on_gone(request: Request, error: Exception) -> Response:
    """Nobody reads it; the status is for the log and the count."""
    return Response(status_code=499)


def _response(request: Request, error: HttpError) -> Response:
    is_anthropic = request.url.path.startswith("/v1/messages")
    body = (anthropic_error if is_anthropic else openai_error)(error)
    return json_response(body, status=error.status, headers=error.headers)
