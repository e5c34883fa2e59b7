"""Markdown in blocks while it comes: what is finished is given once, what is not is the tail.

Models write Markdown line by line, so lines decide: a blank line ends a block, but not inside a
fence and not before an indented line of a list; every item of a list is a block; every line of a
code fence is one. The same text gives the same blocks, in whatever pieces it came.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

LONG_CHARS = 400
"""A paragraph of this length is cut where its lines allow it, so that the tail stays short."""

Kind = Literal["text", "fence", "code", "end", "raw"]

_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})\s*([^`]*)$")
_INNER_FENCE = re.compile(r"\s*(?:(?:[-*+]|\d{1,9}[.)])\s+)*(`{3,}|~{3,})[^`]*$")
_HEADING = re.compile(r" {0,3}#{1,6}(?:\s|$)")
_RULE = re.compile(r" {0,3}(?:(?:\*[ \t]*){3,}|(?:-[ \t]*){3,}|(?:_[ \t]*){3,})$")
_ITEM = re.compile(r" ?(?:[-*+]|\d{1,9}[.)])(?:\s|$)")
_MATH = re.compile(r"\s*(\\\[|\$\$)")
_TABLE = re.compile(r" {0,3}\|?\s*:?-+:?\s*(?:\|\s*:?-+:?\s*)*\|?\s*$")
_CLOSERS = {"\\[": "\\]", "$$": "$$"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A piece of Markdown that stands for itself."""

    kind: Kind
    """`text` is any Markdown. `fence` opens a code fence, `code` is one line of it, `end` closes
    it. `raw` is a line to show as it is: mathematics."""
    text: str
    """Without the newline at its end; of `fence`, the language."""
    has_gap: bool = False
    """A blank line stands before it."""


def never_cut(source: str) -> int | None:
    """No place where a long paragraph may be cut."""
    return None


class BlockSplitter:
    """Takes text, gives finished blocks. `find_cut` says where a long paragraph can be cut."""

    def __init__(self, find_cut: Callable[[str], int | None] = never_cut) -> None:
        self._find_cut = find_cut
        self._partial = ""
        """The line that is not complete yet."""
        self._lines: list[str] = []
        """Complete lines of the block that is open."""
        self._num_blanks = 0
        """Blank lines after them that may belong to a list."""
        self._has_gap = False
        self._is_list = False
        self._inner_fence = ""
        self._fence = ""
        self._math = ""
        self._next_cut = LONG_CHARS

    def push(self, text: str) -> list[Block]:
        """Take more text; returns the blocks that it finished."""
        blocks: list[Block] = []
        *complete, last = text.split("\n")
        for line in complete:
            self._partial += line
            blocks += self._cut()
            line, self._partial = self._partial, ""
            blocks += self._take(line)
        self._partial += last
        return blocks + self._cut()

    def finish(self) -> list[Block]:
        """The blocks of what is left, when no more text comes."""
        line, self._partial = self._partial, ""
        return [*(self._take(line) if line else []), *self._flush()]

    @property
    def tail(self) -> Block | None:
        """What is not finished, as it looks so far."""
        if self._fence or self._math:
            kind: Kind = "code" if self._fence else "raw"
            return Block(kind=kind, text=self._partial) if self._partial else None
        lines = [*self._lines, *[""] * self._num_blanks, *([self._partial] * bool(self._partial))]
        text = "\n".join(lines)
        return Block(kind="text", text=text, has_gap=self._has_gap) if text.strip() else None

    def _take(self, line: str) -> list[Block]:
        if self._fence:
            return [self._code_line(line)]
        if self._math:
            return self._math_line(line)
        if self._is_list and self._belongs(line):
            return []
        if not line.strip():
            blocks = self._flush()
            self._has_gap = True
            return blocks
        return self._start(line)

    def _belongs(self, line: str) -> bool:
        """Whether a line goes into the open item of a list; it is added then."""
        if not line.strip():
            self._num_blanks += 1
            return True
        is_indented = line.startswith(("  ", "\t", " \t"))
        is_start = self._num_blanks or _ITEM.match(line) or _opens_block(line)
        if is_start and not (self._inner_fence or is_indented):
            return False
        self._lines += [""] * self._num_blanks
        self._num_blanks = 0
        self._add(line)
        return True

    def _add(self, line: str) -> None:
        self._lines.append(line)
        if self._inner_fence:
            if line.strip() and not line.strip().strip(self._inner_fence[0]):
                self._inner_fence = "" if self._inner_fence in line else self._inner_fence
        elif self._is_list and (match := _INNER_FENCE.match(line)):
            self._inner_fence = match[1]

    def _start(self, line: str) -> list[Block]:
        """A line that begins a block, or goes on with a paragraph."""
        if match := _FENCE.match(line):
            blocks, self._fence = self._flush(), match[1]
            return [*blocks, self._block("fence", match[2].split(" ")[0].strip())]
        if match := _MATH.match(line):
            blocks, self._math = self._flush(), _CLOSERS[match[1]]
            return [*blocks, *self._math_line(line, opened_at=match.end())]
        if _ITEM.match(line) and not _RULE.match(line):
            blocks, self._is_list = self._flush(), True
            self._add(line)
            return blocks
        if _opens_block(line):
            blocks = self._flush()
            self._lines.append(line)
            return [*blocks, *self._flush()]
        blocks = self._flush() if self._is_list else []
        self._add(line)
        return blocks

    def _code_line(self, line: str) -> Block:
        bare = line.strip()
        if bare.startswith(self._fence) and not bare.strip(self._fence[0]):
            self._fence = ""
            return Block(kind="end", text="")
        return Block(kind="code", text=line)

    def _math_line(self, line: str, *, opened_at: int = 0) -> list[Block]:
        if not line.strip():  # never closed: mathematics has no blank lines
            self._math, self._has_gap = "", True
            return []
        if self._math in line[opened_at:]:
            self._math = ""
        return [self._block("raw", line)]

    def _flush(self) -> list[Block]:
        text, has_blanks = "\n".join(self._lines), bool(self._num_blanks)
        self._lines, self._num_blanks, self._next_cut = [], 0, LONG_CHARS
        self._is_list, self._inner_fence = False, ""
        blocks = [self._block("text", text)] if text else []
        self._has_gap = self._has_gap or has_blanks
        return blocks

    def _block(self, kind: Kind, text: str) -> Block:
        block = Block(kind=kind, text=text, has_gap=self._has_gap)
        self._has_gap = False
        return block

    def _cut(self) -> list[Block]:
        """Finish the beginning of a long paragraph. Looks at the same characters in any case."""
        blocks: list[Block] = []
        while not (self._fence or self._math or self._is_list):
            open_text = "\n".join([*self._lines, self._partial])
            if len(open_text) < self._next_cut or not _is_paragraph(open_text[:LONG_CHARS]):
                break
            place = self._find_cut(open_text[: self._next_cut])
            if place is None:
                self._next_cut += LONG_CHARS
                continue
            *self._lines, self._partial = open_text[place:].split("\n")
            self._next_cut = LONG_CHARS
            blocks.append(self._block("text", open_text[:place].rstrip()))
        return blocks


def _opens_block(line: str) -> bool:
    """A heading, a rule, a fence or mathematics, which need no blank line before them."""
    return any(kind.match(line) for kind in (_HEADING, _RULE, _FENCE, _MATH))


def _is_paragraph(text: str) -> bool:
    lines = text.split("\n", 2)
    is_table = len(lines) > 1 and "|" in lines[0] and _TABLE.match(lines[1])
    return not (is_table or text.lstrip().startswith((">", "|", "#")) or _ITEM.match(text))
