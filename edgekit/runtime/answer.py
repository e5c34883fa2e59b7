"""One answer while it is made: tokens to pieces, and what text asks of the tokens to come.

    tokens ─► TextStream ─► Splitter ─┬─ thinking
              text           tags      └─ answer ─► StopStrings ─► ToolParser ─┬─ text
                                                                              └─ calls

The other way, text steers tokens: when the thinking budget is used up, or the user wants the
answer now, the model's own way out of thinking is forced; a structure applies from the first
token of the answer on, and not while the model thinks.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.models.convention import Convention
from edgekit.runtime.piece import Piece, ToolCall
from edgekit.runtime.split import Splitter
from edgekit.runtime.steer import Constraint
from edgekit.runtime.text_stream import StopStrings, TextStream
from edgekit.runtime.token_source import Step, TokenSource
from edgekit.runtime.tokenizer import Tokenizer
from edgekit.runtime.tools import Tool, ToolParser

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgekit.backends.base import Logits


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How the text of one answer is read, and what may steer it."""

    convention: Convention | None = None
    """None: the model does not think, and every word is answer."""
    starts_inside: bool = False
    """The prompt ended within a thinking block."""
    starts_after: bool = False
    """The prompt ended with a thinking block that is over."""
    thinking_limit: int | None = None
    """Tokens after which thinking is led to its end: see `budget.thinking_limit`."""
    stop: Sequence[str] = ()
    """The answer ends before the first of these; they do not count while the model thinks."""
    tools: Sequence[Tool] = ()
    taken_ids: Collection[str] = ()
    """Of the calls in the conversation so far."""
    structure: Callable[[int], Constraint] | None = None
    """Makes the constraint that the answer must fit, given the tokens that it may have."""
    crossing_ids: NDArray[np.int64] | None = None
    """Tokens that would end a thinking block and begin the answer at once; never taken where a
    structure is waiting, so that it can begin between two tokens."""


