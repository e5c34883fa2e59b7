"""Values as models write them: JSON, Python literals, and what lies between the two.

Beyond JSON are read: single quotes, `True`, `False`, `None`, tuples (as lists), trailing commas,
line breaks in strings, Python's escapes and those that JSON does not know (`"\\d"`, kept as they
are). Not read: anything to be computed, `NaN` and numbers beyond floats, keys that are no strings.
Costs time in proportion to the text, at any nesting up to `MAX_DEPTH`.
"""

from __future__ import annotations

import math
import re
from typing import Any

MAX_DEPTH = 64
_TOKEN = re.compile(
    r"""\s*+(?:
        (?P<string>"[^"\\]*+(?:\\.[^"\\]*+)*+"|'[^'\\]*+(?:\\.[^'\\]*+)*+')
      | (?P<number>[+-]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)(?![\w.])
      | (?P<word>[^\W\d][\w.-]*)
      | (?P<mark>[][{}(),:=])
      | (?P<end>\Z)
    )""",
    re.VERBOSE | re.DOTALL,
)
_WORDS = {"true": True, "True": True, "false": False, "False": False, "null": None, "None": None}
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|x([0-9a-fA-F]{2})|U([0-9a-fA-F]{8})|(.))", re.DOTALL)
_ESCAPES = {
    "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "/": "/", "\\": "\\", '"': '"',
    "'": "'", "\n": "",
}  # fmt: skip
_SURROGATE = re.compile(r"[\ud800-\udfff]")


def read_literal(text: str) -> Any:
    """The value that `text` is, whitespace around it aside. Raises `ValueError`."""
    tokens = _Tokens(text)
    value = tokens.value()
    tokens.expect("")
    return value


def read_arguments(text: str) -> tuple[list[Any], dict[str, Any]]:
    """The positional and named values of `(1, "two", three=3)`. Raises `ValueError`."""
    tokens = _Tokens(text)
    positional: list[Any] = []
    named: dict[str, Any] = {}
    tokens.expect("(")
    while not tokens.skip(")"):
        if name := tokens.argument_name():
            if name in named:
                raise ValueError(f"named twice: {name}")
            named[name] = tokens.value()
        elif named:
            raise ValueError("a positional value after a named one")
        else:
            positional.append(tokens.value())
        tokens.separate(")")
    tokens.expect("")
    return positional, named


class _Tokens:
    """A cursor in the text of a literal."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._depth = 0
        self._is_comma_last = False

    def _next(self) -> re.Match[str]:
        if found := _TOKEN.match(self._text, self._at):
            return found
        raise ValueError(f"no literal from character {self._at}")

    def skip(self, mark: str) -> bool:
        """Go past `mark` if it comes next."""
        found = self._next()
        if found["mark"] != mark:
            return False
        self._at = found.end()
        return True

    def expect(self, mark: str) -> None:
        """Go past `mark`; "" is the end of the text."""
        if not (self._next()["end"] is not None if mark == "" else self.skip(mark)):
            raise ValueError(f"`{mark}` expected at character {self._at}")

    def separate(self, closing: str) -> None:
        """Go past a comma, unless `closing` comes next."""
        self._is_comma_last = self._next()["mark"] != closing
        if self._is_comma_last:
            self.expect(",")

    def argument_name(self) -> str:
        """The name before `=`, or ""."""
        start, word = self._at, self._next()["word"]
        if word:
            self._at = self._next().end()
            if self.skip("="):
                return word
            self._at = start
        return ""

    def value(self) -> Any:
        found = self._next()
        self._at = found.end()
        if found["string"]:
            return _unquoted(found["string"])
        if found["number"]:
            return _number(found["number"])
        if found["word"] in _WORDS:
            return _WORDS[found["word"]]
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ValueError("nested too deeply")
        match found["mark"]:
            case "{":
                value: Any = self._object()
            case "[":
                value = self._list("]")
            case "(":
                value = self._list(")")
                if len(value) == 1 and not self._is_comma_last:
                    value = value[0]
            case _:
                raise ValueError(f"no value at character {found.start()}")
        self._depth -= 1
        return value

    def _list(self, closing: str) -> list[Any]:
        items = []
        while not self.skip(closing):
            items.append(self.value())
            self.separate(closing)
        return items

    def _object(self) -> dict[str, Any]:
        items = {}
        while not self.skip("}"):
            key = self._next()["string"]
            if not key:
                raise ValueError(f"no key at character {self._at}")
            self._at = self._next().end()
            self.expect(":")
            items[_unquoted(key)] = self.value()
            self.separate("}")
        return items


def _number(text: str) -> int | float:
    if text.lstrip("+-").isdigit():
        return int(text)  # ValueError beyond Python's limit of digits
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"beyond floats: {text}")
    return number


def _unquoted(token: str) -> str:
    text = token[1:-1]
    if "\\" in text:
        text = _ESCAPE.sub(_escaped, text)
    if _SURROGATE.search(text):  # two make one character, one alone cannot be encoded
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _escaped(found: re.Match[str]) -> str:
    code = found[1] or found[2] or found[3]
    if not code:
        return _ESCAPES.get(found[4], found[0])
    return chr(int(code, 16)) if int(code, 16) < 0x110000 else found[0]
