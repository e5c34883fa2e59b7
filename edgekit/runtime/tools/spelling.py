"""Read one tool call from the place where it begins, in any of the ways models spell one.

{"name": "f", "arguments": {"key": 1}}          also Python's quotes and words, "parameters",
                                                OpenAI's wrapping: see `Calls.from_object`
f(key=1)
<function=f><parameter=key>1</parameter></function>
<function=f>{"key": 1}</function>
"""

from __future__ import annotations

import re

from edgekit.runtime.piece import ToolCall
from edgekit.runtime.tags import tag_pattern
from edgekit.runtime.tools.calls import Calls
from edgekit.runtime.tools.literal import read_arguments, read_literal
from edgekit.runtime.tools.reader import Reader, Reading

FUNCTION = "<function="
_FUNCTION = re.compile(tag_pattern((FUNCTION,)))
_FUNCTION_END = re.compile(tag_pattern(("</function>",)))
_PARAMETER = re.compile(tag_pattern(("<parameter=",)))
_KEY = re.compile(r"[^<>\n]*+")
_BLANK = re.compile(r"[ \t\r]*+")
_FIRST_KEYS = frozenset({"name", "arguments", "parameters", "function", "type", "id", "index"})


class Spelling:
    """Calls of declared tools; None where there is none, with what shows it still to be read."""

    def __init__(self, reader: Reader, calls: Calls) -> None:
        self._reader = reader
        self._calls = calls
        self._names = tuple(calls.tools)

    def may_begin(self, *, is_tagged: bool) -> Reading[bool]:
        """Whether a call may begin with the next character; takes nothing."""
        first = yield from self._reader.peek()
        if first == "<" and is_tagged:
            tag = yield from self._reader.tag(_FUNCTION)
            self._reader.at -= len(tag)
            return tag != ""
        return first == "{" or (first != "" and any(n.startswith(first) for n in self._names))

    def call(self, *, is_tagged: bool, is_list: bool) -> Reading[ToolCall | None]:
        """The call that begins here, in a block after a tag or a list or neither."""
        first = yield from self._reader.peek()
        if first == "{":
            return (yield from self._object(is_tagged=is_tagged, is_list=is_list))
        if first == "<" and is_tagged:
            tag = yield from self._reader.tag(_FUNCTION)
            self._reader.taken.append(tag)
            return (yield from self.function()) if tag else None
        return (yield from self._values(ends_line=not is_tagged and not is_list))

    def function(self) -> Reading[ToolCall | None]:
        """What follows `<function=`."""
        reader = self._reader
        name = yield from reader.word(self._names)
        if name not in self._calls.tools or (yield from reader.peek()) != ">":
            return None
        reader.take(1)
        yield from reader.skip()
        if (yield from reader.peek()) == "{":
            call = yield from self._function_object(name)
        else:
            call = yield from self._function_parameters(name)
        if call is None:
            return None
        yield from reader.skip()
        end = yield from reader.tag(_FUNCTION_END)
        reader.taken.append(end)
        return call if end else None

    def _function_object(self, name: str) -> Reading[ToolCall | None]:
        text = yield from self._bracketed("}")
        value = {"name": name, "arguments": _literal(text)}
        is_object = isinstance(value["arguments"], dict)
        return self._calls.from_object(value, needs_arguments=False) if is_object else None

    def _function_parameters(self, name: str) -> Reading[ToolCall | None]:
        reader = self._reader
        texts = {}
        while tag := (yield from reader.tag(_PARAMETER)):
            reader.taken.append(tag)
            key = yield from reader.gap(_KEY)
            reader.taken.append(key)
            if (yield from reader.peek()) != ">":
                return None
            reader.take(1)
            text = yield from reader.until("</parameter>")
            if text is None:
                return None
            texts[key.strip()] = text.removeprefix("\n").removesuffix("\n")
            yield from reader.skip()
        return self._calls.from_texts(name, texts)

    def _object(self, *, is_tagged: bool, is_list: bool) -> Reading[ToolCall | None]:
        reader = self._reader
        start = len(reader.taken)
        reader.take(1)
        if not (yield from self._begins_call()):
            return None
        missing = yield from reader.balanced("}")
        if missing is None:
            return None
        if missing:  # before a closing tag, or the end of the list around it
            following = yield from reader.peek()
            if not (is_tagged and following == "<") and not (is_list and following == "]"):
                return None
        value = _literal("".join(reader.taken[start:]) + missing)
        return self._calls.from_object(value, needs_arguments=not is_tagged)

    def _begins_call(self) -> Reading[bool]:
        """Take the first key of an object and what comes right after; is it one of a call?"""
        reader = self._reader
        yield from reader.skip()
        key = yield from reader.string()
        if key not in _FIRST_KEYS:
            return False
        yield from reader.skip()
        if (yield from reader.peek()) != ":":
            return False
        reader.take(1)
        yield from reader.skip()
        first = yield from reader.peek()
        if key == "function" and first == "{":
            return True
        if key in ("name", "function"):
            return (yield from reader.string()) in self._calls.tools
        return key != "type" or (yield from reader.string()) == "function"

    def _values(self, *, ends_line: bool) -> Reading[ToolCall | None]:
        """`name(…)`; `ends_line`: only if nothing but `;` follows in its line."""
        reader = self._reader
        name = yield from reader.word(self._names)
        if name not in self._calls.tools:
            return None
        yield from reader.skip(_BLANK)
        if (yield from reader.peek()) != "(":
            return None
        text = yield from self._bracketed(")")
        if text is None:
            return None
        try:
            call = self._calls.from_values(name, *read_arguments(text))
        except ValueError:
            return None
        if call is not None and ends_line:
            yield from reader.skip(_BLANK)
            if (yield from reader.peek()) not in ("", "\n", ";"):
                return None
        return call

    def _bracketed(self, closing: str) -> Reading[str | None]:
        """Take the bracket that comes next and everything to `closing`; the text with both."""
        start = len(self._reader.taken)
        self._reader.take(1)
        missing = yield from self._reader.balanced(closing)
        return "".join(self._reader.taken[start:]) if missing == "" else None


def _literal(text: str | None) -> object:
    try:
        return None if text is None else read_literal(text)
    except ValueError:
        return None
