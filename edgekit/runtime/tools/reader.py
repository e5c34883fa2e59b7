"""Text that comes in pieces, read as if it were whole.

Each method is a generator that yields where it needs more text and returns what it read; what it
decides depends on the text alone, never on where the pieces end. Nothing is read twice but for
the beginning of a tag, so the cost is that of the text.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Generator
from typing import TypeAlias, TypeVar

from edgekit.runtime.tools.literal import MAX_DEPTH

T = TypeVar("T")
Reading: TypeAlias = Generator[None, None, T]

SPACE = re.compile(r"\s*+")
_STRING = {
    quote: re.compile(rf"[^{quote}\\]*+(?:\\.[^{quote}\\]*+)*+", re.DOTALL) for quote in "\"'"
}
_PLAIN = re.compile(r"""[^]["'(){}<]*+""")
_CLOSING = {"{": "}", "[": "]", "(": ")"}


class Reader:
    """A place in a text, and what was read since somebody last asked for it."""

    def __init__(self) -> None:
        self.text = ""
        """What has come and may still be needed; reading goes on at `at`."""
        self.at = 0
        self.is_over = False
        """No more text comes."""
        self.taken: list[str] = []
        """Text read and not given to anybody yet."""

    def feed(self, text: str) -> None:
        """Append text, and forget what lies before `at`."""
        self.text = self.text[self.at :] + text
        self.at = 0

    def peek(self) -> Reading[str]:
        """The next character; "" at the end."""
        while self.at == len(self.text) and not self.is_over:
            yield
        return self.text[self.at : self.at + 1]

    def take(self, size: int) -> None:
        """Read `size` characters that are there."""
        self.taken.append(self.text[self.at : self.at + size])
        self.at += size

    def gap(self, pattern: re.Pattern[str] = SPACE) -> Reading[str]:
        """Pass all the characters that `pattern` repeats; they are returned, and not taken."""
        parts = []
        while True:
            if found := pattern.match(self.text, self.at):
                parts.append(found[0])
                self.at = found.end()
            if self.at < len(self.text) or self.is_over:
                return "".join(parts)
            yield

    def skip(self, pattern: re.Pattern[str] = SPACE) -> Reading[None]:
        """Take all the characters that `pattern` repeats."""
        self.taken.append((yield from self.gap(pattern)))

    def tag(self, pattern: re.Pattern[str]) -> Reading[str]:
        """Pass the tag of a `tag_pattern` that comes next, if any; returned, and not taken."""
        while True:
            found = pattern.match(self.text, self.at)
            if found and found["tag"]:
                self.at = found.end()
                return found["tag"]
            if self.is_over or not (found or self.at == len(self.text)):
                return ""
            yield

    def word(self, words: Collection[str]) -> Reading[str]:
        """Take characters as long as they begin one of `words`."""
        word = ""
        while character := (yield from self.peek()):
            if not any(known.startswith(word + character) for known in words):
                break
            self.take(1)
            word += character
        return word

    def string(self) -> Reading[str | None]:
        """Take a quoted string, and return what stands between the quotes, escapes and all.

        None, if no quote comes next or the closing one never comes.
        """
        quote = yield from self.peek()
        if not quote or quote not in _STRING:
            return None
        self.take(1)
        start = len(self.taken)
        while True:
            found = _STRING[quote].match(self.text, self.at)
            self.take(found.end() - self.at if found else 0)
            if self.text[self.at : self.at + 1] == quote:
                inside = "".join(self.taken[start:])
                self.take(1)
                return inside
            if self.is_over:
                return None
            yield

    def until(self, mark: str) -> Reading[str | None]:
        """Take everything to the next `mark` and that too; returns what is before it, or None."""
        start = len(self.taken)
        while (found := self.text.find(mark, self.at)) < 0:
            self.take(max(0, len(self.text) - self.at - len(mark) + 1))
            if self.is_over:
                return None
            yield
        self.take(found - self.at)
        before = "".join(self.taken[start:])
        self.take(len(mark))
        return before

    def balanced(self, closing: str) -> Reading[str | None]:
        """Take everything to the bracket `closing` of one that is open, and that too.

        Returns the closing brackets that are missing where a `<` comes outside of a string, or a
        `]` that belongs to a list around it: mostly "". None: this is no literal.
        """
        missing = [closing]
        while missing:
            yield from self.skip(_PLAIN)
            character = yield from self.peek()
            if character in _CLOSING and len(missing) < MAX_DEPTH:
                missing.append(_CLOSING[character])
                self.take(1)
            elif character == missing[-1]:
                missing.pop()
                self.take(1)
            elif character == "<" or (character == "]" and "]" not in missing):
                break
            elif (yield from self.string()) is None:
                return None
        return "".join(reversed(missing))