class Answer:
    """Iterate it once for its pieces; the other attributes hold what came so far.

    `answer_now` and `stop` may be called from another thread than the one that iterates.
    """

    def __init__(self, tokens: TokenSource, tokenizer: Tokenizer, reading: Reading) -> None:
        self.generation = tokens
        self.thinking_tokens = 0
        """New tokens within thinking blocks, their tags and a forced end included."""
        self._num_since = 0
        """New tokens since the last tag, or the start."""
        self.tool_calls: list[ToolCall] = []
        self.was_cut = False
        """Thinking did not end by itself."""
        self._reading = reading
        self._stream = TextStream(tokenizer, keep_ids=_tag_ids(tokenizer, reading))
        self._tokenizer = tokenizer
        self._splitter = _splitter(reading)
        self._stops = StopStrings(reading.stop)
        self._taken_ids = set(reading.taken_ids)
        self._parser = ToolParser(reading.tools, taken_ids=self._taken_ids)
        self._said: list[str] = []
        self._num_final = 0, 0
        """Words and calls before the last tag: what a stray closing tag cannot reach."""
        self._wants_answer = False
        self._is_led_out = False
        """The way out of this block has been forced."""
        self._is_constrained = False
        self._was_thinking = self.is_thinking
        self._set_constraint()

    @property
    def text(self) -> str:
        """The answer so far, without thinking and tool calls."""
        return "".join(self._said)

    @property
    def thinking(self) -> str:
        """What was thought so far, without tags."""
        return "" if self._splitter is None else self._splitter.thinking

    @property
    def is_thinking(self) -> bool:
        """The model is within a thinking block."""
        return self._splitter is not None and self._splitter.is_thinking

    @property
    def stopped_by(self) -> str | None:
        """The stop string that ended the answer."""
        return self._stops.stopped

    def answer_now(self) -> None:
        """End the thinking after the next token, as if its budget were used up."""
        self._wants_answer = True

    def stop(self) -> None:
        """End the answer after the next token, as an interrupt does: `finish_reason` stays None."""
        self.generation.stop()

    def __iter__(self) -> Iterator[Piece]:
        for step in self.generation:
            yield from self.push(step)
            if self.generation.is_stopped:
                break
        yield from self.finish()

    def push(self, step: Step) -> list[Piece]:
        """The pieces that a new token makes certain; may force the tokens after it."""
        pieces = self._read(self._stream.push(step.token_id))
        self._count(pieces)
        self._cut_if_due()
        self._set_constraint()
        return pieces

    def _count(self, pieces: Sequence[Piece]) -> None:
        """A token is thinking when a block holds it, or turns out to have held it."""
        kinds = {piece.kind for piece in pieces}
        self._num_since += 1
        if self.is_thinking:
            # what was said before a block that begins here is none
            self.thinking_tokens += 1 if self._said else self._num_since
        elif "retype" in kinds or "thinking" in kinds or self._was_thinking:
            self.thinking_tokens += self._num_since
        if self.is_thinking or "tag" in kinds:
            self._num_since = 0
        if self._was_thinking and not self.is_thinking:
            self._is_led_out = self._wants_answer = False
        self._was_thinking = self.is_thinking

    def finish(self) -> list[Piece]:
        """The pieces still held back, when no more tokens come. Empty on the second call."""
        pieces = self._read(self._stream.finish())
        if self._splitter is not None:
            pieces += self._sort(self._splitter.finish())
        return pieces + self._end_of_answer_text()

    def to_dict(self) -> dict[str, Any]:
        """The answer and its measures as JSON types; a measure that needs more tokens is null."""
        made = self.generation
        return {
            "prompt_tokens": made.prompt_tokens,
            "cached_tokens": made.cached_tokens,
            "new_tokens": len(made.new_ids),
            "thinking_tokens": self.thinking_tokens,
            "drafted_tokens": made.drafted_tokens,
            "accepted_tokens": made.accepted_tokens,
            "finish_reason": made.finish_reason,
            "thinking": self.thinking.strip() or None,
            "text": self.text,
            "tool_calls": [call.to_dict() for call in self.tool_calls],
            "ttft_ms": made.ttft_ms,
            "prefill_tokens_per_s": made.prefill_tokens_per_s,
            "decode_tokens_per_s": made.decode_tokens_per_s,
        }

    def describe(self) -> str:
        """One line of the same measures for people."""
        made = self.generation
        parts = [f"{made.prompt_tokens} prompt tokens ({made.cached_tokens} cached)"]
        thought = f" ({self.thinking_tokens} thinking)" if self.thinking_tokens else ""
        parts.append(f"{len(made.new_ids)} new tokens{thought}")
        if made.ttft_ms is not None:
            parts.append(f"TTFT {made.ttft_ms:.0f} ms")
        if made.prefill_tokens_per_s is not None:
            parts.append(f"prefill {made.prefill_tokens_per_s:.1f} tokens/s")
        if made.decode_tokens_per_s is not None:
            parts.append(f"decode {made.decode_tokens_per_s:.1f} tokens/s")
        if made.drafted_tokens:
            parts.append(f"{made.accepted_tokens} of {made.drafted_tokens} drafted tokens accepted")
        return ", ".join(parts)

    def _read(self, text: str) -> list[Piece]:
        if not text:
            return []
        if self._splitter is None:
            return self._answer_text(text)
        if self._is_constrained:  # its text is its own, tags and all
            words = text if self._said else text.lstrip()
            blank = text[: len(text) - len(words)]
            pieces = [Piece(kind="tag", text=blank)] if blank else []
            return pieces + self._answer_text(words)
        return self._sort(self._splitter.push(text))

    def _sort(self, parts: Sequence[Piece]) -> list[Piece]:
        """What the splitter found, the answer's share read on."""
        pieces: list[Piece] = []
        for part in parts:
            if self._stops.stopped is not None:
                break
            if part.kind == "answer":
                pieces += self._answer_text(part.text)
                continue
            pieces += self._end_of_answer_text()
            if part.kind == "retype":
                words, calls = self._num_final
                del self._said[words:], self.tool_calls[calls:]
            if part.kind == "tag":
                self._num_final = len(self._said), len(self.tool_calls)
            pieces.append(part)
        return pieces

    def _answer_text(self, text: str) -> list[Piece]:
        pieces = self._keep(self._parser.push(self._stops.push(text)))
        if self._stops.stopped is not None:
            pieces += self._keep(self._parser.finish())
            self.generation.finish("stop")
        return pieces

    def _end_of_answer_text(self) -> list[Piece]:
        """Let go of what was held back; a call never reaches over a thinking block."""
        rest = self._parser.push(self._stops.finish()) + self._parser.finish()
        self._parser = ToolParser(self._reading.tools, taken_ids=self._taken_ids)
        return self._keep(rest)

    def _keep(self, pieces: list[Piece]) -> list[Piece]:
        for piece in pieces:
            if piece.call is not None:
                self.tool_calls.append(piece.call)
            elif piece.kind == "answer":
                self._said.append(piece.text)
        return pieces

    def _cut_if_due(self) -> None:
        """Lead the model out of thinking when it is time."""
        convention, limit = self._reading.convention, self._reading.thinking_limit
        splitter = self._splitter
        if convention is None or splitter is None or not self.is_thinking or self._is_led_out:
            return
        is_over = limit is not None and self.thinking_tokens >= limit
        if not is_over and not self._wants_answer:
            return
        if splitter.held.strip() and not self._wants_answer:
            return  # the model is about to end it by itself, or has written the beginning of a tag
        self.was_cut = self._is_led_out = True
        splitter.cut()
        self.generation.force(closing_ids(self._tokenizer, convention))

    def _set_constraint(self) -> None:
        """The structure, as soon as the answer begins; until then, what lets it begin cleanly."""
        make, splitter = self._reading.structure, self._splitter
        if make is None or self._is_constrained:
            return
        self._is_constrained = not self.is_thinking
        if self._is_constrained or splitter is None:
            self.generation.constraint = make(self.generation.room)
        elif self.generation.constraint is None:
            self.generation.constraint = _Waiting(splitter, self._reading.crossing_ids)


