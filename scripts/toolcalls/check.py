"""Read calls back from random chunks, whole and damaged."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from edgekit.runtime.piece import Piece
from edgekit.runtime.tools import Tool, ToolParser
from toolcalls.dialects import BARE_TEXT, DIALECTS, Call
from toolcalls.questions import Question


def parse(tools: Sequence[Tool], text: str, rng: random.Random) -> list[Piece]:
    """The pieces of `text` from chunks of random sizes; together they must be the text."""
    parser = ToolParser(tools)
    pieces = []
    at = 0
    while at < len(text):
        size = rng.choice((1, 2, 3, 5, 8, 40))
        pieces += parser.push(text[at : at + size])
        at += size
    pieces += parser.finish()
    joined = "".join(piece.text for piece in pieces)
    if joined != text:
        raise AssertionError(f"{text!r} became {joined!r}")
    return pieces


def calls_in(pieces: Sequence[Piece]) -> list[Call]:
    """The calls among the pieces."""
    return [(piece.call.name, piece.call.arguments) for piece in pieces if piece.call]


def is_read_back(question: Question, dialect: str, rng: random.Random) -> bool:
    """Whether the calls come out of the dialect as they went in.

    Where bare text cannot tell the types, being written the same again is enough.
    """
    write = DIALECTS[dialect]
    text = write(question.calls)
    calls = calls_in(parse(question.tools, text, rng))
    return calls == question.calls or (dialect in BARE_TEXT and write(calls) == text)


def damaged(text: str, rng: random.Random, *, step: int) -> Iterator[str]:
    """The text cut off at every `step`-th character, and with characters taken out."""
    yield from (text[:end] for end in range(rng.randrange(step), len(text), step))
    for _ in range(4):
        start = rng.randrange(len(text) + 1)
        yield text[:start] + text[start + rng.randint(1, 6) :]
