"""An answer as blocks that follow each other: what was thought, what was said, each call.

Interfaces that send blocks get one beginning, its parts and one end of each, never two blocks at
once. The same pieces give the same blocks, whether they come one by one or all together.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from edgekit.runtime.piece import Piece, ToolCall
from edgekit.runtime.token_source import Step

Kind = Literal["thinking", "text", "call"]


@dataclass(slots=True, kw_only=True)
class Block:
    """A part of an answer. Of kind `call`, `text` is its arguments as JSON."""

    index: int
    kind: Kind
    text: str = ""
    call: ToolCall | None = None
    steps: list[Step] = field(default_factory=list)
    """The tokens of a text, where they are wanted."""


@dataclass(frozen=True, slots=True)
class Change:
    """A block begins, gets more `text`, or ends."""

    what: Literal["begin", "more", "end"]
    block: Block
    text: str = ""
    steps: Sequence[Step] = ()


class Blocks:
    """Pieces in, changes out.

    Around what was thought there is no white space, and there is no block of nothing else.
    """

    def __init__(self) -> None:
        self.done: list[Block] = []
        self._kind: Kind = "text"
        self._open: Block | None = None
        self._held = ""
        """White space that counts only if something follows it."""
        self._held_steps: list[Step] = []

    def push(self, piece: Piece, steps: Sequence[Step] = ()) -> Iterator[Change]:
        """A piece that is to be shown, and the tokens of its text where they are wanted."""
        if piece.call is not None:
            yield from self._call(piece.call)
            return
        kind: Kind = "thinking" if piece.kind == "thinking" else "text"
        if kind != self._kind:
            yield from self.finish()
            self._kind = kind
        text, self._held = self._held + piece.text, ""
        steps, self._held_steps = [*self._held_steps, *steps], []
        if self._open is None:
            if not text.strip():
                self._held, self._held_steps = text, steps
                return
            if kind == "thinking":
                text = text.lstrip()
            yield from self._begin(Block(index=len(self.done), kind=kind))
        if kind == "thinking":
            kept = text.rstrip()
            text, self._held = kept, text[len(kept) :]
        if text and self._open is not None:
            self._open.text += text
            self._open.steps += steps
            yield Change("more", self._open, text, steps)

    def finish(self) -> Iterator[Change]:
        """End the block that is open, if one is."""
        self._held, self._held_steps = "", []
        if self._open is not None:
            block, self._open = self._open, None
            self.done.append(block)
            yield Change("end", block)

    def _call(self, call: ToolCall) -> Iterator[Change]:
        yield from self.finish()
        block = Block(index=len(self.done), kind="call", call=call)
        yield from self._begin(block)
        block.text = json.dumps(call.arguments, ensure_ascii=False)
        yield Change("more", block, block.text)
        yield from self.finish()

    def _begin(self, block: Block) -> Iterator[Change]:
        self._open = block
        yield Change("begin", block)


def blocks_of(pieces: Sequence[tuple[Piece, Sequence[Step]]]) -> list[Block]:
    """The blocks of a whole answer."""
    blocks = Blocks()
    for piece, steps in pieces:
        for _ in blocks.push(piece, steps):
            pass
    for _ in blocks.finish():
        pass
    return blocks.done
