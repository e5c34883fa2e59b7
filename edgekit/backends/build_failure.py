"""Why a vendor's compiler failed, in our words: a backend's table of lines, and its reading."""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekit.backends.build_log import BuildLog
from edgekit.errors import BackendError, BudgetError, EdgekitError, StorageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """One cause, told by a line of the log."""

    name: str
    pattern: str
    """Regular expression, letters of either case."""
    error: type[EdgekitError]
    message: str
    hint: str


DISK_FULL = Failure(
    name="disk-full",
    pattern=r"no space left on device|errno 28\b|errno 122\b|disk quota exceeded",
    error=StorageError,
    message="the disk is full",
    hint="free some space: building takes the engine's size beside the checkpoint's",
)


def explain(
    rows: Sequence[Failure],
    returncode: int,
    log: BuildLog,
    path: Path,
    *,
    compiler: str,
    no_memory: str,
    more_memory: str,
) -> EdgekitError:
    """The error for a `compiler` that ended so; `path` is where its whole log lies.

    `rows`: narrower ones before wider ones. `no_memory` and `more_memory` are what is said, and
    advised, of one that the system ended.
    """
    if signal_of(returncode) == signal.SIGKILL:
        # who was killed says nothing; the lines before are of kernels that were tried
        return BudgetError(
            f"{no_memory}: the system ended it; its log is {path}",
            hint=f"{more_memory}; `sudo dmesg | grep -i oom` says more",
        )
    # without an error that says something, a warning may
    if found := find_failure(rows, log.telling or log.lines):
        row, line = found
        return row.error(f"{row.message}: {line}; its log is {path}", hint=row.hint)
    said = log.last_error or "it does not say why"
    return BackendError(
        f"{compiler} ended {how_it_ended(returncode)}: {said}; its log is {path}",
        hint=f"less {path}",
    )


def find_failure(rows: Sequence[Failure], lines: Sequence[str]) -> tuple[Failure, str] | None:
    """The row that the last telling line fits, and that line. Of one line the first row that fits.

    Later lines come first: a compiler tells of memory that one kernel did not get, goes on with
    another, and may end for a different reason.
    """
    for line in reversed(lines):
        for row in rows:
            if re.search(row.pattern, line, re.IGNORECASE):
                return row, line
    return None


def signal_of(returncode: int) -> int | None:
    """The signal that ended a process, also one below a shell; `None`: it ended by itself."""
    number = -returncode if returncode < 0 else returncode - 128
    return number if number in {int(one) for one in signal.Signals} else None


def how_it_ended(returncode: int) -> str:
    """`"by SIGKILL"`, `"with exit code 1"`."""
    number = signal_of(returncode)
    return f"with exit code {returncode}" if number is None else f"by {signal.Signals(number).name}"
