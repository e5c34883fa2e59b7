"""An answer put together from its events, for interfaces that send it whole or in parts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

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
    pieces: list[tuple[Piece, list[Step]]] = field(default_factory=list)
    """Thinking, text and calls in their order, texts with the tokens that were read by then."""
    steps: list[Step] = field(default_factory=list)
    end: Ended | None = None
    _final: tuple[int, int, int] = (0, 0, 0)
    """Text, calls and pieces before the last tag: what a late closing tag cannot reach."""

    def push(self, event: Event) -> Iterator[Piece]:
        """Take an event in; the pieces that are to be shown now. Raises what failed."""
        if isinstance(event, Failed):
            raise event.error
        if isinstance(event, Ended):
            self.end = event
            return
        self.steps += event.steps
        said = event.said
        for piece in event.pieces:
            is_said = piece.kind == "answer"
            yield from self._take(piece, said if is_said else [])
            said = [] if is_said else said

    def _take(self, piece: Piece, steps: list[Step]) -> Iterator[Piece]:
        if piece.kind == "retype":
            words, calls, pieces = self._final
            late = self.text[words:]
            self.thinking += late
            self.text = self.text[:words]
            del self.calls[calls:], self.pieces[pieces:]
            self.pieces.append((Piece(kind="thinking", text=late), []))
            return
        if piece.kind == "tag":
            self._final = len(self.text), len(self.calls), len(self.pieces)
            return
        self.pieces.append((piece, steps))
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


def timings(end: Ended | None) -> dict[str, Any] | None:
    """How long the first answer took; milliseconds and tokens per second."""
    if end is None:
        return None
    return {
        "queued_ms": end.queued_ms,
        "ttft_ms": end.ttft_ms,
        "prefill_tokens_per_s": end.prefill_tokens_per_s,
        "decode_tokens_per_s": end.decode_tokens_per_s,
    }
