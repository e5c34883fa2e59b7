"""Clients that do not behave, over real sockets: none of them costs the others anything."""

from __future__ import annotations

import hmac
import json
import random
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import httpx
import pytest

from edgekit.serve import connection
from tests.serve.conftest import Running, Serve

ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello?"}]}
PATH = "/v1/chat/completions"
Open = Callable[..., socket.socket]


@pytest.fixture
def connect() -> Iterator[Open]:
    """`connect(server, data)`: a connection that has sent `data`."""
    opened: list[socket.socket] = []

    def begin(server: Running, data: bytes = b"", *, receive_bytes: int = 0) -> socket.socket:
        sock = socket.socket()
        opened.append(sock)
        if receive_bytes:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        sock.settimeout(20)
        sock.connect(("127.0.0.1", server.port))
        sock.sendall(data)
        return sock

    yield begin
    for sock in opened:
        sock.close()


def post(body: bytes, *headers: str, path: str = PATH) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
    lines += headers or (f"Content-Length: {len(body)}",)
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def everything(sock: socket.socket) -> bytes:
    """All that comes until the server closes, or resets."""
    found = b""
    with suppress(ConnectionResetError):
        while part := sock.recv(65536):
            found += part
    return found


def wait_until(is_true: Callable[[], bool], seconds: float = 15) -> None:
    end = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.01)


def is_idle(server: Running) -> bool:
    status = server.service.scheduler.status()
    return (status.busy, status.waiting) == (0, 0)


def answers(server: Running) -> bool:
    """It still does what it is for."""
    answer = httpx.post(f"{server.url}{PATH}", json={**ASK, "max_tokens": 2}, timeout=20)
    return answer.status_code == 200 and is_idle(server)


def endless(server: Running, **fields: Any) -> bytes:
    """A question whose answer has 800 tokens."""
    never = {str(i): -100 for i in server.engine.tokenizer.stop_ids}
    return json.dumps({**ASK, "max_tokens": 800, "logit_bias": never, **fields}).encode()


def test_who_never_reads_holds_no_slot_and_is_dropped(serve: Serve, connect: Open) -> None:
    server = serve(num_slots=1, stall_s=1.0)
    for _ in range(3):
        body = endless(server, stream=True, logprobs=True, top_logprobs=20)
        connect(server, post(body), receive_bytes=2048)
    wait_until(lambda: is_idle(server))
    assert answers(server)
    wait_until(lambda: server.num_connections == 0)
    assert not server.service._queues


def test_who_reads_slowly_gets_everything(serve: Serve, connect: Open) -> None:
    server = serve(num_slots=1, stall_s=1.0)
    sock = connect(server, post(endless(server, stream=True)), receive_bytes=2048)
    wait_until(lambda: is_idle(server))
    found = b""
    while b"[DONE]" not in found:
        part = sock.recv(4096)
        assert part, found[-200:]
        found += part
        time.sleep(0.005)
    assert found.count(b'"finish_reason":"length"') == 1


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_half_closed_connection_is_a_client_that_went_away(
    serve: Serve, connect: Open, is_stream: bool
) -> None:
    server = serve(num_slots=1)
    sock = connect(server, post(endless(server, stream=is_stream)))
    wait_until(lambda: server.service.scheduler.status().busy == 1)
    sock.shutdown(socket.SHUT_WR)
    everything(sock)
    wait_until(lambda: is_idle(server))
    assert answers(server)


def test_a_reset_connection_frees_the_slot(serve: Serve, connect: Open) -> None:
    server = serve(num_slots=1)
    sock = connect(server, post(endless(server, stream=True)))
    sock.recv(1000)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
    wait_until(lambda: is_idle(server))
    assert answers(server)


def test_a_body_of_10_mb_is_refused_before_work(serve: Serve, connect: Open) -> None:
    server = serve()
    calls: Any = server.engine.session.calls  # type: ignore[attr-defined]
    before = len(calls)
    body = json.dumps({"messages": [{"role": "user", "content": "y" * 10**7}]}).encode()
    kind = {"Content-Type": "application/json"}
    said = httpx.post(f"{server.url}{PATH}", content=body, headers=kind)
    assert said.status_code == 413
    assert said.json()["error"]["type"] == "request_too_large"

    def pieces() -> Iterator[bytes]:  # goes out in chunks: nobody says how long it is
        for start in range(0, len(body), 65536):
            yield body[start : start + 65536]

    assert httpx.post(f"{server.url}{PATH}", content=pieces(), headers=kind).status_code == 413
    # only the head was sent: the answer does not wait for the body
    sock = connect(server, post(b"", f"Content-Length: {len(body)}", "Connection: close"))
    assert sock.recv(1000).startswith(b"HTTP/1.1 413 ")
    assert len(calls) == before
    assert answers(server)


@pytest.mark.parametrize(
    "body",
    [
        b'{"messages": [{"role": "user", "content": "\xff\xfe"}]}',
        b'{"messages": [{"role": "user", "content": "\xc3("}]}',
        b"\xed\xa0\x80",
        b"\x00" * 50,
        '{"messages": "'.encode("utf-16"),
        b'{"a":' * 20_000,
        b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": ' + b"9" * 5000 + b"}",
        b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
        b'{"messages": [{"role": "user", "content": "x"}], "temperature": 1e999}',
    ],
)
def test_what_is_no_request_is_said_to_be_none(serve: Serve, body: bytes) -> None:
    server = serve()
    kind = {"Content-Type": "application/json"}
    said = httpx.post(f"{server.url}{PATH}", content=body, headers=kind)
    assert said.status_code == 400, said.text
    assert said.json()["error"]["message"]
    assert answers(server)


