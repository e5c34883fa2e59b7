"""Why a vendor's compiler failed, in our words: a backend's table of lines, and its reading."""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass

from edgekit.errors import EdgekitError


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """One cause, told by a line of the log."""

    name: str
    pattern: str
    """Regular expression, letters of either case."""
    error: type[EdgekitError]
    message: str
    hint: str


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
