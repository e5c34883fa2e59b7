"""Markdown on a terminal while it comes: finished lines to print, and the tail to show below.

A line is printed once and never changed. The tail is short, so a long answer costs as much per
token as a short one.
"""

from __future__ import annotations

from rich.text import Text

from edgekit.chat.blocks import Block, BlockSplitter
from edgekit.chat.clean import clean_text
from edgekit.chat.highlight import CodeLines
from edgekit.chat.render import Renderer

_TRIED_LINES = 8
"""How many of its last lines a long paragraph is tried to be cut before."""
_LIVE_CHARS = 4000
"""The tail is shown as Markdown up to here: a table or an item may be longer."""


class MarkdownStream:
    """Takes the text of an answer in pieces. `renderer` says the width, which may change."""

    def __init__(self, renderer: Renderer) -> None:
        self._renderer = renderer
        self._splitter = BlockSplitter(self._find_cut)
        self._code = CodeLines("")
        self._is_empty = True

    def push(self, text: str) -> list[str]:
        """Lines that are finished now."""
        return self._print(self._splitter.push(clean_text(text)))

    def finish(self) -> list[str]:
        """The lines of the tail, when no more text comes."""
        return self._print(self._splitter.finish())

    def tail(self, max_rows: int) -> list[str]:
        """The end of what is not finished, in rows of the width."""
        block = self._splitter.tail
        if block is None or max_rows < 1:
            return []
        if block.kind == "code":
            rows = self._renderer.chopped(self._code.preview(self._end(block.text, max_rows)))
        elif block.kind == "raw" or len(block.text) > _LIVE_CHARS:
            rows = self._renderer.plain(block.text[-_LIVE_CHARS:])
        else:
            rows = self._renderer.markdown(_closed(block.text))
            rows = ["", *rows] if block.has_gap and not self._is_empty else rows
        return rows[-max_rows:]

    def _end(self, line: str, max_rows: int) -> str:
        """The end of a very long line, cut at a multiple of the width for its rows to stand."""
        width = self._renderer.width
        return line[max(len(line) // width - 2 * max_rows, 0) * width :]

    def _print(self, blocks: list[Block]) -> list[str]:
        lines: list[str] = []
        for block in blocks:
            if block.has_gap and not self._is_empty:
                lines.append("")
            lines += self._render(block)
            self._is_empty = False
        return lines

    def _render(self, block: Block) -> list[str]:
        if block.kind == "text":
            return self._renderer.markdown(block.text)
        if block.kind == "code":
            return [self._renderer.whole(self._code.push(block.text))]
        if block.kind == "raw":
            return [self._renderer.whole(Text(block.text))]
        self._code = CodeLines(block.text)
        return [self._renderer.whole(Text(f"── {block.text}".rstrip(), "dim"))]

    def _find_cut(self, source: str) -> int | None:
        """Where a line of the paragraph begins, if cutting there changes nothing on the screen."""
        rows = self._renderer.markdown(source)
        shown = [Text.from_ansi(row).plain for row in rows]
        for number in range(len(rows) - 2, max(len(rows) - _TRIED_LINES, 0), -1):
            place = source.find(shown[number][:5], sum(map(len, shown[:number])))
            head, rest = source[:place], source[place:]
            if place < 1 or not rest[:1].isalpha() or not _is_balanced(head):
                continue
            if self._renderer.markdown(head) + self._renderer.markdown(rest) == rows:
                return place
        return None


def _is_balanced(text: str) -> bool:
    """No emphasis, code, link or formula is open at the end."""
    is_even = all(text.count(mark) % 2 == 0 for mark in ("*", "__", "`", "~~", "$$"))
    pairs = (("[", "]"), ("\\(", "\\)"), ("(", ")"))
    return is_even and all(text.rfind(a) <= text.rfind(b) for a, b in pairs)


def _closed(text: str) -> str:
    """The last line with its emphasis and code closed, for it to look so while it is written."""
    line = text[text.rfind("\n") + 1 :]
    bare = line.rstrip()
    if line.count("`") % 2:
        return text + "`" if not bare.endswith("`") else bare[:-1]
    if line.count("**") % 2:
        return text.rstrip() + "**" if not bare.endswith("**") else text.rstrip()[:-2]
    return text
