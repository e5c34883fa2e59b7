"""packaging/container: by hadolint, and its command as the image would run it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.packaging.conftest import EDGEKIT, free_port, wait_until

Tool = Callable[[str], str]


def lint(hadolint: str, file: Path) -> list[str]:
    command = [hadolint, "--no-color", "--format", "json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return [found["code"] for found in json.loads(done.stdout)]


def test_hadolint_finds_nothing(tool: Tool, packaging: Path, tmp_path: Path) -> None:
    file = packaging / "container" / "Containerfile"
    assert lint(tool("hadolint"), file) == []
    worse = tmp_path / "Containerfile"
    worse.write_text(file.read_text() + 'USER root\nCMD curl "$HOME" | sh\n')
    # the last user is root; no words but a line for a shell
    assert {"DL3002", "DL3025"} <= set(lint(tool("hadolint"), worse))


def test_nothing_but_sources_is_sent_to_the_builder(packaging: Path) -> None:
    container = packaging / "container"
    text = container.joinpath("Containerfile").read_text()
    sent = [w for line in text.splitlines() if line.startswith("COPY ") for w in line.split()[1:-1]]
    for name in (container / "Containerfile.dockerignore", packaging.parent / ".containerignore"):
        rules = [rule for rule in name.read_text().splitlines() if rule and rule[0] != "#"]
        assert rules[0] == "*"
        allowed = {rule[1:] for rule in rules if rule[0] == "!"}
        assert allowed == {name for name in sent if not name.startswith(("-", "/"))}


@pytest.fixture
def health_check(packaging: Path) -> list[str]:
    """The words of HEALTHCHECK."""
    text = (packaging / "container" / "Containerfile").read_text()
    line = text.partition("HEALTHCHECK ")[2].split("CMD ", 1)[1].splitlines()[0]
    words: list[str] = json.loads(line)
    return words


def test_its_command_serves_is_healthy_and_drains(
    entrypoint: list[str], health_check: list[str], store: Path, tmp_path: Path
) -> None:
    [manifest] = store.glob("*/*/*/manifest.json")
    (tmp_path / "keys").write_text("secret\n")
    port = free_port()
    here = {"/engine": str(manifest.parent), "/run/keys": str(tmp_path / "keys"),
            "0.0.0.0": "127.0.0.1", "8000": str(port)}  # fmt: skip
    words = [here.get(word, word) for word in entrypoint]
    check = [EDGEKIT[0], "-c", health_check[2].replace("8000", str(port))]

    def is_healthy() -> bool:
        return subprocess.run(check, capture_output=True, check=False).returncode == 0

    assert not is_healthy()
    process = subprocess.Popen([*EDGEKIT, *words[1:]], env={**os.environ, "HOME": "/nowhere"})
    try:
        wait_until(is_healthy)
        assert httpx.get(f"http://127.0.0.1:{port}/v1/models").status_code == 401
        process.send_signal(signal.SIGTERM)
        assert process.wait(40) == 0
    finally:
        process.kill()
        process.wait()
    (tmp_path / "keys").unlink()  # without the file it does not start, let alone open
    done = subprocess.run([*EDGEKIT, *words[1:]], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "cannot read the key file" in done.stderr
