"""A real sshd on loopback, with keys and a port of its own, as the user who runs the tests."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from edgekit.engine import STAGE_FILE
from edgekit.remote import Address
from tests.pack.conftest import write_engine

_CONFIG = """
Port {port}
ListenAddress 127.0.0.1
HostKey {directory}/host_key
AuthorizedKeysFile {directory}/key.pub
PidFile none
UsePAM no
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
"""
_LIGHT = """
import sys
for name in ("accelerate", "gguf", "huggingface_hub", "modelopt", "onnx", "safetensors", "torch",
             "transformers"):
    sys.modules[name] = None
"""


@dataclass(frozen=True, kw_only=True)
class Server:
    """Where the sshd is, and how to get in."""

    host: str
    port: int
    directory: Path
    process: subprocess.Popen[bytes]

    @property
    def options(self) -> tuple[str, ...]:
        return (
            f"Port={self.port}",
            f"IdentityFile={self.directory}/key",
            "IdentitiesOnly=yes",
            f"UserKnownHostsFile={self.directory}/known_hosts",
        )

    def address(self, **changes: str) -> Address:
        return Address(host=self.host, options=self.options, **changes)

    def drop(self) -> None:
        """Cut every connection, as a network that goes away; the server stays."""
        for child in psutil.Process(self.process.pid).children(recursive=False):
            for process in [*child.children(recursive=False), child]:
                if "sshd" in process.name():
                    process.kill()


def tool(name: str) -> str:
    """A program of the system; where CI must have it, a test without it fails."""
    path = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    if path is None:
        reason = f"{name} is not installed: apt-get install openssh-server openssh-client rsync"
        (pytest.fail if os.environ.get("EDGEKIT_TEST_SSH") else pytest.skip)(reason)
    return path


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    sshd, keygen = tool("sshd"), tool("ssh-keygen")
    tool("ssh"), tool("rsync")
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # root's sshd separates its privileges there
    with tempfile.TemporaryDirectory(prefix="sshd-") as name, socket.socket() as probe:
        directory = Path(name)
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        for key in ("host_key", "key", "other_key"):
            command = [keygen, "-q", "-t", "ed25519", "-N", "", "-f", str(directory / key)]
            subprocess.run(command, check=True)
        public = (directory / "host_key.pub").read_text()
        (directory / "known_hosts").write_text(f"[127.0.0.1]:{port} {public}")
        (directory / "config").write_text(_CONFIG.format(port=port, directory=directory))
        with (directory / "log").open("wb") as log:
            process = subprocess.Popen(
                [sshd, "-f", str(directory / "config"), "-D", "-e"], stderr=log
            )
        try:
            _wait_for(port, process, directory / "log")
            host = f"{getpass.getuser()}@127.0.0.1"
            yield Server(host=host, port=port, directory=directory, process=process)
        finally:
            process.terminate()
            process.wait()


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    pytest.fail("sshd does not listen")


@pytest.fixture
def edgekit_there(tmp_path: Path) -> Callable[..., str]:
    """`make(code)`: the path of an edgekit that runs that Python first.

    It is a light one, as on a board: what `edgekit[build]` adds cannot be imported.
    """

    def make(code: str = "") -> str:
        program, script = tmp_path / "there.py", tmp_path / "edgekit there"
        call = "from edgekit.cli import main\nmain(prog_name='edgekit')\n"
        program.write_text(f"{_LIGHT}\n{code}\n{call}")
        script.write_text(f'#!/bin/sh\nexec {sys.executable} -W ignore {program} "$@"\n')
        script.chmod(0o755)
        return str(script)

    return make


@pytest.fixture
def without_rsync(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As on a machine where it is not installed."""
    directory = tmp_path / "bin"
    directory.mkdir()
    (directory / "ssh").symlink_to(tool("ssh"))
    monkeypatch.setenv("PATH", str(directory))


@pytest.fixture
def big_stage(tmp_path: Path) -> Path:
    """Twelve megabytes that do not shrink."""
    files = {"source/rank0.safetensors": os.urandom(12 * 2**20), "tokenizer/tokenizer.json": b"{}"}
    return write_engine(tmp_path / "a" / "cpu" / "big.stage", files, file=STAGE_FILE)


def wait_until(is_so: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)
