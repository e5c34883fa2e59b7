"""packaging/systemd: by systemd's own tools, by running its command, and booted with systemd."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.packaging.conftest import EDGEKIT

Tool = Callable[[str], str]


@pytest.fixture(scope="session")
def unit(packaging: Path) -> dict[str, list[str]]:
    """The settings of the unit, name to values."""
    settings: dict[str, list[str]] = {}
    for line in (packaging / "systemd" / "edgekit-serve.service").read_text().splitlines():
        if line and line[0] not in "#[":
            name, _, value = line.partition("=")
            settings.setdefault(name, []).append(value)
    return settings


@pytest.fixture
def checked(packaging: Path, tmp_path: Path) -> Path:
    """The unit with a program that is there: systemd-analyze looks."""
    text = (packaging / "systemd" / "edgekit-serve.service").read_text()
    path = tmp_path / "edgekit-serve.service"
    path.write_text(text.replace("/opt/edgekit/bin/edgekit", sys.executable))
    return path


def verify(analyze: str, unit: Path) -> tuple[int, str]:
    done = subprocess.run(
        [analyze, "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False
    )
    # about other units of this machine it may say what it likes
    ours = [line for line in done.stderr.splitlines() if unit.name in line or str(unit) in line]
    return done.returncode, "\n".join(ours)


def test_systemd_understands_every_line(tool: Tool, checked: Path, packaging: Path) -> None:
    assert verify(tool("systemd-analyze"), checked) == (0, "")
    drop_in = checked.with_name(f"{checked.name}.d")
    drop_in.mkdir()
    (drop_in / "jetson.conf").write_text((packaging / "systemd" / "jetson.conf").read_text())
    assert verify(tool("systemd-analyze"), checked) == (0, "")


def test_the_check_would_find_a_mistake(tool: Tool, checked: Path) -> None:
    text = checked.read_text()
    checked.write_text(text.replace("ProtectClock=yes", "ProtectClocks=yes"))
    assert "ProtectClocks" in verify(tool("systemd-analyze"), checked)[1]


def test_its_exposure_is_low(tool: Tool, checked: Path) -> None:
    # 0 to 10 after systemd's weights; a service that sets nothing has 9.6. 1.7 here: the network,
    # the GPU's devices, /proc/meminfo and compiled code are what it needs
    def exposure() -> int:
        command = [tool("systemd-analyze"), "security", "--offline=true", "--no-pager"]
        return subprocess.run(
            [*command, "--threshold=20", str(checked)], capture_output=True, check=False
        ).returncode

    assert exposure() == 0
    checked.write_text(checked.read_text().replace("CapabilityBoundingSet=\n", ""))
    assert exposure() != 0


def test_it_waits_longer_than_the_server_drains(unit: dict[str, list[str]]) -> None:
    words = shlex.split(unit["ExecStart"][0])
    assert int(unit["TimeoutStopSec"][0]) > int(words[words.index("--drain") + 1])
    assert unit["Type"] == ["notify"]


class Manager:
    """The socket that a service manager listens on."""

    def __init__(self, path: Path, address: str | None = None) -> None:
        self.name = address or str(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + self.name[1:] if self.name[0] == "@" else self.name)
        self._socket.settimeout(30)
        self.heard: list[str] = []

    def wait_for(self, line: str) -> None:
        while line not in self.heard:
            self.heard += self._socket.recv(4096).decode().splitlines()

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    name = f"@edgekit-test-{os.getpid()}" if request.param == "abstract" else None
    manager = Manager(tmp_path / "notify", name)
    yield manager
    manager.close()


def test_its_command_serves_and_tells_systemd(
    unit: dict[str, list[str]], packaging: Path, store: Path, tmp_path: Path, manager: Manager
) -> None:
    given = dict(
        line.split("=", 1)
        for line in (packaging / "systemd" / "serve.env").read_text().splitlines()
        if line and line[0] != "#"
    )
    options = given["EDGEKIT_SERVE_OPTIONS"].replace("--port 8000", "--port 0 --json")
    assert options != given["EDGEKIT_SERVE_OPTIONS"]
    (tmp_path / "keys").write_text("secret\n")
    line = unit["ExecStart"][0].replace("${CREDENTIALS_DIRECTORY}", str(tmp_path))
    program, *words = shlex.split(line.replace("$EDGEKIT_SERVE_OPTIONS", options))
    assert program == "/opt/edgekit/bin/edgekit"
    variables = {"NOTIFY_SOCKET": manager.name, "WATCHDOG_USEC": "400000"}
    process = subprocess.Popen(
        [*EDGEKIT, *words],
        cwd=store.parent,  # WorkingDirectory=
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        url = json.loads(process.stdout.readline())["url"]
        manager.wait_for("READY=1")
        manager.wait_for("STATUS=serving tiny")
        assert httpx.get(f"{url}/v1/models").status_code == 401
        key = {"Authorization": "Bearer secret"}
        assert httpx.get(f"{url}/v1/models", headers=key).status_code == 200
        manager.heard.clear()
        manager.wait_for("WATCHDOG=1")
        process.send_signal(signal.SIGTERM)
        manager.wait_for("STOPPING=1")
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.communicate()
