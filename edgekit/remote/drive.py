"""edgekit on another machine: its progress and words are shown here, its errors are ours."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from edgekit.errors import (
    BackendError,
    BudgetError,
    EdgekitError,
    EngineError,
    InputError,
    MissingBackendError,
)
from edgekit.progress import Progress, read_progress
from edgekit.remote.ssh import SSH_FAILED, Ssh, broken, ending

Say = Callable[[str], None]
_ERRORS: Mapping[int, type[EdgekitError]] = MappingProxyType(
    {kind.exit_code: kind for kind in (EdgekitError, InputError, BudgetError, BackendError,
                                       EngineError)}
)  # fmt: skip
"""Exit code there -> the class that ends with the same here."""
_NOT_FOUND = (126, 127)
"""What a shell ends with for a command that is not there, or is none."""
_INTERRUPTED = 130


def drive(ssh: Ssh, words: Sequence[str], *, report: Progress, say: Say) -> str:
    """What `edgekit WORDS…` there prints on stdout.

    Raises the error that it ended with, by its exit code; `RemoteError` for a lost connection;
    `KeyboardInterrupt` for one that was interrupted there.
    """
    host, lines = ssh.address.host, []
    with tempfile.TemporaryFile() as out:
        process = ssh.start(
            [ssh.address.command, "--driven", *words],
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=subprocess.PIPE,
        )
        with ending(process):
            assert process.stderr is not None
            for raw in process.stderr:
                text = raw.decode(errors="replace").rstrip()
                line = "".join(c for c in text if c.isprintable())
                if progress := read_progress(line):
                    step, done, total = progress
                    report(f"{host}: {step}", done, total)
                    continue
                lines.append(line)
                if not line.startswith(("error: ", "hint: ")) and line:
                    say(f"{host}: {line}")
            code = process.wait()
        if code != 0:
            raise error_of(host, code, lines)
        out.seek(0)
        return out.read().decode(errors="replace")


def error_of(host: str, code: int, lines: Sequence[str]) -> BaseException:
    """What a command there ended with, as an error of this machine."""
    if code == SSH_FAILED:
        return broken(host, "\n".join(lines))
    if code in _NOT_FOUND:
        return MissingBackendError(
            f"edgekit is not on {host}: {' '.join(lines)[-200:]}",
            hint="install it there, or say where it is: `--on-edgekit venv/bin/edgekit`",
        )
    if code == _INTERRUPTED:
        return KeyboardInterrupt()
    said = [line.removeprefix("error: ") for line in lines if line.lower().startswith("error: ")]
    hints = [line.removeprefix("hint: ") for line in lines if line.startswith("hint: ")]
    kind = _ERRORS.get(code, EdgekitError)
    if not said:
        said = [f"edgekit ended with {code}: {' '.join(lines)[-400:]}"]
    return kind(f"on {host}: {said[-1]}", hint=f"there: {hints[-1]}" if hints else None)


def parse_json(host: str, text: str) -> dict[str, Any]:
    """An object that edgekit there printed. Raises `MissingBackendError` for anything else."""
    try:
        data = json.loads(text[text.index("{") :])
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict):
        raise MissingBackendError(
            f"what answers on {host} is no edgekit of this version: {text[:80]!r}",
            hint="install the same edgekit there, or say where it is: `--on-edgekit PATH`",
        )
    return data
