"""Cut the text of an answer into thinking and answer, whatever pieces it comes in.

    where               what comes                 becomes
    start               whitespace, open tag       a tag; thinking begins
                        whitespace, other text     the answer begins (thinking, if the prompt
                                                   ended with the open tag)
    thinking            open tag                   thinking, counted; a tag only at the very start,
                                                   where the prompt ended with one already
                        close tag                  a tag; the answer begins
    answer, at once     close tag                  a tag
    after a tag
    answer              close tag, still owed      a retype of the answer since the last tag: it was
                                                   thinking; then a tag
                        any other close tag        answer: someone asked about `</think>`
                        open tag, first in a line  a tag; thinking begins
                        any other open tag         answer; the next close tag belongs to it
                        anything between ```       answer
    end                 text held back             what it is without the tag it might have become

A close tag is owed: one, as long as no block was opened or closed; one for each open tag inside
the last thinking; one after `cut`. A close tag pays one.

Whitespace around a tag belongs to the tag. Never closed: all of it is thinking.

Held back is only whitespace that a tag may follow and the beginning of a tag that would count.
"""

from __future__ import annotations

import re
from typing import Literal

from edgekit.runtime.fence import Fences
from edgekit.runtime.piece import Piece, PieceKind
from edgekit.runtime.tags import tag_pattern

SplitState = Literal["start", "thinking", "answer"]
_TAG = re.compile(r"\S(?:[^\n`]*\S)?")


