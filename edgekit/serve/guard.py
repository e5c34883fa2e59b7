"""Who may ask: keys, hosts, and a count of what was answered. Pure ASGI, before every endpoint.

A server without keys answers only to names of this machine in `Host`: a web page whose name was
pointed at 127.0.0.1 (DNS rebinding) is not one of them. Bodies must be `application/json`, which a
page of another origin may not send without being asked, and nobody answers that unless `--cors`.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgekit.serve.settings import Settings
from edgekit.serve.wire import HttpError, anthropic_error, json_response, openai_error

_OPEN_PATHS = ("/health", "/")
_OPEN_PREFIX = "/web/"
_LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")


class Guard:
    """Refuses with 401 or 403, or passes on, with who asks in `scope["edgekit.key"]`."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._digests = [_digest(key) for key in settings.keys]
        self._checks_host = settings.is_local and not settings.keys
        own = f"[{settings.host}]" if ":" in settings.host else settings.host
        self._names = {*_LOCAL_NAMES, own.lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        problem = self._problem(scope, headers)
        if problem is None:
            await self._app(scope, receive, send)
            return
        is_anthropic = scope["path"].startswith("/v1/messages")
        body = (anthropic_error if is_anthropic else openai_error)(problem)
        response = json_response(body, status=problem.status, headers=problem.headers)
        await response(scope, receive, send)

    def _problem(self, scope: Scope, headers: Headers) -> HttpError | None:
        if self._checks_host and _name_in(headers.get("host", "")) not in self._names:
            return HttpError(
                403, f"this server is for this machine, not for {headers.get('host', '')!r}",
                code="host_not_allowed",
            )  # fmt: skip
        path = scope["path"]
        if not self._digests or path in _OPEN_PATHS or path.startswith(_OPEN_PREFIX):
            return None
        if scope["method"] == "OPTIONS":  # what a browser asks first never carries a key
            return None
        given = _digest(_key_in(headers))
        # all of them are compared, so that time tells nothing
        matches = [hmac.compare_digest(given, digest) for digest in self._digests]
        if not any(matches):
            return HttpError(
                401,
                "this server needs a key: `Authorization: Bearer KEY`, or `x-api-key: KEY`",
                code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"},
            )  # fmt: skip
        scope["edgekit.key"] = given[:8].hex()
        return None


def _key_in(headers: Headers) -> str:
    kind, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if kind.lower() == "bearer" else headers.get("x-api-key", "")


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _name_in(host: str) -> str:
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
    return name.lower()


class Counted:
    """Counts requests by route and status."""

    def __init__(self, app: ASGIApp, paths: Sequence[str]) -> None:
        self._app = app
        self._paths = frozenset(paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request; one that got no status is a client that went away (499)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 499

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception:
            if status == 499:  # what catches it, and answers, is outside of all middleware
                status = 500
            raise
        finally:
            service = getattr(scope["app"].state, "service", None) if "app" in scope else None
            path = scope["path"] if scope["path"] in self._paths else "other"
            if service is not None:
                service.metrics.requests.labels(path, str(status)).inc()
