"""How a long step tells its caller how far it is."""

from __future__ import annotations

import json
from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""`report(step, done, total)`: called often; whoever shows it decides how often to print."""


def no_progress(step: str, done: int, total: int) -> None:
    """The `Progress` of callers who want none."""


def progress_line(step: str, done: int, total: int) -> str:
    """One report as a line for another program."""
    return json.dumps({"progress": [step, done, total]})


def read_progress(line: str) -> tuple[str, int, int] | None:
    """What `progress_line` wrote; `None` for any other line."""
    if not line.startswith('{"progress":'):
        return None
    try:
        step, done, total = json.loads(line)["progress"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    is_right = isinstance(step, str) and type(done) is int and type(total) is int and done >= 0
    return (step, done, max(1, total)) if is_right else None
