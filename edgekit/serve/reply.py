"""An answer put together from its events, for interfaces that send it whole or in parts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from edgekit.runtime.piece import Piece, ToolCall
from edgekit.runtime.token_source import Step
from edgekit.serve.job import Ended, Event, Failed

FinishReason = Literal["stop", "length", "tool_calls"]


@dataclass(slots=True)
class Reply:
    """One answer so far."""

    text: str = ""
    thinking: str = ""
    calls: list[ToolCall] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    end: Ended | None = None
    _final: tuple[int, int] = (0, 0)
    """Text and calls before the last tag: what a late closing tag cannot reach."""

    def push(self, event: Event) -> Iterator[Piece]:
        """Take an event in; the pieces that are to be shown now. Raises what failed."""
        if isinstance(event, Failed):
            raise event.error
        if isinstance(event, Ended):
            self.end = event
            return
        self.steps += event.steps
        for piece in event.pieces:
            yield from self._take(piece)

    def _take(self, piece: Piece) -> Iterator[Piece]:
        if piece.kind == "retype":
            words, calls = self._final
            late = self.text[words:]
            self.thinking += late
            self.text = self.text[:words]
            del self.calls[calls:]
            return
        if piece.kind == "tag":
            self._final = len(self.text), len(self.calls)
            return
        if piece.call is not None:
            self.calls.append(piece.call)
        elif piece.kind == "thinking":
            self.thinking += piece.text
        else:
            self.text += piece.text
        yield piece

    @property
    def finish_reason(self) -> FinishReason:
        """OpenAI's word for how it ended; a cancelled answer was cut short."""
        if self.end is None or self.end.reason != "stop":
            return "length"
        return "tool_calls" if self.calls else "stop"
