"""How a long step tells its caller how far it is."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""`report(step, done, total)`: called often; whoever shows it decides how often to print."""


def no_progress(step: str, done: int, total: int) -> None:
    """The `Progress` of callers who want none."""
