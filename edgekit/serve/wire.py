"""Bytes in and out: bodies with a limit, errors as JSON, streams that notice who went away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from time import monotonic
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from edgekit.errors import EdgekitError, InputError
from edgekit.serve.ask import FieldError
from edgekit.serve.refusals import BusyError, ClosingError, DeadlineError

_BODY_SECONDS = 30.0
_ALIVE_SECONDS = 15.0
"""A comment is sent after so long a silence, for proxies close what says nothing."""
Model = TypeVar("Model", bound=BaseModel)


class HttpError(Exception):
    """An answer other than 200. `param` names a field of the request."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = dict(headers or {})


_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error",
          413: "request_too_large", 429: "rate_limit_error", 503: "overloaded_error",
          504: "timeout_error"}  # fmt: skip


def error_type(status: int) -> str:
    """The name of a kind of error, as OpenAI's and Anthropic's clients know it."""
    fallback = "invalid_request_error" if status < 500 else "api_error"
    return _TYPES.get(status, fallback)


def as_http_error(error: Exception) -> HttpError:
    """What a client is told."""
    if isinstance(error, HttpError):
        return error
    if isinstance(error, BusyError):
        headers = {"Retry-After": str(error.retry_after_s)}
        return HttpError(429, _text(error), code="queue_full", headers=headers)
    if isinstance(error, ClosingError):
        return HttpError(503, _text(error), code="shutting_down", headers={"Retry-After": "5"})
    if isinstance(error, DeadlineError):
        return HttpError(504, _text(error), code="deadline")
    if isinstance(error, FieldError):
        return HttpError(400, str(error), param=error.field, code=error.code)
    if isinstance(error, InputError):
        return HttpError(400, str(error))
    if isinstance(error, EdgekitError):
        return HttpError(500, str(error), code="engine_failed")
    return HttpError(500, f"the server failed: {type(error).__name__}")


def openai_error(error: HttpError) -> dict[str, Any]:
    """OpenAI's shape of an error."""
    return {
        "error": {
            "message": error.message,
            "type": error_type(error.status),
            "param": error.param,
            "code": error.code,
        }
    }


def anthropic_error(error: HttpError) -> dict[str, Any]:
    """Anthropic's shape of an error."""
    kind = error_type(error.status)
    return {"type": "error", "error": {"type": kind, "message": error.message}}


def _text(error: EdgekitError) -> str:
    return f"{error}: {error.hint}" if error.hint else str(error)


async def read_request(request: Request, model: type[Model], *, max_bytes: int) -> Model:
    """The JSON body of a request, checked. Raises `HttpError` with the field that is wrong."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        # a page of another origin can send any other kind without asking
        raise HttpError(415, f"the body must be application/json, not {kind or 'untyped'}")
    body = await _read_body(request, max_bytes)
    try:
        data = json.loads(body)
    except (ValueError, RecursionError) as exc:
        raise HttpError(400, f"the body is not JSON: {exc}") from exc
    if not isinstance(data, dict):
        raise HttpError(400, "the body must be a JSON object")
    try:
        # null is what some clients send for what they leave out
        return model.model_validate({k: v for k, v in data.items() if v is not None})
    except ValidationError as exc:
        raise _first_problem(exc) from exc
    except RecursionError as exc:
        raise HttpError(400, "the body is nested too deeply") from exc


def _first_problem(exc: ValidationError) -> HttpError:
    found = exc.errors(include_url=False, include_context=False, include_input=False)
    # of the branches of a union the one that came furthest is the one that was meant
    first = max(found, key=lambda error: len(error["loc"]))
    place = [
        str(part)
        for i, part in enumerate(first["loc"])
        if not _is_branch(part, before=first["loc"][i - 1] if i else "")
    ]
    name = ".".join(place) or None
    if first["type"] == "extra_forbidden":
        return HttpError(400, f"`{name}` is not supported", param=name, code="unsupported_field")
    message = first["msg"].removeprefix("Value error, ")
    return HttpError(400, f"`{name}`: {message}" if name else message, param=name)


def _is_branch(part: int | str, *, before: int | str) -> bool:
    """Whether a step of pydantic's path is no part of the request, but a branch of a union."""
    if isinstance(part, int):
        return False
    is_role = isinstance(before, int) and part in (
        "system",
        "developer",
        "user",
        "assistant",
        "tool",
    )
    return is_role or part == "str" or "[" in part or part[:1].isupper()


async def _read_body(request: Request, max_bytes: int) -> bytes:
    too_large = HttpError(413, f"the body is larger than {max_bytes} bytes")
    said = request.headers.get("content-length", "")
    if said.isdigit() and int(said) > max_bytes:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for part in request.stream():
                body += part
                if len(body) > max_bytes:
                    raise too_large
    except TimeoutError as exc:
        raise HttpError(408, f"the body did not arrive within {_BODY_SECONDS:g} s") from exc
    return bytes(body)


T = TypeVar("T")


async def unless_gone(request: Request, result: Awaitable[T]) -> T:
    """`result`, unless the client goes away first. Raises `ClientDisconnect`."""
    work = asyncio.ensure_future(result)
    gone = asyncio.ensure_future(_until_gone(request.receive))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientDisconnect
        return work.result()
    finally:
        for task in (work, gone):
            task.cancel()
        await asyncio.gather(work, gone, return_exceptions=True)


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Server-sent events, which end when the client goes away, also while nothing is sent.

    What fails then, after the status, is an event: `on_error` makes it.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes], *, on_error: Callable[[Exception], bytes]):
        self._events = events
        self._on_error = on_error
        self._last = monotonic()
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the end, or until nobody listens."""
        sending = asyncio.ensure_future(self._send(send))
        gone = asyncio.ensure_future(_until_gone(receive))
        try:
            await asyncio.wait({sending, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (sending, gone):
                task.cancel()
            results = await asyncio.gather(sending, gone, return_exceptions=True)
            close = getattr(self._events, "aclose", None)
            if close is not None:
                await close()
        failure = results[0]
        if isinstance(failure, Exception) and not isinstance(failure, OSError):
            raise failure

    async def _send(self, send: Send) -> None:
        head = {"type": "http.response.start", "status": self.status_code}
        await send({**head, "headers": self.raw_headers})
        keeping = asyncio.ensure_future(self._keep_alive(send))
        try:
            while True:
                try:
                    body = await anext(self._events)
                except StopAsyncIteration:
                    break
                except Exception as exc:
                    await self._put(send, self._on_error(exc))
                    break
                await self._put(send, body)
        finally:
            keeping.cancel()
        await self._put(send, b"", more=False)

    async def _put(self, send: Send, body: bytes, *, more: bool = True) -> None:
        self._last = monotonic()
        await send({"type": "http.response.body", "body": body, "more_body": more})

    async def _keep_alive(self, send: Send) -> None:
        """A timer for each stream, not for each event: those may be thousands a second."""
        while True:
            silent = monotonic() - self._last
            if silent >= _ALIVE_SECONDS:
                await self._put(send, b": still working\n\n")
                silent = 0.0
            await asyncio.sleep(_ALIVE_SECONDS - silent)


def data_event(data: Any, *, name: str | None = None) -> bytes:
    """One server-sent event with JSON in it."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {text}\n\n".encode(errors="replace")


def json_response(
    data: Any, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """JSON; lone surrogates, which no UTF-8 has, become question marks."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return Response(
        text.encode(errors="replace"), status_code=status, headers=headers,
        media_type=JSONResponse.media_type,
    )  # fmt: skip
