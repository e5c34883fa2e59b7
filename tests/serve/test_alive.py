"""Whether a server still answers, as it says itself: to `/health` and to systemd."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from edgekit.serve import scheduler
from edgekit.serve.notify import keep_watchdog, notify, watchdog_s
from tests.serve.conftest import Running, Serve

ASK = {"messages": [{"role": "user", "content": "Hello?"}], "max_tokens": 3}


def wait_for_health(server: Running, status: str) -> int:
    for _ in range(200):
        answer = httpx.get(f"{server.url}/health")
        if answer.json()["status"] == status:
            return answer.status_code
        threading.Event().wait(0.05)
    pytest.fail(f"it was never {status}: {answer.text}")


def test_an_engine_that_does_not_come_back_is_said_to_be_stuck(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "_STUCK_SECONDS", 0.3)
    server = serve(num_slots=1)
    goes_on, prefill = threading.Event(), server.engine.session.prefill

    def hangs(*args: Any, **settings: Any) -> Any:
        assert goes_on.wait(30)
        return prefill(*args, **settings)

    server.engine.session.prefill = hangs  # type: ignore[method-assign]
    answers: list[httpx.Response] = []
    url = f"{server.url}/v1/chat/completions"
    asking = threading.Thread(target=lambda: answers.append(httpx.post(url, json=ASK, timeout=30)))
    asking.start()
    try:
        assert wait_for_health(server, "stuck") == 503
        assert not server.service.is_well()
    finally:
        goes_on.set()
        asking.join()
    assert answers[0].status_code == 200
    assert wait_for_health(server, "ok") == 200
    assert server.service.is_well()


def test_an_idle_server_is_not_stuck(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "_STUCK_SECONDS", -1.0)
    server = serve()
    assert httpx.get(f"{server.url}/health").json() == {"status": "ok"}


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> socket.socket:
    """What a manager gets, without waiting."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.bind(str(tmp_path / "notify"))
    sock.setblocking(False)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    return sock


def test_the_watchdog_is_fed_only_while_all_is_well(
    heard: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "20000")
    states = iter([True, True, False, False, False])
    asked = 0

    def is_well() -> bool:
        nonlocal asked
        asked += 1
        return next(states)

    with pytest.raises(RuntimeError):  # StopIteration: the states are used up
        asyncio.run(keep_watchdog(is_well))
    assert asked == 6
    assert [heard.recv(64) for _ in range(2)] == [b"WATCHDOG=1"] * 2
    with pytest.raises(BlockingIOError):
        heard.recv(64)
    heard.close()


def test_nobody_listens_and_nothing_happens(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in (None, "", "relative", str(tmp_path / "nobody"), "@edgekit-nobody", "vsock:1:2"):
        if name is None:
            monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
        else:
            monkeypatch.setenv("NOTIFY_SOCKET", name)
        notify("READY=1")


@pytest.mark.parametrize(
    ("variables", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "3000000"}, 3.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}, 3.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, None),  # meant for another process
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdog_is_for_whom_it_names(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], seconds: float | None
) -> None:
    for name in ("WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert watchdog_s() == seconds


NEUTRAL = {"ignore_eos": False, "no_stop_trim": False, "skip_special_tokens": True,
           "return_hidden_states": False}  # fmt: skip
NEUTRAL_IN_CHAT = {"continue_final_message": False, "separate_reasoning": True,
                   "stream_reasoning": True, "include_reasoning": True}  # fmt: skip


def test_what_routers_add_is_taken_with_the_value_that_changes_nothing(serve: Serve) -> None:
    server = serve()
    for path, asked, added in (
        ("chat/completions", ASK, NEUTRAL | NEUTRAL_IN_CHAT),
        ("completions", {"prompt": "Hello", "max_tokens": 3}, NEUTRAL),
    ):
        url = f"{server.url}/v1/{path}"
        assert httpx.post(url, json={**asked, **added}).status_code == 200
        for name, value in added.items():
            refused = httpx.post(url, json={**asked, name: not value})
            assert refused.status_code == 400
            assert refused.json()["error"]["param"] == name