def closing_ids(tokenizer: Tokenizer, convention: Convention) -> list[int]:
    """What leads a model out of thinking: a last sentence, and the tag as the model writes it."""
    text = f"\n\n{convention.closing}\n{convention.close_tag}\n\n"
    return tokenizer.encode(text, add_special=False)


class _Waiting:
    """While the model thinks: everything may come, but for a token over the block's end."""

    def __init__(self, splitter: Splitter, crossing_ids: NDArray[np.int64] | None) -> None:
        self._splitter = splitter
        self._crossing_ids = crossing_ids

    def mask(self, logits: Logits) -> Logits:
        if self._crossing_ids is None or not self._splitter.held:
            return logits
        masked = logits.copy()
        masked[self._crossing_ids] = -np.inf
        return masked

    def accept(self, token_id: int) -> None:
        """Nothing is counted."""

    def forced(self) -> list[int]:
        return []


def _splitter(reading: Reading) -> Splitter | None:
    convention = reading.convention
    if convention is None:
        return None
    return Splitter(
        convention.open_tag,
        convention.close_tag,
        starts_inside=reading.starts_inside,
        starts_after=reading.starts_after,
    )


def _tag_ids(tokenizer: Tokenizer, reading: Reading) -> set[int]:
    """Special tokens that are tags, and so must not be dropped from the text."""
    tags: list[str] = ["<|python_tag|>"] if reading.tools else []
    if reading.convention is not None:
        tags += [reading.convention.open_tag, reading.convention.close_tag]
    if reading.tools:
        tags += ["<tool_call>", "</tool_call>", "<TOOLCALL>", "</TOOLCALL>"]
    return {i for i in map(tokenizer.id_of, tags) if i is not None}
