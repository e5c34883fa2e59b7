"""A stage travels: by rsync, which goes on where it stopped, or packed, through ssh alone."""

from __future__ import annotations

import re
import shlex
import subprocess
import tempfile
from pathlib import Path

from edgekit.errors import RemoteError, StorageError
from edgekit.pack import pack
from edgekit.progress import Progress
from edgekit.remote.drive import error_of
from edgekit.remote.ssh import GO_ON, SSH_FAILED, Ssh, ending

_PERCENT = re.compile(rb"\s(\d+)%\s")
_RSYNC = ("-rtLs", "--inplace", "--delete")
_TELLING = ("--no-inc-recursive", "--info=progress2")
_FULL = ("no space left on device", "disk quota exceeded")


def send_stage(stage: Path, ssh: Ssh, there: str, *, report: Progress) -> None:
    """Make the directory `there` the same as `stage`. Whether it is so is checked when it is
    compiled. Raises `RemoteError`, `StorageError`, and what `edgekit unpack` ends with."""
    (_send_by_rsync if ssh.has_rsync else _send_packed)(stage, ssh, there, report=report)


def send_commands(stage: Path, ssh: Ssh, there: str) -> list[str]:
    """The command lines of `send_stage`, without the options of its connection."""
    host = ssh.address.host
    if ssh.has_rsync:
        words = ["rsync", *_RSYNC, f"{stage}/", f"{host}:{there}/"]
        return [
            shlex.join(["ssh", host, shlex.join(["mkdir", "-p", "--", there])]),
            shlex.join(words),
        ]
    unpacks = shlex.join([ssh.address.command, *_unpack_words(there)])
    sends = shlex.join(["edgekit", "pack", str(stage), "-o", "-"])
    return [f"{sends} | {shlex.join(['ssh', host, unpacks])}"]


def rsync_words(stage: Path, ssh: Ssh, there: str) -> list[str]:
    """The command; a file that is partly there is gone on with, at its place."""
    shell = shlex.join(ssh.shell)
    target = f"{ssh.address.host}:{there}/"
    return ["rsync", *_RSYNC, *_TELLING, "-e", shell, f"{stage.absolute()}/", target]


def _unpack_words(there: str) -> list[str]:
    return ["unpack", "-", "--out", there, "--force"]


def _send_by_rsync(stage: Path, ssh: Ssh, there: str, *, report: Progress) -> None:
    host = ssh.address.host
    made = ssh.run("mkdir", "-p", "--", there)
    if made.returncode != 0:
        raise StorageError(
            f"{host} cannot keep it: {made.stderr.decode(errors='replace').strip()}",
            hint="choose another place with `--on-store`",
        )
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            rsync_words(stage, ssh, there),
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
        )
        with ending(process, seconds=2.0):
            assert process.stdout is not None
            while data := process.stdout.read1(65536):  # type: ignore[attr-defined]
                for percent in _PERCENT.findall(data)[-1:]:
                    report(f"send to {host} (rsync)", int(percent), 100)
            code = process.wait()
        errors.seek(0)
        said = errors.read().decode(errors="replace").strip()
    report(f"send to {host} (rsync)", 100, 100)
    if code == 0:
        return
    if any(words in said.lower() for words in _FULL):
        raise StorageError(f"no space left on the disk of {host}", hint=f"free some; then {GO_ON}")
    last = said.splitlines()[0] if said else f"rsync ended with {code}"
    raise RemoteError(f"sending to {host} stopped: {last}", hint=GO_ON)


def _send_packed(stage: Path, ssh: Ssh, there: str, *, report: Progress) -> None:
    host = ssh.address.host

    def tell(step: str, done: int, total: int) -> None:
        report(f"send to {host} (ssh)", done, total)

    words = [ssh.address.command, *_unpack_words(there)]
    with tempfile.TemporaryFile() as errors:
        process = ssh.start(words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=errors)
        with ending(process):
            assert process.stdin is not None
            try:
                pack(stage, process.stdin, report=tell)
                process.stdin.close()
            except BrokenPipeError:
                pass  # it has it already, or says below what is wrong
            code = process.wait()
        errors.seek(0)
        lines = errors.read().decode(errors="replace").splitlines()
    if code == SSH_FAILED:
        raise RemoteError(
            f"sending to {host} stopped: {lines[-1] if lines else 'the connection broke'}",
            hint=f"{GO_ON}; with rsync on both machines, also what was sent",
        )
    if code != 0:
        raise error_of(host, code, lines)
