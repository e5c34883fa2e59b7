"""What every endpoint asks of a request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

from starlette.requests import Request

from edgekit.serve.service import Service
from edgekit.serve.wire import HttpError

P = ParamSpec("P")
R = TypeVar("R")


def service_of(request: Request) -> Service:
    """The engine's service. Raises `HttpError` while there is none."""
    service = getattr(request.app.state, "service", None)
    if service is None:
        raise HttpError(503, "the engine is not loaded yet", headers={"Retry-After": "5"})
    return cast("Service", service)


def client_of(request: Request, user: str | None = None) -> str:
    """Who asks, as far as that is known: the queue is fair between these."""
    key = request.scope.get("edgekit.key", "")
    host = request.client.host if request.client is not None else ""
    return f"{key}|{host}|{user or ''}"


def require_model(service: Service, name: str | None) -> None:
    """A server has one model. Raises `HttpError` 404 for another one's name."""
    known = service.model_name
    names = {known.lower(), known.rpartition("/")[2].lower(), "default", "edgekit"}
    if name is not None and name.rpartition("/")[2].lower() not in names:
        raise HttpError(
            404, f"there is no model `{name}` here, only `{known}`", param="model",
            code="model_not_found",
        )  # fmt: skip


async def in_thread(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Work that takes milliseconds or more (templates, tokenizing, grammars), off the loop."""
    return await asyncio.to_thread(function, *args, **kwargs)
