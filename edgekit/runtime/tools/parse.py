"""Take the tool calls out of an answer while it comes, however the model spells them.

    in tags, anywhere       <TOOLCALL>[{…}, {…}]</TOOLCALL>   <TOOL_CALL>   <ANGLED_TOOLS>
                            <tool_call>{…}</tool_call>        <|python_tag|>{…}; {…}
                            <function=…>…</function>
    at the start, bare      {…}; {…}   [{…}, {…}]   name(key="value")   [name(…), name(…)]
    as the whole answer     the same in a ``` fence

What a single call looks like is in `spelling`. Mended are tags and lists that are not closed, and
a closing bracket too many or too few before the end of a list or the closing tag.

Only declared tools are called, and an object that repeats a declaration is text. Whitespace and
separators before and between calls belong to the call that follows, what closes a block to the
last call in it. A call is given as soon as nothing more can belong to it. What turns out to be no
call is text up to the character that shows it. A fence waits for the end, for only then is it
the whole answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

from edgekit.runtime.piece import Piece, ToolCall
from edgekit.runtime.tags import tag_pattern
from edgekit.runtime.tools.calls import Calls
from edgekit.runtime.tools.reader import Reader, Reading
from edgekit.runtime.tools.spec import Tool
from edgekit.runtime.tools.spelling import FUNCTION, Spelling

_CLOSED_BLOCKS = ("<TOOLCALL>", "<TOOL_CALL>", "<ANGLED_TOOLS>")
_ANY_CASE = re.IGNORECASE | re.ASCII
_OPEN = re.compile(tag_pattern((*_CLOSED_BLOCKS, "<|python_tag|>", FUNCTION)), _ANY_CASE)
_CLOSE = re.compile(tag_pattern([tag.replace("<", "</") for tag in _CLOSED_BLOCKS]), _ANY_CASE)
_FENCE = re.compile(tag_pattern(("```",)))
_FENCE_NAMES = ("json", "python", "tool_call", "tool_code", "")
_BETWEEN = re.compile(r"[\s,;]*+")
_BLANK = re.compile(r"[ \t\r]*+")


class ToolParser:
    """The pieces of one answer, of kinds `answer` and `call`. Their texts joined are its text."""

    def __init__(self, tools: Iterable[Tool], *, taken_ids: set[str] | None = None) -> None:
        """`taken_ids` are of other calls: no call gets one of them, and its own is added."""
        calls = Calls(tools)
        self._has_tools = bool(calls.tools)
        self._reader = Reader()
        self._spelling = Spelling(self._reader, calls)
        self._is_prose = False
        self._fenced: list[tuple[ToolCall, str]] | None = None
        self._ids = set() if taken_ids is None else taken_ids
        self._num_named = 0
        self._said: list[str] = []
        self._out: list[Piece] = []
        self._reading = self._answer()

    def push(self, text: str) -> list[Piece]:
        """Take more of the answer; returns what is certain now, often nothing."""
        reader = self._reader
        is_plain = self._is_prose and reader.at == len(reader.text) and "<" not in text
        if is_plain or not self._has_tools:
            return [Piece(kind="answer", text=text)] if text else []
        reader.feed(text)
        return self._read_on()

    def finish(self) -> list[Piece]:
        """What was held back, when no more text comes. Empty on the second call."""
        self._reader.is_over = True
        return self._read_on()

    def _read_on(self) -> list[Piece]:
        next(self._reading, None)
        self._give_said()
        out, self._out = self._out, []
        return out

    def _give_said(self) -> None:
        if text := "".join(self._said):
            self._out.append(Piece(kind="answer", text=text))
        self._said = []

    def _give(self, call: ToolCall, text: str) -> None:
        call_id = call.id
        while not call_id or call_id in self._ids:
            self._num_named += 1
            call_id = f"call_{self._num_named}"
        self._ids.add(call_id)
        self._give_said()
        self._out.append(Piece(kind="call", text=text, call=replace(call, id=call_id)))

    def _take(self, call: ToolCall) -> bool:
        """A call was read, spelled by everything taken; True, for those who return that."""
        text, self._reader.taken = "".join(self._reader.taken), []
        if self._fenced is not None:
            self._fenced.append((call, text))
        else:
            self._give(call, text)
        return True

    def _answer(self) -> Reading[None]:
        is_start = True
        while True:  # nothing but calls so far, or since the last one
            yield from (self._reader.skip() if is_start else self._reader.skip(_BETWEEN))
            is_call = yield from self._bare(is_start=is_start)
            is_start = False
            while not is_call:
                self._said += self._reader.taken
                self._reader.taken = []
                if not (yield from self._prose()):
                    return
                is_call = yield from self._tagged()

    def _prose(self) -> Reading[bool]:
        """Give text up to an opening tag; False at the end of the answer."""
        reader = self._reader
        self._is_prose = True
        while True:
            found = _OPEN.search(reader.text, reader.at)
            end = found.start() if found and not (found["cut"] and reader.is_over) else None
            self._said.append(reader.text[reader.at : end])
            reader.at = len(reader.text) if end is None else end
            if reader.is_over or (found and found["tag"]):
                self._is_prose = False
                return reader.at < len(reader.text)
            yield

    # Each of the following says whether there was a call; if not, what it took is text.

    def _bare(self, *, is_start: bool) -> Reading[bool]:
        first = yield from self._reader.peek()
        if first == "<":
            return (yield from self._tagged())
        if first == "`":
            return is_start and (yield from self._fence())
        return (yield from self._block(is_tagged=False))

    def _tagged(self) -> Reading[bool]:
        tag = yield from self._reader.tag(_OPEN)
        self._reader.taken.append(tag)
        if tag.lower() == FUNCTION:
            call = yield from self._spelling.function()
            return call is not None and self._take(call)
        return tag != "" and (yield from self._block(is_tagged=True))

    def _block(self, *, is_tagged: bool) -> Reading[bool]:
        """A call or a list of calls; after a tag several of them, with what closes it."""
        reader = self._reader
        if is_tagged:
            yield from reader.skip()
        is_list = (yield from reader.peek()) == "["
        if is_list:
            reader.take(1)
            yield from reader.skip()
        while True:
            call = yield from self._spelling.call(is_tagged=is_tagged, is_list=is_list)
            if call is None:
                return False
            if not is_tagged and not is_list:
                return self._take(call)
            gap = yield from reader.gap(_BETWEEN)
            is_closed = False
            while (yield from reader.peek()) in (["]", "}"] if is_tagged else ["]"]):
                is_closed = is_closed or reader.text[reader.at] == "]"
                reader.taken.append(gap)
                reader.take(1)
                if not is_tagged:
                    return self._take(call)
                gap = yield from reader.gap(_BETWEEN)
            if is_tagged and (tag := (yield from reader.tag(_CLOSE))):
                reader.taken += [gap, tag]
                return self._take(call)
            self._take(call)
            reader.taken.append(gap)
            if is_closed or not (yield from self._spelling.may_begin(is_tagged=is_tagged)):
                return True

    def _fence(self) -> Reading[bool]:
        self._fenced = []
        is_whole = yield from self._fenced_calls()
        fenced, self._fenced = self._fenced, None
        if is_whole:
            last, text = fenced.pop()
            fenced.append((last, text + "".join(self._reader.taken)))
            self._reader.taken = []
            for call, text in fenced:
                self._give(call, text)
        else:
            self._reader.taken[:0] = [text for _, text in fenced]
        return is_whole

    def _fenced_calls(self) -> Reading[bool]:
        """Read a fence to its end; is it the whole answer, and are there only calls in it?"""
        reader = self._reader
        reader.taken.append((yield from reader.tag(_FENCE)))
        if not reader.taken[-1] or (yield from reader.word(_FENCE_NAMES)) not in _FENCE_NAMES:
            return False
        yield from reader.skip(_BLANK)
        if (yield from reader.peek()) != "\n":
            return False
        yield from reader.skip()
        while (yield from self._block(is_tagged=False)):
            yield from reader.skip(_BETWEEN)
            end = yield from reader.tag(_FENCE)
            reader.taken.append(end)
            if end:
                yield from reader.skip()
            if (yield from reader.peek()) == "":
                return True
            if end:
                return False
        return False
