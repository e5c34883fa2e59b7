"""Streams and pages of other origins, at the border to ASGI."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from edgekit.errors import InputError
from edgekit.serve.settings import Settings
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
    told = httpx.get(url, headers={"Origin": "https://a.example"}).headers
    assert told["access-control-expose-headers"] == "Retry-After"


@pytest.mark.parametrize(
    "origin", ["https://a.example/", "https://A.example", "a.example", "null", "https://"]
)
def test_what_no_page_comes_from_is_refused_at_the_start(origin: str) -> None:
    with pytest.raises(InputError, match="no page has this origin"):
        Settings(origins=("https://a.example:8443", "*", origin))


def test_an_address_of_this_machine_is_a_name_of_it(serve: Serve) -> None:
    for host, status in (("127.0.0.2", 200), ("[::1]", 200), ("127.0.0.3", 403)):
        server = serve("x", host="127.0.0.2")
        answer = httpx.get(f"{server.url}/health", headers={"Host": f"{host}:{server.port}"})
        assert answer.status_code == status


def test_a_mistake_of_ours_is_counted_as_one(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve("x")
    monkeypatch.setattr(server.service.scheduler, "status", lambda: 1 / 0)
    assert httpx.get(f"{server.url}/v1/status").status_code == 500
    monkeypatch.undo()
    text = httpx.get(f"{server.url}/metrics").text
    assert 'edgekit_http_requests_total{path="/v1/status",status="500"} 1.0' in text


def test_every_gap_between_tokens_is_counted(serve: Serve) -> None:
    server = serve()
    body = {"prompt": "Hello", "max_tokens": 9, "seed": 3, "n": 2}
    usage = httpx.post(f"{server.url}/v1/completions", json=body).json()["usage"]
    text = httpx.get(f"{server.url}/metrics").text
    gaps = usage["completion_tokens"] - 2
    assert f"edgekit_inter_token_latency_seconds_count {gaps:.1f}" in text
    assert f'edgekit_inter_token_latency_seconds_bucket{{le="+Inf"}} {gaps:.1f}' in text
    assert "edgekit_time_per_output_token_seconds_count 2.0" in text
