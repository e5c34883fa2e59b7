"""Another Python on this machine: found, started, asked one question.

NVIDIA's packages pin their own torch, so backends that need one drive it as a program in an
interpreter of its own. Nothing of it is imported here: a small program says what is installed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from edgekit.errors import BackendError, MissingBackendError

MARK = "edgekit-runtime:"
"""Begins the line with the answer, a JSON object, among whatever else is printed."""
VERSION_PROGRAM = """
import json, os, platform, sys
from importlib import metadata
def version(*names):
    for name in names:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            pass
"""
"""Begins a program that is asked: `version` gives that of the first of these distributions."""
_TIMEOUT_S = 120.0
"""A container's first start reads its image from disk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """What a program that ran to its end left."""

    returncode: int
    stdout: str = ""
    stderr: str = ""


Runner = Callable[[Sequence[str], Mapping[str, str]], Finished]
"""`run(words, environ)`; never raises for a program that fails or cannot be started."""


def run_program(words: Sequence[str], environ: Mapping[str, str]) -> Finished:
    """The usual `Runner`: two minutes at most."""
    try:
        done = subprocess.run(
            list(words), env=dict(environ), stdin=subprocess.DEVNULL,
            capture_output=True, timeout=_TIMEOUT_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Finished(returncode=124, stderr=f"no answer within {_TIMEOUT_S:.0f} s")
    except (OSError, ValueError) as exc:
        return Finished(returncode=127, stderr=str(exc))
    return Finished(
        returncode=done.returncode,
        stdout=done.stdout.decode(errors="replace"),
        stderr=done.stderr.decode(errors="replace"),
    )


def find_python(said: str, where: str, environ: Mapping[str, str], *, hint: str) -> str:
    """The interpreter that is meant: a path, an environment's directory, or a name on the PATH.

    `where` is the flag or variable that says it. Raises `MissingBackendError`.
    """
    path = Path(said).expanduser()
    if path.is_dir():
        path = path / "bin" / "python"
    elif path.parent == Path() and not path.exists():
        path = Path(shutil.which(said, path=environ.get("PATH")) or said)
    if not path.is_file():
        raise MissingBackendError(
            f"{where} names an interpreter that is not there: {path}", hint=hint
        )
    if not os.access(path, os.X_OK):
        raise MissingBackendError(f"{where} names a file that cannot be run: {path}", hint=hint)
    # not resolved: the link is what makes it the Python of its environment
    return str(path.absolute())


def ask_python(
    python: str, program: str, environ: Mapping[str, str], run: Runner, *, hint: str
) -> dict[str, Any]:
    """What `program` prints after `MARK` in that interpreter. Raises `BackendError`."""
    finished = run([python, "-c", program], environ)
    said = read_answer(finished)
    if said is None:
        raise BackendError(
            f"{python} does not answer as a Python does: {last_line(finished)}", hint=hint
        )
    return said


def read_answer(finished: Finished) -> dict[str, Any] | None:
    """What was printed after `MARK`."""
    for line in reversed(finished.stdout.splitlines()):
        before, mark, text = line.partition(MARK)
        if not mark or before.strip():
            continue
        try:
            said = json.loads(text)
        except ValueError:
            continue
        if isinstance(said, dict):
            return said
    return None


def last_line(finished: Finished) -> str:
    """The last thing that it said, or its exit code."""
    lines = [line.strip() for line in (finished.stderr or finished.stdout).splitlines()]
    told = [line for line in lines if line]
    return told[-1][:300] if told else f"it ended with exit code {finished.returncode}"


def is_installed_here(distribution: str) -> bool:
    """Whether edgekit's own environment has it."""
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


def release_of(version: str) -> tuple[int, int, int] | None:
    """`"0.11.1rc1"` -> `(0, 11, 1)`; a third number that is left out is 0."""
    found = re.match(r"v?(\d+)\.(\d+)(?:\.(\d+))?", version)
    return (int(found[1]), int(found[2]), int(found[3] or 0)) if found else None
