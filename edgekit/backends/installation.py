"""A backend's own environment, made by `edgekit doctor --install`: said first, then done.

The environment is made in its place, since one cannot be moved. Each step finds what is there
already, so that an installation that broke off goes on where it was; downloads are kept by pip.
"""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekit.errors import BackendError, MissingBackendError
from edgekit.units import format_bytes

Execute = Callable[[Sequence[str], Mapping[str, str]], int]
"""Runs a command with its output shown; its exit status."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """What is going to be installed, where, and how."""

    backend: str
    directory: Path
    requirements: tuple[str, ...]
    commands: tuple[tuple[str, ...], ...]
    download_bytes: int
    disk_bytes: int
    notes: tuple[str, ...] = ()
    is_done: bool = False
    """It is there already, in these versions."""

    def describe(self) -> str:
        """Several lines, for people."""
        lines = [
            f"{self.backend} gets an environment of its own: {self.directory}",
            f"  packages: {', '.join(self.requirements)}",
            f"  about {format_bytes(self.download_bytes)} to download, "
            f"{format_bytes(self.disk_bytes)} on disk; `rm -r` removes it again",
            *(f"  {note}" for note in self.notes),
            "by these commands:",
            *(f"  {shlex.join(command)}" for command in self.commands),
        ]
        return "\n".join(lines)


def run_installation(
    plan: Installation, environ: Mapping[str, str], *, execute: Execute | None = None
) -> None:
    """Run the commands in turn. Raises `BackendError` for one that fails, with the rest undone."""
    run = execute or _execute
    for command in plan.commands:
        try:
            status = run(command, environ)
        except OSError as exc:
            raise MissingBackendError(f"{command[0]} does not start: {exc}") from exc
        if status != 0:
            raise BackendError(
                f"`{shlex.join(command)}` ended with exit code {status}",
                hint="run the same command again: what was downloaded is kept",
            )


def _execute(command: Sequence[str], environ: Mapping[str, str]) -> int:
    """On this terminal's stderr: stdout is for data."""
    return subprocess.run(
        list(command), env=dict(environ), stdin=subprocess.DEVNULL, stdout=2, check=False
    ).returncode
