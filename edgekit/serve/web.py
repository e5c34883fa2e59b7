"""The page at `/`: a chat for people. Its files are a fixed table, read once; there are no others.

They hold nothing that is secret and need no key; what the page asks the interface for does. Headers
forbid the page everything but its own files and this server: what a model writes into it can load
nothing, run nothing and send nothing, and with Trusted Types no script can make markup of a text.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

_DIRECTORY = Path(__file__).parent / "page"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=(), payment=(), usb=()",
    # kept, and asked for again each time: a new version of the server has a new page at once
    "Cache-Control": "no-cache",
}


def page_routes() -> list[Route]:
    """A route for the page and for each of its files."""
    return [
        Route(_path(file.name), PageFile(file), methods=["GET"])
        for file in sorted(_DIRECTORY.iterdir())
        if file.suffix in _TYPES
    ]


def _path(name: str) -> str:
    return "/" if name == "index.html" else f"/web/{name}"


class PageFile:
    """One file of the page: an ASGI application that answers GET and HEAD."""

    def __init__(self, path: Path) -> None:
        self._body = path.read_bytes()
        self._type = _TYPES[path.suffix]
        self._tag = f'"{hashlib.sha256(self._body).hexdigest()[:32]}"'

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The file, or 304 for who has it already."""
        request = Request(scope)
        headers = {**HEADERS, "ETag": self._tag}
        if _names(request.headers.get("if-none-match", ""), self._tag):
            response = Response(status_code=304, headers=headers)
        else:
            response = Response(self._body, headers=headers, media_type=self._type)
        await response(scope, receive, send)


def _names(given: str, tag: str) -> bool:
    """Whether an `If-None-Match` names this tag; compared weakly, as RFC 9110, 13.1.2 says."""
    tags = [part.strip().removeprefix("W/") for part in given.split(",")]
    return tag in tags or tags == ["*"]
