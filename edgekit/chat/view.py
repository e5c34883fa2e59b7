"""One answer on the screen: lines that are printed for good, and rows below them that change."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from time import perf_counter
from typing import Literal

from edgekit.chat.clean import clean_line, clean_text
from edgekit.chat.contract import Answer
from edgekit.chat.markdown import MarkdownStream
from edgekit.chat.render import Renderer
from edgekit.chat.wording import describe_call
from edgekit.runtime.piece import Piece, ToolCall
from edgekit.units import format_duration

_KEPT_LINES = 200
_MAX_ROWS = 10
"""Of thinking that is shown: more than a screen would be left behind by a resize."""
_LONG_CHARS = 2000
"""A line of this length is cut, for its rows not to be worked out again and again."""


class ThinkingTail:
    """The last lines of thinking that comes; a token costs the same, however long it gets."""

    def __init__(self, renderer: Renderer) -> None:
        self._renderer = renderer
        self._lines: deque[str] = deque([""], maxlen=_KEPT_LINES)

    def push(self, text: str) -> None:
        first, *rest = clean_text(text).split("\n")
        self._lines[-1] += first
        self._lines.extend(rest)
        if len(self._lines[-1]) > _LONG_CHARS:
            *_, last = self._renderer.plain(self._lines[-1])
            line = self._lines.pop()
            self._lines += [line[: len(line) - len(last)], line[len(line) - len(last) :]]

    def rows(self, max_rows: int) -> list[str]:
        """The end of it, dimmed."""
        rows: list[str] = []
        for line in reversed(self._lines):
            rows[:0] = self._renderer.plain(line, "dim")
            if len(rows) >= max_rows:
                break
        return rows[-max_rows:] if max_rows > 0 else []


class AnswerView:
    """Takes the pieces of an answer, gives lines. `clock` reads seconds."""

    def __init__(
        self, answer: Answer, renderer: Renderer, *, clock: Callable[[], float] = perf_counter
    ) -> None:
        self.is_stopping = False
        """Shown, for the next token may take a while."""
        self._answer = answer
        self._renderer = renderer
        self._clock = clock
        self._started = clock()
        self._phase: Literal["reading", "thinking", "answering"] = "reading"
        self._thinking = ThinkingTail(renderer)
        self._markdown = MarkdownStream(renderer)
        self._last_kind = ""

    def take(self, pieces: Iterable[Piece]) -> list[str]:
        """Lines that are finished with these pieces."""
        lines: list[str] = []
        for piece in pieces:
            if piece.kind == "thinking":
                if self._phase != "thinking":
                    lines += self._finish_text()
                    self._phase, self._started = "thinking", self._clock()
                self._thinking.push(piece.text)
                continue
            lines += self._fold()
            self._phase = "answering"
            if piece.kind == "answer":
                lines += self._of("answer", self._markdown.push(piece.text))
            elif piece.kind == "retype":
                lines += self._finish_text()
                note = "▴ what stands above was thinking; the answer follows"
                lines += self._of("note", self._renderer.plain(note, "dim"))
            elif piece.call is not None:
                lines += self._finish_text() + self._of("call", self._call(piece.call))
        return lines

    def finish(self) -> list[str]:
        """The lines that are left, when no more pieces come."""
        return self._fold() + self._finish_text()

    def rows(self, max_rows: int, *, is_unfolded: bool) -> list[str]:
        """What is not finished, in rows of the width."""
        if self._phase == "thinking":
            return self._thinking.rows(min(max_rows, _MAX_ROWS)) if is_unfolded else []
        rows = self._markdown.tail(max_rows)
        if rows and self._last_kind not in ("", "answer"):
            rows = ["", *rows][-max_rows:]
        return rows

    def status(self, *, is_unfolded: bool) -> str:
        """One line on what goes on, where the text does not show it."""
        if self.is_stopping:
            return "▸ stopping at the next token… (Ctrl-C twice leaves)"
        took = format_duration(self._clock() - self._started)
        if self._phase == "reading":
            return f"▸ reading {self._answer.generation.prompt_tokens} tokens… {took}"
        if self._phase == "thinking":
            tokens = self._answer.thinking_tokens
            hint = "Ctrl-T folds it" if is_unfolded else "Ctrl-T shows it, /answer ends it"
            return f"{'▾' if is_unfolded else '▸'} thinking… {tokens} tokens, {took} ({hint})"
        return ""

    @property
    def has_printed(self) -> bool:
        """Whether there was a line at all."""
        return bool(self._last_kind)

    def _fold(self) -> list[str]:
        """The one line that stays of the thinking, once it has ended."""
        if self._phase != "thinking":
            return []
        took = format_duration(self._clock() - self._started)
        self._phase = "answering"
        self._thinking = ThinkingTail(self._renderer)
        text = f"▸ thought for {self._answer.thinking_tokens} tokens, {took} (/thinking shows it)"
        return self._of("note", self._renderer.plain(text, "dim"))

    def _finish_text(self) -> list[str]:
        lines = self._of("answer", self._markdown.finish())
        self._markdown = MarkdownStream(self._renderer)
        return lines

    def _call(self, call: ToolCall) -> list[str]:
        lines = self._renderer.plain(f"⚙ {describe_call(call)}", "cyan")
        if call.problem:
            lines += self._renderer.plain(f"  {clean_line(call.problem)}", "red")
        return lines

    def _of(self, kind: str, lines: list[str]) -> list[str]:
        """With a blank line before what is of another kind than the lines before."""
        if lines and self._last_kind not in ("", kind):
            lines = ["", *lines]
        self._last_kind = kind if lines else self._last_kind
        return lines