def test_half_of_a_surrogate_pair_harms_nobody(serve: Serve) -> None:
    server = serve()
    body = b'{"max_tokens": 2, "messages": [{"role": "user", "content": "\\ud83d"}]}'
    said = httpx.post(
        f"{server.url}{PATH}", content=body, headers={"Content-Type": "application/json"}
    )
    assert said.status_code in (200, 400)
    assert answers(server)


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)),  # a TLS hello
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /health FTP/1.1\r\n\r\n",
        b"GET /health HTTP/1.1\r\n\r\n",  # no host
        b"\r\n" * 5000 + b"x\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X-Long: " + b"y" * 200_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"A: b\r\n" * 50_000 + b"\r\n",
        random.Random(0).randbytes(100_000),
    ],
)
def test_what_is_no_http_is_refused_or_cut_off(serve: Serve, connect: Open, data: bytes) -> None:
    server = serve()
    sock = connect(server)
    with suppress(OSError):  # it may close while that is still going out
        sock.sendall(data)
    said = everything(sock)
    assert said == b"" or said.split()[1] in (b"400", b"403", b"431", b"505"), said[:100]
    assert answers(server)


def test_garbage_behind_a_request_spoils_only_itself(serve: Serve, connect: Open) -> None:
    server = serve("Good day.")
    body = json.dumps(ASK).encode()
    sock = connect(server, post(body) + b"\x00\x01 what is this\r\n\r\n" * 20)
    said = everything(sock)
    assert said.startswith(b"HTTP/1.1 200 ")
    assert b"Good day." in said
    assert b"HTTP/1.1 400 " in said
    assert httpx.get(f"{server.url}/health").status_code == 200


def test_requests_one_behind_the_other_are_answered_in_order(serve: Serve, connect: Open) -> None:
    server = serve("one", "two", "three")
    body = json.dumps(ASK).encode()
    sock = connect(
        server, post(body) * 2 + post(body, f"Content-Length: {len(body)}", "Connection: close")
    )
    said = everything(sock)
    assert said.count(b"HTTP/1.1 200 ") == 3
    places = [said.index(word) for word in (b'"one"', b'"two"', b'"three"')]
    assert places == sorted(places)


def test_a_head_that_never_ends_is_cut_off(
    serve: Serve, connect: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.3)
    server = serve("Good day.", "Again.")
    assert everything(connect(server)) == b""
    assert everything(connect(server, b"POST / HTTP/1.1\r\nX: ")) == b""
    # after an answer, too; and an answer that takes longer than a head may is not cut off
    sock = connect(server, post(json.dumps(ASK).encode()))
    assert sock.recv(65536).startswith(b"HTTP/1.1 200 ")
    sock.sendall(b"POST / HTTP/1.1\r\nX: ")
    assert everything(sock).find(b"HTTP/1.1") == -1
    # a body that goes on for ever behind its refusal
    sock = connect(server, post(b"", "Transfer-Encoding: chunked", path="/nowhere"))
    assert sock.recv(65536).startswith(b"HTTP/1.1 404 ")
    with pytest.raises(OSError):  # noqa: PT011  # reset or broken pipe
        for _ in range(1000):
            sock.sendall(b"1\r\ny\r\n")
            time.sleep(0.01)
    wait_until(lambda: server.num_connections == 0)
    assert httpx.get(f"{server.url}/health").status_code == 200


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_deadline_is_kept_and_said(serve: Serve, is_stream: bool) -> None:
    server = serve(num_slots=1, deadline_s=0.3)
    session: Any = server.engine.session
    decode = session.decode

    def slow(*args: Any) -> Any:
        time.sleep(0.02)
        return decode(*args)

    session.decode = slow
    kind = {"Content-Type": "application/json"}
    body = endless(server, stream=is_stream)
    said = httpx.post(f"{server.url}{PATH}", content=body, headers=kind)
    if is_stream:  # what had come by then was sent already
        assert said.status_code == 200
        error = json.loads(said.text.strip().rpartition("data: ")[2])["error"]
    else:
        assert said.status_code == 504
        assert said.headers["x-should-retry"] == "false"
        error = said.json()["error"]
    assert error["code"] == "deadline"
    wait_until(lambda: is_idle(server))


def test_pages_of_other_origins_are_told_nothing(serve: Serve) -> None:
    closed, opened = serve(), serve(origins=("https://robot.example",))
    for origin, server, allowed in (
        ("https://robot.example", closed, None),
        ("https://robot.example", opened, "https://robot.example"),
        ("https://evil.example", opened, None),
    ):
        headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        asked = httpx.options(f"{server.url}{PATH}", headers=headers)
        assert asked.headers.get("access-control-allow-origin") == allowed
        assert asked.is_success == (allowed is not None)
        said = httpx.post(f"{server.url}{PATH}", json={**ASK, "max_tokens": 1}, headers=headers)
        assert said.headers.get("access-control-allow-origin") == allowed


def test_every_key_is_compared_whole(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve(keys=("first", "second", "third"))
    compared: list[tuple[int, int]] = []
    compare = hmac.compare_digest

    def watched(one: bytes, other: bytes) -> bool:
        compared.append((len(one), len(other)))
        return compare(one, other)

    monkeypatch.setattr("edgekit.serve.guard.hmac.compare_digest", watched)
    for key in ("first", "third", "f", "", "x" * 5000):
        compared.clear()
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        status = httpx.get(f"{server.url}/v1/models", headers=headers).status_code
        assert status == (200 if key in ("first", "third") else 401)
        assert compared == [(32, 32)] * 3
