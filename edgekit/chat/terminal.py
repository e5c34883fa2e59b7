"""A prompt_toolkit application that stands below what was printed, in the terminal's own pages.

Three things that prompt_toolkit does not do by itself: printing above the application without a
flicker; finding its first row again after the terminal has wrapped its rows to a new width; and
no question for the cursor's position, whose answer could mix with what is typed.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from prompt_toolkit.application import Application
from prompt_toolkit.data_structures import Point
from prompt_toolkit.layout.screen import Screen
from prompt_toolkit.output import Output
from prompt_toolkit.output.vt100 import Vt100_Output

_SETTLE_S = 0.25
"""So long no new size: tmux, for one, tells of a drag in steps of this length."""


class SteadyOutput(Vt100_Output):
    """Can hold back what is written, so that the terminal gets it at once; erases with care."""

    _is_held = False

    @contextmanager
    def held(self) -> Iterator[None]:
        """Write at the end."""
        self._is_held = True
        try:
            yield
        finally:
            self._is_held = False
            self.flush()

    def flush(self) -> None:
        if not self._is_held:
            super().flush()

    def erase_down(self) -> None:
        """From the next row on, and then this one: tmux takes the erasing of a whole screen for
        the end of what stands there, and keeps it in its history."""
        self.write_raw("\x1b7\x1b[K\x1b[B\x1b[J\x1b8")


def open_output() -> SteadyOutput:
    """The terminal on stdout."""
    output = SteadyOutput.from_pty(sys.stdout, term=os.environ.get("TERM"))
    assert isinstance(output, SteadyOutput)
    output.enable_cpr = False
    return output


class InlineApplication(Application[None]):
    """Not full-screen; `print_above` writes lines that scroll away like any other output.

    While the terminal's size changes nothing is written: what it has wrapped already and what it
    has told are not the same then, and an erased row too many is lost.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._waiting_lines: list[str] = []
        self._settling: asyncio.TimerHandle | None = None
        self._size = self.output.get_size()

    def print_above(self, lines: Sequence[str]) -> None:
        """Print lines of ANSI text for good. From the thread of the application only."""
        self._waiting_lines += lines
        if not self._waiting_lines or self._is_resizing():
            return
        with _held(self.output):
            self.renderer.erase(leave_alternate_screen=False)
            for line in self._waiting_lines:
                self.output.write_raw(f"{line}\x1b[0m\r\n")
            self._waiting_lines = []
            super()._redraw()
        self.output.flush()

    def _redraw(self, render_as_done: bool = False) -> None:
        if render_as_done:
            self._settle()
        if not self._is_resizing():
            super()._redraw(render_as_done)

    def _is_resizing(self) -> bool:
        """Asks the terminal too, whose signal may be on its way."""
        if self._size != self.output.get_size():
            self._on_resize()
        return self._settling is not None

    def _on_resize(self) -> None:
        if self._settling is not None:
            self._settling.cancel()
        self._size = self.output.get_size()
        self._settling = asyncio.get_running_loop().call_later(_SETTLE_S, self._settle)

    def _settle(self) -> None:
        """The size stays: erase what stands there as the terminal has wrapped it, and redraw."""
        if self._settling is None:
            return
        self._settling.cancel()
        self._settling = None
        shown = self.renderer.last_rendered_screen
        if shown is not None and wraps_again(os.environ):
            cursor = shown.get_cursor_position(self.layout.current_window)
            if rows := added_rows(shown, cursor, self.output.get_size().columns):
                self.output.cursor_up(rows)
        super()._on_resize()
        self.print_above([])


def added_rows(shown: Screen, cursor: Point, columns: int) -> int:
    """How many rows more there are above the cursor when the shown ones wrap to `columns`."""
    added = cursor.x // columns
    for y in range(cursor.y):
        row = shown.data_buffer[y]
        width = max((x + char.width for x, char in row.items() if char.char.strip()), default=1)
        added += (width - 1) // columns
    return added


def wraps_again(environment: Mapping[str, str]) -> bool:
    """Whether the terminal wraps old rows to a new width: all but a few do."""
    if environment.get("TMUX"):
        return True
    is_old = environment.get("TERM", "").startswith(("rxvt", "st-"))
    return not (is_old or "XTERM_VERSION" in environment or "STY" in environment)


@contextmanager
def _held(output: Output) -> Iterator[None]:
    if isinstance(output, SteadyOutput):
        with output.held():
            yield
    else:
        yield
