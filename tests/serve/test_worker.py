"""A server over an engine in a process of its own, with a stand-in for TensorRT-LLM."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from click.testing import CliRunner

from edgekit.cli import main

pytestmark = pytest.mark.slow  # it builds an engine

ASK = {"messages": [{"role": "user", "content": "Hello?"}]}
_WITH_CARD = """
import json, sys
import edgekit.device
record = json.load(open(sys.argv.pop(1)))["nvml"]
edgekit.device.read_record = lambda root: record
from edgekit.cli import main
main()
"""


@pytest.fixture(scope="module")
def engine(
    make_tiny: Callable[..., Path], use_trtllm: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Path]:  # fmt: skip
    """Built for three answers at once."""
    directory = tmp_path_factory.mktemp("worker")
    shape = {"hidden_size": 128, "intermediate_size": 192, "num_key_value_heads": 2}
    words = [
        "build", "--model", make_tiny("llama", **shape), "--store", directory / "store",
        "--profile", "rtx-4090", "--backend", "tensorrt-llm", "--precision", "int8",
        "--context", 256, "--batch", 3, "--calibration-tokens", 64, "--json",
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        use_trtllm(patch, directory)
        result = CliRunner().invoke(main, [str(word) for word in words])
        assert result.exit_code == 0, result.stderr
        yield Path(json.loads(result.stdout)["engine"])


class Server:
    """`edgekit serve` on a machine with the card, and the engine's own process."""

    def __init__(self, engine: Path) -> None:
        card = Path(__file__).parents[1] / "data" / "devices" / "rtx-4090" / "device.json"
        words = [sys.executable, "-c", _WITH_CARD, card, "serve", engine, "--port", 0, "--json"]
        self.process = subprocess.Popen(
            [str(word) for word in words],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ),
        )  # fmt: skip
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.communicate(timeout=20)
        self.url = json.loads(line)["url"]
        [self.worker] = psutil.Process(self.process.pid).children()

    def wait(self) -> tuple[int, str]:
        _, errors = self.process.communicate(timeout=30)
        return self.process.returncode, errors


@pytest.fixture
def server(engine: Path) -> Iterator[Server]:
    found = Server(engine)
    yield found
    found.process.kill()
    found.process.communicate()


def long_answers(server: Server, count: int) -> tuple[list[threading.Thread], list[Any]]:
    """So many streams in work; each one's text, or what it ended with."""
    found: list[Any] = []

    def ask() -> None:
        body = {**ASK, "max_tokens": 200, "stream": True}
        try:
            with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body) as said:
                found.append("".join(said.iter_text()))
        except httpx.TransportError as exc:
            found.append(exc)

    threads = [threading.Thread(target=ask) for _ in range(count)]
    for thread in threads:
        thread.start()
    end = time.monotonic() + 20
    while httpx.get(f"{server.url}/v1/status").json()["slots"]["busy"] < count:
        assert time.monotonic() < end
    return threads, found


def test_a_killed_worker_is_said_to_everybody_and_ends_the_server(server: Server) -> None:
    threads, found = long_answers(server, 3)
    os.kill(server.worker.pid, signal.SIGKILL)
    for thread in threads:
        thread.join(30)
    for text in found:
        error = json.loads(text.strip().rpartition("data: ")[2])["error"]
        assert error["code"] in ("engine_failed", "shutting_down")
    assert any("SIGKILL" in text for text in found)
    code, errors = server.wait()
    assert code == 4
    assert "error: the engine answers no more" in errors
    assert "Traceback" not in errors


def test_sigterm_lets_streams_end_and_leaves_no_worker(server: Server) -> None:
    threads, found = long_answers(server, 3)
    server.process.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join(30)
    code, errors = server.wait()
    assert code == 0, errors
    for text in found:
        assert text.strip().endswith("data: [DONE]")
    assert not server.worker.is_running()
