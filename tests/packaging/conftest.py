"""What the tests of packaging/ share: a store with a tiny engine, and tools that may be missing."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from edgekit.cli import main
from tests.serve.conftest import serve as serve  # servers in threads, over engines that say texts

EDGEKIT = [sys.executable, "-c", "from edgekit.cli import main; main()"]
"""`edgekit`, wherever it is installed."""


@pytest.fixture(scope="session")
def packaging() -> Path:
    """The directory of that name."""
    return Path(__file__).parents[2] / "packaging"


@pytest.fixture(scope="session")
def tool() -> Callable[[str], str]:
    """The path of a program. Who does not have it skips the test; CI fails, for it installs all."""

    def find(name: str) -> str:
        beside = Path(sys.executable).with_name(name)
        found = str(beside) if beside.is_file() else shutil.which(name)
        if found is None:
            says = pytest.fail if os.environ.get("CI") else pytest.skip
            says(f"{name} is not installed")
        return found

    return find


@pytest.fixture(scope="session")
def store(make_tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with an engine of two layers, context 512."""
    path: Path = tmp_path_factory.mktemp("packaging")
    shutil.copytree(make_tiny("llama"), path / "tiny")
    words = ["build", "--model", path / "tiny", "--store", path / "engines", "--precision", "fp16"]
    words += ["--profile", "cpu", "--context", "512", "--calibration-tokens", "64"]
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return path / "engines"


def free_port() -> int:
    """Nobody listens there, a moment ago."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def wait_until(is_true: Callable[[], bool], *, seconds: float = 60) -> None:
    """Ask ten times a second; transport errors count as no."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with suppress(httpx.TransportError):
            if is_true():
                return
        time.sleep(0.1)
    pytest.fail(f"not within {seconds:g} s")


@pytest.fixture(scope="session")
def entrypoint(packaging: Path) -> list[str]:
    """What the image runs: words, not a line for a shell, which would keep SIGTERM to itself."""
    text = (packaging / "container" / "Containerfile").read_text()
    [line] = [line for line in text.splitlines() if line.startswith("ENTRYPOINT ")]
    words: list[str] = json.loads(line.removeprefix("ENTRYPOINT "))
    return words
