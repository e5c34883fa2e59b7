"""Follow the lines of streamed text: is the one at hand blank, is it inside a ``` fence."""

from __future__ import annotations


class Fences:
    """Begins on a blank line outside a fence.

    A line whose first characters are ``` after whitespace begins a fence, or ends the one at hand.
    """

    def __init__(self) -> None:
        self.is_line_blank = True
        """Nothing but whitespace since the last line break."""
        self.is_inside = False
        self._num_ticks = 0  # of a run that began the line and may go on

    def text(self, text: str) -> None:
        """Take text without backticks."""
        if text:
            self._num_ticks = 0
            _, newline, line = text.rpartition("\n")
            if newline or self.is_line_blank:
                self.is_line_blank = not line or line.isspace()

    def ticks(self, num_ticks: int) -> None:
        """Take a run of backticks, or more of the last run."""
        if self.is_line_blank or self._num_ticks:
            before, self._num_ticks = self._num_ticks, self._num_ticks + num_ticks
            if before < 3 <= self._num_ticks:
                self.is_inside = not self.is_inside
        self.is_line_blank = False
