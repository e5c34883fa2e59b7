"""Bytes out: errors as JSON, streams that notice who went away. `bodies` has those that come in."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from time import monotonic
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from edgekit.errors import EdgekitError, InputError
from edgekit.serve.refusals import BusyError, ClosingError, DeadlineError, FieldError

_ALIVE_SECONDS = 15.0
"""Something is sent after so long a silence, for proxies close what says nothing."""
_LINE_ENDS = {ord(char): f"\\u{ord(char):04x}" for char in "\x85\u2028\u2029"}
"""No line ends of server-sent events, but of Python's `splitlines`, which some clients use."""


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
        # the clients of OpenAI and Anthropic ask again after a 5xx: for as long, and in vain
        headers = {} if error.was_waiting else {"X-Should-Retry": "false"}
        return HttpError(504, _text(error), code="deadline", headers=headers)
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

    What fails then, after the status, is an event: `on_error` makes it. `alive` is sent after a
    silence. `on_end` is called at the end, also of a stream that never began.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncIterator[bytes],
        *,
        on_error: Callable[[Exception], bytes],
        on_end: Callable[[], None],
        alive: bytes = b": still working\n\n",
    ) -> None:
        self._events = events
        self._on_error = on_error
        self._on_end = on_end
        self._alive = alive
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
            self._on_end()
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
                await self._put(send, self._alive)
                silent = 0.0
            await asyncio.sleep(_ALIVE_SECONDS - silent)


def data_event(data: Any, *, name: str | None = None) -> bytes:
    """One server-sent event with JSON in it."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {text.translate(_LINE_ENDS)}\n\n".encode(errors="replace")


def json_response(
    data: Any, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """JSON; lone surrogates, which no UTF-8 has, become question marks."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return Response(
        text.encode(errors="replace"), status_code=status, headers=headers,
        media_type=JSONResponse.media_type,
    )  # fmt: skip
