"""What `trtllm-build` prints: how far it is, and the last errors that it told.

    [08/27/2025-08:22:30] [TRT] [I] Engine generation completed in 5.37531 seconds.
    [08/27/2025-08:22:31] [TRT-LLM] [I] Serializing engine to …/rank0.engine...

Nothing that a process may print is too strange: bytes that are no text, lines without an end and
progress bars are read like everything else.
"""

from __future__ import annotations

import codecs
import re
from collections import deque
from dataclasses import dataclass

TOTAL = 1000
"""`BuildLog.done` when all is done."""
_MAX_LINE = 4000
"""Characters of a line that are looked at: noise may never end."""
_KEPT_ERRORS, _KEPT_LINES = 50, 20
_ENDS = re.compile(r"\r\n|\r|\n")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A line of the log, and the share of the time that has passed by then."""

    says: str
    done: int


STAGES = (
    Stage(says="TensorRT LLM inited", done=60),
    Stage(says="TensorRT-LLM inited", done=60),
    Stage(says="padding removal and fMHA are both enabled", done=120),
    Stage(says="Init CUDA:", done=140),
    Stage(says="Init builder kernel library", done=180),
    Stage(says="Total time of constructing network", done=230),
    Stage(says="Total time to initialize the weights", done=250),
    Stage(says="Build TensorRT engine", done=260),
    Stage(says="timing cache in use", done=270),
    Stage(says="network tensors", done=330),
    Stage(says="Total Weights Memory", done=700),
    Stage(says="Engine generation completed in", done=740),
    Stage(says="Total time of building Unnamed Network", done=800),
    Stage(says="Timing cache serialized", done=810),
    Stage(says="Serializing engine to", done=820),
    Stage(says="Engine serialized", done=980),
    Stage(says="Total time of building all engines", done=TOTAL),
)
"""In the order of the log. Shares are those of logs of 1B to 8B models; tuning kernels, between
330 and 700, is silent."""
_STAMP = re.compile(r"^\s*\[[\d/:. -]+\]\s*")
_LEVEL = re.compile(
    r"^(?:\[(?:TRT|TRT-LLM|TensorRT-LLM)\]\s*)?(?:\[MPI_Rank \d+\]\s*)?"
    r"\[(?P<level>[FEWIVD]|ERROR|FATAL|WARNING|INFO|DEBUG|TRACE)\]\s*"
)
_ERROR_LEVELS = {"F", "E", "ERROR", "FATAL"}
_EXCEPTION = re.compile(r"(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Interrupt)(?::|$)")
_OTHER_ERRORS = re.compile(
    r"terminate called|what\(\):|Segmentation fault|Killed$|Aborted|Fatal Python error|"
    r"[\w./-]+: error:|docker: |Error: |FATAL:",
)
_EMPTY = re.compile(r"Engine building failed, please check|^AssertionError:?$|^Killed$")
"""Errors that say no more than that there was one."""


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

    def __init__(self) -> None:
        self.done = 0
        self._errors: deque[str] = deque(maxlen=_KEPT_ERRORS)
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)

    def feed(self, line: str) -> None:
        """One line."""
        level, text = split_line(line)
        if not text:
            return
        self._lines.append(text)
        if level in _ERROR_LEVELS or _EXCEPTION.match(text) or _OTHER_ERRORS.match(text):
            self._errors.append(text)
            return
        for stage in STAGES:
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
        return tuple(line for line in self._errors if not _EMPTY.search(line))

    @property
    def last_error(self) -> str:
        """The last error that says something, else the last line; empty when there was none."""
        told = self.telling or self.errors or self.lines
        return told[-1] if told else ""


def split_line(line: str) -> tuple[str, str]:
    """`"[…] [TRT] [E] text"` -> `("E", "text")`; the level is empty where there is none."""
    text = _STAMP.sub("", line).strip()
    found = _LEVEL.match(text)
    if found is not None:
        text = text[found.end() :]
    return found["level"] if found is not None else "", " ".join(text.split())
