"""What a vendor's compiler prints: how far it is, and the last errors that it told.

Nothing that a process may print is too strange: bytes that are no text, lines without an end and
progress bars are read like everything else.
"""

from __future__ import annotations

import codecs
import re
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

TOTAL = 1000
"""`BuildLog.done` when all is done."""
_MAX_LINE = 4000
"""Characters of a line that are looked at: noise may never end."""
_KEPT_ERRORS, _KEPT_LINES = 50, 20
_ENDS = re.compile(r"\r\n|\r|\n")
_ERROR_LEVELS = {"F", "E", "ERROR", "FATAL", "CRITICAL"}
_EXCEPTION = re.compile(r"(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Interrupt)(?::|$)")
_OTHER_ERRORS = re.compile(
    r"terminate called|what\(\):|Segmentation fault|Killed$|Aborted|Fatal Python error|"
    r"[\w./-]+: error:|docker: |Error: |FATAL:",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A line of the log, and the share of the time that has passed by then."""

    says: str
    done: int


class Lines:
    """Cuts bytes into lines as they come; a carriage return ends one, too."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._rest = ""
        self._is_cut = False

    def feed(self, data: bytes, *, final: bool = False) -> list[str]:
        """The lines that ended within `data`; with `final` also what was left open."""
        text = self._rest + self._decoder.decode(data, final)
        *lines, self._rest = _ENDS.split(text)
        if final:
            lines, self._rest = [*lines, self._rest], ""
        if lines and self._is_cut:  # the end of a line whose beginning was given already
            lines, self._is_cut = lines[1:], False
        if len(self._rest) > _MAX_LINE:
            if not self._is_cut:
                lines.append(self._rest)
            self._rest, self._is_cut = "", True
        return [line[:_MAX_LINE] for line in lines if line.strip()]


class BuildLog:
    """Reads the log line by line. Never raises."""

    def __init__(
        self,
        stages: Sequence[Stage],
        *,
        split: Callable[[str], tuple[str, str]],
        empty: re.Pattern[str],
    ) -> None:
        """`stages` in the order of the log; `split` gives a line's level and its text; `empty`
        fits errors that say no more than that there was one."""
        self.done = 0
        self._stages, self._split, self._empty = stages, split, empty
        self._errors: deque[str] = deque(maxlen=_KEPT_ERRORS)
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)

    def feed(self, line: str) -> None:
        """One line."""
        level, text = self._split(line)
        if not text:
            return
        self._lines.append(text)
        if level in _ERROR_LEVELS or _EXCEPTION.match(text) or _OTHER_ERRORS.match(text):
            self._errors.append(text)
            return
        for stage in self._stages:
            if stage.done > self.done and stage.says in text:
                self.done = stage.done

    @property
    def errors(self) -> tuple[str, ...]:
        """The last errors, oldest first."""
        return tuple(self._errors)

    @property
    def lines(self) -> tuple[str, ...]:
        """The last lines of any kind, oldest first."""
        return tuple(self._lines)

    @property
    def telling(self) -> tuple[str, ...]:
        """The last errors that say more than that there was one."""
        return tuple(line for line in self._errors if not self._empty.search(line))

    @property
    def last_error(self) -> str:
        """The last error that says something, else the last line; empty when there was none."""
        told = self.telling or self.errors or self.lines
        return told[-1] if told else ""
