"""Progress on stderr: one line that renews itself on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Self

import click

from edgekit.progress import progress_line
from edgekit.units import format_duration

_TERMINAL_INTERVAL_S = 0.2
_PLAIN_INTERVAL_S = 15.0
_QUIET_S = 2.0
"""Steps that end within this time say nothing on the way."""


class ProgressLine:
    """A `Progress` that prints the step, its share, the time it took and the time left.

    Time left is taken from the share done so far, once a step has run for two seconds. Where
    another program drives this one (`edgekit --driven`), each report is a line of JSON.
    """

    def __init__(self) -> None:
        # the real stream: libraries that print are redirected while they work
        self._stream = sys.stderr
        self._is_terminal = self._stream.isatty()
        self._step = ""
        self._started = 0.0
        self._printed = 0.0
        self._width = 0
        context = click.get_current_context(silent=True)
        self._is_driven = context is not None and context.find_root().params.get("is_driven", False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._clear()

    def __call__(self, step: str, done: int, total: int) -> None:
        now = time.monotonic()
        if step != self._step:
            self._step, self._started, self._printed = step, now, now
        elapsed = now - self._started
        if self._is_driven:
            self._tell(step, done, total, now)
            return
        if done >= total:
            if elapsed >= _QUIET_S:
                self.say(f"{step}: done in {format_duration(elapsed)}")
            self._step = ""
            return
        interval = _TERMINAL_INTERVAL_S if self._is_terminal else _PLAIN_INTERVAL_S
        if elapsed < _QUIET_S or now - self._printed < interval:
            return
        self._printed = now
        left = f", {format_duration(elapsed * (total - done) / done)} left" if done else ""
        text = f"{step}: {100 * done // total:3d} %, {format_duration(elapsed)}{left}"
        if not self._is_terminal:
            self.say(text)
            return
        self._clear()
        self._width = len(text)
        click.echo(text, nl=False, file=self._stream)

    def _tell(self, step: str, done: int, total: int, now: float) -> None:
        """A line for the program that drives this one: at both ends and now and then between."""
        is_first, is_last = now == self._started, done >= total
        if is_first or is_last or now - self._printed >= _TERMINAL_INTERVAL_S:
            self._printed = now
            self.say(progress_line(step, done, total))
        self._step = "" if is_last else step

    def say(self, text: str) -> None:
        """A line that stays."""
        self._clear()
        click.echo(text, file=self._stream)

    def _clear(self) -> None:
        if self._is_terminal and self._width:
            click.echo("\r" + " " * self._width + "\r", nl=False, file=self._stream)
        self._width = 0
