"""Streams and pages of other origins, at the border to ASGI."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx

from edgekit.serve.wire import EventStream
from tests.serve.conftest import Serve


def test_a_stream_that_nobody_began_to_read_ends_too() -> None:
    ended, sent = [], []

    async def events() -> AsyncIterator[bytes]:
        sent.append("began")
        yield b"data: x\n\n"

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        await asyncio.sleep(60)  # a client that reads nothing

    stream = EventStream(events(), on_error=lambda _: b"", on_end=lambda: ended.append("ended"))
    asyncio.run(stream({"type": "http"}, receive, send))
    assert (sent, ended) == ([], ["ended"])


def test_pages_of_named_origins_may_ask_as_either_client_does(serve: Serve) -> None:
    url = f"{serve('x', origins=('https://a.example',)).url}/v1/messages"
    asked = {
        "Origin": "https://a.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "anthropic-version,content-type,x-api-key",
    }
    assert httpx.options(url, headers=asked).status_code == 200
    assert httpx.options(url, headers={**asked, "Origin": "https://b.example"}).status_code == 400
