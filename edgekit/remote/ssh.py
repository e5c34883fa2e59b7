"""Commands on another machine through the system's ssh: one connection, nothing asked.

The connection is a first ssh that holds a socket for the others (ControlMaster). It lives as long
as the pipe to its stdin, so it ends with this process however that ends. Hosts, keys, ports and
jumps are those of ~/.ssh/config; what would have to be typed is an error with its remedy instead.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from edgekit import interrupts
from edgekit.errors import InputError, MissingBackendError, RemoteError

_HOST = re.compile(r"(?:[^\s@/:'\"\\-][^\s@/:'\"\\]*@)?[^\s@/:'\"\\-][^\s@/:'\"\\]*")
"""`host` or `user@host`: nothing that ssh or rsync could take for an option or a path."""
_OPTION = re.compile(r"[A-Za-z]+[ =]\S.*")
SSH_FAILED = 255
"""What ssh ends with when it is ssh that failed."""
_READY = "edgekit-ready"
_HOLD = (
    f'if command -v rsync >/dev/null 2>&1; then echo "{_READY} rsync"; else echo {_READY}; fi; '
    "exec cat >/dev/null"
)
_SECONDS_TO_END = 30.0
"""How long the other machine may clean up after an interrupt."""
_REMEDIES = (
    ("host key verification failed", "run `ssh {host}` once, and accept its key if it is right"),
    ("permission denied", "`ssh {host}` must work without a password: `ssh-copy-id {host}`"),
    ("too many authentication failures", "name the key in ~/.ssh/config: `IdentityFile`"),
    ("could not resolve hostname", "check the name, or add it to ~/.ssh/config"),
    ("connection refused", "start the ssh server there, or set its `Port` in ~/.ssh/config"),
    ("timed out", "check that it is on, and in this network: `ping {host}`"),
    ("no route to host", "check that it is on, and in this network: `ping {host}`"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """How another machine, and edgekit on it, is reached."""

    host: str
    """`user@host`, or a name of ~/.ssh/config."""
    edgekit: str = "edgekit"
    """The command there: on its PATH, or a path from its home directory."""
    store: str = "engines"
    """Where engines are kept there, from its home directory."""
    options: tuple[str, ...] = ()
    """Of ssh, e.g. `Port=2222`."""

    def __post_init__(self) -> None:
        if _HOST.fullmatch(self.host) is None:
            raise InputError(
                f"no name of a machine: {self.host!r}", hint="as for ssh: `--on user@jetson`"
            )
        for option in self.options:
            if _OPTION.fullmatch(option) is None:
                raise InputError(
                    f"no option of ssh: {option!r}", hint="as for `ssh -o`: `Port=2222`"
                )
        for path in (self.edgekit, self.store):
            if not path or not path.isprintable():
                raise InputError(f"no path: {path!r}")

    def path(self, text: str) -> str:
        """A path there, which no program takes for an option; `~` is where commands start."""
        text = text.removeprefix("~/") if text != "~" else "."
        return text if text.startswith("/") else f"./{text}"

    @property
    def command(self) -> str:
        """What to call edgekit there."""
        return self.edgekit if "/" not in self.edgekit else self.path(self.edgekit)


class Ssh:
    """An open connection."""

    def __init__(self, address: Address, socket: Path, *, has_rsync: bool) -> None:
        self.address = address
        self.has_rsync = has_rsync
        """There, and here."""
        self._socket = socket

    @property
    def shell(self) -> list[str]:
        """The ssh of this connection, to which a host and a command are added."""
        return _ssh(self.address, self._socket)

    def start(self, words: Sequence[str], **streams: Any) -> subprocess.Popen[bytes]:
        """Run a command there; its words arrive as they are, whatever shell is there.

        Apart from this terminal: Ctrl-C reaches this process alone, which then ends the other.
        """
        command = [*self.shell, "--", self.address.host, shlex.join(words)]
        return subprocess.Popen(command, start_new_session=True, **streams)

    def run(self, *words: str) -> subprocess.CompletedProcess[bytes]:
        """The same, to its end, with what it printed. Raises `RemoteError` for a connection that
        fails; another exit code is the caller's."""
        process = self.start(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        with ending(process):
            out, err = process.communicate()
        if process.returncode == SSH_FAILED:
            raise unreachable(self.address.host, err.decode(errors="replace"))
        return subprocess.CompletedProcess(words, process.returncode, out, err)


@contextmanager
def open_ssh(address: Address) -> Iterator[Ssh]:
    """Connect, and disconnect at the end. Raises `RemoteError`, `MissingBackendError`."""
    if shutil.which("ssh") is None:
        raise MissingBackendError("ssh is not installed here", hint="apt install openssh-client")
    with tempfile.TemporaryDirectory(prefix="edgekit-") as directory:
        socket, log = Path(directory) / "ssh", Path(directory) / "log"
        command = [*_ssh(address, socket, is_first=True), "--", address.host]
        with log.open("wb") as errors:
            process = subprocess.Popen(
                [*command, shlex.join(["sh", "-c", _HOLD])],
                start_new_session=True,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
            )
        with ending(process, seconds=5.0):
            assert process.stdout is not None
            said = _greeting(process.stdout)
            if said is None:
                process.wait()
                raise unreachable(address.host, log.read_text(errors="replace"))
            has_rsync = "rsync" in said and shutil.which("rsync") is not None
            yield Ssh(address, socket, has_rsync=has_rsync)


@contextmanager
def ending(process: subprocess.Popen[bytes], *, seconds: float = _SECONDS_TO_END) -> Iterator[None]:
    """However the body ends, so does the process: by the end of its stdin, at which an edgekit
    there stops as at Ctrl-C, or by a signal where it has none; at last by force."""
    try:
        yield
    finally:
        with interrupts.ignored():
            if process.stdin is not None:
                with suppress(OSError):  # it is gone already
                    process.stdin.close()
            elif process.poll() is None:
                process.terminate()
            pipes = [pipe for pipe in (process.stdout, process.stderr) if pipe]
            readers = [_drain(pipe) for pipe in pipes if not pipe.closed]
            try:
                process.wait(timeout=seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            for reader in readers:
                reader.join()


def _drain(pipe: IO[bytes]) -> threading.Thread:
    """Read the rest, so that who writes it is not kept from ending."""

    def drain() -> None:
        with pipe:
            while pipe.read(65536):
                pass

    thread = threading.Thread(target=drain, daemon=True)
    thread.start()
    return thread


GO_ON = "run the same command again: what is done is kept"


def broken(host: str, said: str) -> RemoteError:
    """The error of a connection that was lost."""
    return RemoteError(f"the connection to {host} broke: {_last(said)}", hint=GO_ON)


def _last(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[-1].removeprefix("ssh: ") if lines else "it was closed there"


def unreachable(host: str, said: str) -> RemoteError:
    """The error of a connection that could not be made, from what ssh said last."""
    last = _last(said)
    for words, remedy in _REMEDIES:
        if words in said.lower():
            return RemoteError(f"{host} cannot be reached: {last}", hint=remedy.format(host=host))
    return RemoteError(f"{host} cannot be reached: {last}", hint=f"try `ssh {host}`")


def _ssh(address: Address, socket: Path, *, is_first: bool = False) -> list[str]:
    options = [
        "BatchMode=yes",
        "ClearAllForwardings=yes",
        "ConnectTimeout=15",
        f"ControlMaster={'yes' if is_first else 'no'}",
        "ControlPersist=no",
        "LogLevel=ERROR",
        "RemoteCommand=none",
        "RequestTTY=no",
        "ServerAliveCountMax=4",
        "ServerAliveInterval=15",
        *address.options,
    ]
    return ["ssh", "-a", "-x", "-S", str(socket), *(w for o in options for w in ("-o", o))]


def _greeting(stdout: IO[bytes]) -> str | None:
    """What the connection says when it is there, after whatever a login shell prints."""
    for line in stdout:
        text = line.decode(errors="replace").strip()
        if text.startswith(_READY):
            return text
    return None
