"""What an answer is made of, while it comes: thinking, answer text, tool calls.

`Splitter` cuts text into pieces, `ToolParser` takes calls out of the answer's, `Answer` gives
both to whoever shows or serves them. Pieces are never taken back but for one case that no
stream can know in time, which has a kind of its own: see `Piece.kind`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

PieceKind = Literal["thinking", "answer", "tag", "retype", "call"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A call that the model asks for, with arguments as plain JSON types."""

    id: str
    """Unique in its conversation: the one that the model gave, else `call_` and a number."""
    name: str
    arguments: dict[str, Any]
    problem: str | None = None
    """What the tool's JSON schema has against the arguments, for the model to read; None: valid."""

    def to_dict(self) -> dict[str, Any]:
        """The call in OpenAI's message format, where arguments are JSON text."""
        arguments = json.dumps(self.arguments, ensure_ascii=False)
        function = {"name": self.name, "arguments": arguments}
        return {"id": self.id, "type": "function", "function": function}


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A piece of an answer, in order."""

    kind: PieceKind
    """`thinking` and `answer` are text to show. `tag` is text that only marks where one ends and
    the other begins, whitespace around it included. `retype` (without text): the answer's text
    since the last tag, or the start, turns out to have been thinking, for a closing tag came that
    was never opened. `call` is a tool call, complete and checked."""
    text: str = ""
    call: ToolCall | None = None
    """Only of kind `call`; `text` is then the model's own spelling of it."""
