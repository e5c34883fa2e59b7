"""Servers as processes of their own, on a free port of this machine, their words in a log."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from peers.environment import CACHE, ROOT, PeerError, own_python
from serve_load.client import Address

_START_SECONDS = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A server that answers."""

    name: str
    address: Address
    process: subprocess.Popen[bytes]
    log: Path

    def rss_bytes(self) -> int:
        """Resident memory of the process and its children."""
        try:
            first = psutil.Process(self.process.pid)
            found = [first, *first.children(recursive=True)]
            return sum(process.memory_info().rss for process in found)
        except psutil.Error as exc:
            raise PeerError(f"{self.name} has ended: {_last_words(self.log)}") from exc

    def get(self, path: str) -> Any:
        """What a GET says, JSON or text. Raises `OSError`."""
        url = f"http://{self.address.host}:{self.address.port}{path}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            body = answer.read().decode()
        return json.loads(body) if body.startswith(("{", "[")) else body


@contextmanager
def edgekit_server(
    engine: str | None,
    *,
    slots: int,
    context_tokens: int,
    queue: int = 64,
    store: Path | None = None,
) -> Iterator[Server]:
    """`edgekit serve` of this source tree. Raises `PeerError`."""
    words = [
        own_python(), "-c", "from edgekit.cli import main; main()", "serve",
        *([engine] if engine else []), *(["--store", store] if store else []),
        "--port", "{port}", "--slots", slots, "--context", context_tokens, "--queue", queue,
    ]  # fmt: skip
    with _process("edgekit", words) as server:
        yield server


@contextmanager
def llama_cpp_server(
    binary: Path, model: Path, *, slots: int, context_tokens: int, threads: int
) -> Iterator[Server]:
    """llama.cpp's server with as many slots, each with as much context. Raises `PeerError`.

    It keeps no copies of prompts that left a slot: these prompts do not come again.
    """
    words = [
        binary, "--model", model, "--host", "127.0.0.1", "--port", "{port}",
        "--parallel", slots, "--ctx-size", slots * context_tokens,
        "--threads", threads, "--threads-batch", threads, "--cache-ram", 0,
    ]  # fmt: skip
    with _process("llama.cpp", words) as server:
        yield server


@contextmanager
def _process(name: str, words: Sequence[object]) -> Iterator[Server]:
    port = _free_port()
    command = [str(word).format(port=port) if word == "{port}" else str(word) for word in words]
    CACHE.mkdir(exist_ok=True)
    log = CACHE / f"{name}-server.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
    server = Server(
        name=name, address=Address(host="127.0.0.1", port=port), process=process, log=log
    )
    try:
        _wait_until_ready(server)
        yield server
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_ready(server: Server) -> None:
    until = time.monotonic() + _START_SECONDS
    while time.monotonic() < until:
        if server.process.poll() is not None:
            raise PeerError(f"{server.name}'s server does not start: {_last_words(server.log)}")
        try:
            server.get("/health")
        except (OSError, urllib.error.URLError):
            time.sleep(0.1)
        else:
            return
    raise PeerError(f"{server.name}'s server is not ready after {_START_SECONDS:.0f} s")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _last_words(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else "it said nothing"