class Splitter:
    """The pieces of one answer, online. Their texts joined are the text pushed."""

    def __init__(
        self,
        open_tag: str,
        close_tag: str,
        *,
        starts_inside: bool = False,
        starts_after: bool = False,
    ) -> None:
        """`starts_inside`: the prompt ended with the open tag, the answer begins as thinking;
        `starts_after`: it ended with a whole block, and no close tag is owed."""
        tags = (open_tag, close_tag)
        if not all(_TAG.fullmatch(tag) and "`" not in tag for tag in tags):
            raise ValueError(f"a tag must not be blank, nor hold a line break or backtick: {tags}")
        if open_tag in close_tag or close_tag in open_tag:
            raise ValueError(f"one tag contains the other: {tags}")
        self._open, self._close = tags
        self._in_thinking = re.compile(tag_pattern(tags))
        self._in_answer = re.compile(tag_pattern(tags, "`+"))
        first = re.escape(open_tag[0]) + re.escape(close_tag[0])
        self._thinking_needs_care = re.compile(rf"[{first}]|\s\Z").search
        self._answer_needs_care = re.compile(rf"[{first}`\n]|\s\Z").search
        self._state: SplitState = "answer" if starts_after else "start"
        self._starts_inside = starts_inside
        self._is_after_tag = True  # or at the start: nothing but whitespace since
        self._is_cut = False
        self._num_nested = self._num_literal_opens = 0
        self._num_owed = 0 if starts_inside or starts_after else 1
        self._lines = Fences()  # of the answer, since the last tag
        self._space: list[str] = []
        self._partial = ""
        self._thinking: list[str] = []
        self._answer: list[str] = []
        self._since_tag: list[str] = []  # of the answer, for a retype
        self._out: list[tuple[PieceKind, list[str]]] = []

    @property
    def state(self) -> SplitState:
        """Where the text pushed so far ends; `start` until something is not whitespace."""
        return self._state

    @property
    def is_thinking(self) -> bool:
        """Whether text that comes now is thinking."""
        return self._state == "thinking" or (self._state == "start" and self._starts_inside)

    @property
    def held(self) -> str:
        """Text held back: whitespace, and then perhaps the beginning of a tag."""
        return "".join((*self._space, self._partial))

    @property
    def thinking(self) -> str:
        """The thinking so far, without what is held back."""
        # nothing is put together for good: another thread may ask while text comes
        return "".join(self._thinking)

    @property
    def answer(self) -> str:
        """The answer so far, without what is held back; shorter after a retype."""
        return "".join((*self._answer, *self._since_tag))

    def push(self, text: str) -> list[Piece]:
        """Take more text; returns what is certain now, often nothing."""
        if text and not self._partial and not self._space and not self._is_after_tag:
            if self._state == "thinking":
                if not self._thinking_needs_care(text):
                    self._thinking.append(text)
                    return [Piece(kind="thinking", text=text)]
            elif not self._lines.is_inside and not self._answer_needs_care(text):
                self._lines.text(text)
                self._since_tag.append(text)
                return [Piece(kind="answer", text=text)]
        text, self._partial = self._partial + text, ""
        at = 0
        while at < len(text):
            at = self._think(text, at) if self.is_thinking else self._reply(text, at)
        return self._given()

    def finish(self) -> list[Piece]:
        """What was held back, when no more text comes. Empty on the second call."""
        partial, self._partial = self._partial, ""
        self._text(partial, holds_space=False)
        self._flush()
        return self._given()

    def cut(self) -> None:
        """Say that a close tag that the model did not write is pushed next, while `is_thinking`.

        The model may still write its own: what comes before that one was thinking too.
        """
        self._is_cut = True

    def _think(self, text: str, at: int) -> int:
        """Take the next stretch of thinking from `at`; returns where it ends."""
        found = self._in_thinking.search(text, at)
        self._text(text[at : found.start() if found else None])
        if not found or found["cut"]:
            self._partial = found["cut"] if found else ""
            return len(text)
        tag = found["tag"]
        if tag == self._close:
            self._num_owed = self._num_nested + self._is_cut
            self._is_cut = False
            self._begin("answer", tag)
        elif self._state == "start":
            self._begin("thinking", tag)
        else:
            self._num_nested += 1
            self._text(tag)
        return found.end()

    def _reply(self, text: str, at: int) -> int:
        """Take the next stretch of the answer from `at`; returns where it ends."""
        found = self._in_answer.search(text, at)
        is_fenced = self._lines.is_inside
        self._text(text[at : found.start() if found else None], holds_space=not is_fenced)
        if not found:
            return len(text)
        if found["tag"] and not is_fenced:
            self._tag(found["tag"])
        elif found["cut"] and not is_fenced and self._may_count(found["cut"]):
            self._partial = found["cut"]
        else:
            self._text(found[0], holds_space=not is_fenced)
        return found.end()

    def _may_count(self, beginning: str) -> bool:
        """Whether a tag with this beginning could be more than text of the answer here."""
        if self._is_after_tag or self._num_owed:
            return True
        return self._lines.is_line_blank and self._open.startswith(beginning)

    def _tag(self, tag: str) -> None:
        """Take a tag that stands in the answer, outside a fence."""
        if tag == self._open:
            if self._lines.is_line_blank:
                self._num_nested = self._num_owed = 0
                self._begin("thinking", tag)
                return
            self._num_literal_opens += 1
        elif self._num_literal_opens:
            self._num_literal_opens -= 1
        elif self._is_after_tag or self._num_owed:
            self._num_owed = max(0, self._num_owed - 1)
            if not self._is_after_tag:
                self._thinking += self._since_tag
                self._since_tag = []
                self._add("retype", "")
            self._begin("answer", tag)
            return
        self._text(tag)

    def _begin(self, state: SplitState, tag: str) -> None:
        """Give a tag with the whitespace before it, and go on in `state`."""
        self._add("tag", "".join((*self._space, tag)))
        self._space = []
        self._answer += self._since_tag
        self._since_tag = []
        self._state = state
        self._is_after_tag = True
        self._lines = Fences()
        self._num_literal_opens = 0

    def _text(self, text: str, *, holds_space: bool = True) -> None:
        """Take text of the state at hand: a run of backticks, or text without any."""
        if not text:
            return
        if text[0] == "`":
            self._lines.ticks(len(text))
        else:
            self._lines.text(text)
        if self._is_after_tag:
            rest = text.lstrip()
            if self._state == "start" and not self._starts_inside:
                self._space.append(text[: len(text) - len(rest)])
            else:
                self._add("tag", text[: len(text) - len(rest)])
            if not (text := rest):
                return
            if self._state == "start":
                self._state = "thinking" if self._starts_inside else "answer"
            self._is_after_tag = False
        solid = text.rstrip() if holds_space else text
        if solid:
            self._flush()
            self._settle(solid)
        if len(solid) < len(text):
            self._space.append(text[len(solid) :])

    def _flush(self) -> None:
        """Give whitespace that no tag follows."""
        if space := "".join(self._space):
            self._settle(space)
        self._space = []

    def _settle(self, text: str) -> None:
        if self._state == "thinking":
            self._thinking.append(text)
            self._add("thinking", text)
        else:
            self._since_tag.append(text)
            self._add("answer", text)

    def _add(self, kind: PieceKind, text: str) -> None:
        if kind != "retype" and not text:
            return
        if self._out and self._out[-1][0] == kind != "retype":
            self._out[-1][1].append(text)
        else:
            self._out.append((kind, [text]))

    def _given(self) -> list[Piece]:
        out, self._out = self._out, []
        return [Piece(kind=kind, text="".join(texts)) for kind, texts in out]
