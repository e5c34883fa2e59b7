"""`edgekit serve` as a process over a built engine: how it begins, and every way it ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner

from edgekit.cli import main

Start = Callable[..., "Server"]
ASK = {"messages": [{"role": "user", "content": "Hello?"}]}


@pytest.fixture(scope="module")
def store(make_tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with an engine of two layers."""
    path: Path = tmp_path_factory.mktemp("serve")
    shutil.copytree(make_tiny("llama"), path / "tiny")
    words = ["build", "--model", path / "tiny", "--store", path / "store", "--precision", "fp16"]
    words += ["--profile", "cpu", "--context", "512", "--calibration-tokens", "64"]
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return path / "store"


class Server:
    """A process, from its first line on."""

    def __init__(self, store: Path, *options: str, stderr: Any, variables: dict[str, str]) -> None:
        words = [
            sys.executable,
            "-c",
            "from edgekit.cli import main; main()",
            "serve",
            "--store",
            str(store),
            "--port",
            "0",
        ]
        self.process = subprocess.Popen(
            [*words, "--json", *options],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env={**os.environ, **variables},
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.communicate(timeout=20)
        self.said = json.loads(line)
        self.url = self.said["url"]

    def end(self, number: signal.Signals) -> tuple[int, str]:
        self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=30)
        return self.process.returncode, errors or ""


@pytest.fixture
def start(store: Path) -> Iterator[Start]:
    servers: list[Server] = []

    def begin(*options: str, stderr: Any = subprocess.PIPE, **variables: str) -> Server:
        servers.append(Server(store, *options, stderr=stderr, variables=variables))
        return servers[-1]

    yield begin
    for server in servers:
        server.process.kill()
        server.process.communicate()


def test_it_says_where_it_is_and_ctrl_c_is_130(start: Start) -> None:
    server = start("--slots", "2", "--context", "256")
    assert server.said == {
        "url": server.url, "model": "tiny", "slots": 2, "context_tokens": 256
    }  # fmt: skip
    answer = httpx.post(f"{server.url}/v1/chat/completions", json={**ASK, "max_tokens": 8})
    assert answer.json()["usage"]["completion_tokens"] <= 8
    code, errors = server.end(signal.SIGINT)
    assert code == 130
    assert "Traceback" not in errors
    assert "interrupted" in errors


def test_the_page_is_there_unless_it_is_not_wanted(start: Start) -> None:
    answer = httpx.get(start().url)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    assert httpx.get(start("--no-page").url).status_code == 404


def test_sigterm_finishes_what_is_in_work(start: Start) -> None:
    server = start("--slots", "4")
    results: list[httpx.Response | Exception] = []
    has_begun = threading.Event()

    def ask(number: int) -> None:
        body = {**ASK, "max_tokens": 200, "temperature": 1, "seed": number}
        for _ in range(100):
            try:
                answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=20)
            except httpx.TransportError as exc:
                results.append(exc)  # nobody listens any more
                return
            results.append(answer)
            if len(results) > 8:
                has_begun.set()
            if answer.status_code != 200:
                return

    threads = [threading.Thread(target=ask, args=[number]) for number in range(6)]
    for thread in threads:
        thread.start()
    assert has_begun.wait(30)
    code, errors = server.end(signal.SIGTERM)
    for thread in threads:
        thread.join(30)
    assert code == 0
    assert "Traceback" not in errors
    answers = [r for r in results if isinstance(r, httpx.Response)]
    assert {r.status_code for r in answers} <= {200, 503}
    for answer in answers:
        if answer.status_code == 200:
            assert answer.json()["choices"][0]["finish_reason"] in ("stop", "length")
    # a connection that was never taken is refused or closed before its first byte
    for error in results:
        assert isinstance(
            error, httpx.Response | httpx.ConnectError | httpx.ReadError | httpx.RemoteProtocolError
        )


def test_a_log_that_cannot_be_written_stops_nobody(start: Start) -> None:
    with Path("/dev/full").open("w") as full:
        server = start(stderr=full)
        for _ in range(3):
            answer = httpx.post(f"{server.url}/v1/chat/completions", json={**ASK, "max_tokens": 4})
            assert answer.status_code == 200
        bad = httpx.post(f"{server.url}/v1/chat/completions", json={"messages": 1})
        assert bad.status_code == 400


def test_keys_come_from_files_and_the_environment(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# robots\nfirst\n\nsecond\n")
    server = start("--api-key-file", str(path), "--host", "127.0.0.2", EDGEKIT_API_KEY="third")
    for key, status in (("first", 200), ("second", 200), ("third", 200), ("# robots", 401)):
        headers = {"Authorization": f"Bearer {key}"}
        assert httpx.get(f"{server.url}/v1/models", headers=headers).status_code == status
        assert (
            httpx.get(f"{server.url}/v1/models", headers={"x-api-key": key}).status_code == status
        )


def run(store: Path, *options: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["serve", "--store", str(store), *options])
    return result.exit_code, result.stderr


def test_what_is_not_safe_or_not_free_is_refused_before_loading(
    store: Path, tmp_path: Path
) -> None:
    code, errors = run(store, "--host", "0.0.0.0")
    assert code == 2
    assert "`--api-key-file FILE`, or `--no-auth`" in errors
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, errors = run(store, "--port", str(port))
    assert code == 2
    assert f"cannot listen on 127.0.0.1:{port}: address already in use" in errors
    (tmp_path / "empty").write_text("# nothing\n")
    code, errors = run(store, "--api-key-file", str(tmp_path / "empty"))
    assert code == 2
    assert "no key in" in errors


def test_answers_side_by_side_are_those_alone(start: Start) -> None:
    server = start("--slots", "4")
    bodies = [
        {"messages": [{"role": "user", "content": text}], "max_tokens": 40}
        for text in ("one", "two and three", "quick brown fox", "é", "jumps over", "a", "b", "c")
    ]

    def ask(body: Any) -> str:
        answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)
        content: str = answer.json()["choices"][0]["message"]["content"]
        return content

    alone = [ask(body) for body in bodies]
    together: dict[int, str] = {}
    threads = [
        threading.Thread(target=lambda i=i, body=body: together.update({i: ask(body)}))
        for i, body in enumerate(bodies)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [together[i] for i in range(len(bodies))] == alone
