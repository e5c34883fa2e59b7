"""Colours for code that comes line by line, with the terminal's own palette."""

from __future__ import annotations

from typing import Any

from rich.style import Style
from rich.syntax import Syntax
from rich.text import Text

_WINDOW_CHARS = 500
"""How far back a line's colours are worked out from, if no string or comment spans that place."""

_LONG_CHARS = 400
"""A line of this length is not looked at before it is complete."""

_COLOURS = {
    "Token.Comment": "bright_black",
    "Token.Comment.Preproc": "magenta",
    "Token.Generic.Deleted": "red",
    "Token.Generic.Heading": "bold",
    "Token.Generic.Inserted": "green",
    "Token.Keyword": "magenta",
    "Token.Literal.Number": "cyan",
    "Token.Literal.String": "green",
    "Token.Name.Builtin": "cyan",
    "Token.Name.Class": "blue",
    "Token.Name.Decorator": "blue",
    "Token.Name.Function": "blue",
    "Token.Name.Tag": "blue",
    "Token.Operator.Word": "magenta",
}


class CodeLines:
    """The lines of one fence. Each costs the same, however long the fence is."""

    def __init__(self, language: str) -> None:
        self._lexer: Any = Syntax("", language).lexer if language else None
        self._window: list[str] = []

    def push(self, line: str) -> Text:
        """The next line, in colour."""
        text, starts = self._highlight([*self._window, line])
        self._window.append(line)
        if sum(map(len, self._window)) > _WINDOW_CHARS and starts:
            del self._window[: starts[-1]]
        return text

    def preview(self, line: str) -> Text:
        """The same for a line that is not complete."""
        if len(line) > _LONG_CHARS:
            return Text(line.expandtabs(4))
        return self._highlight([*self._window, line])[0]

    def _highlight(self, lines: list[str]) -> tuple[Text, list[int]]:
        """The last line, and which lines after the first begin with a new token."""
        if self._lexer is None:
            return Text(lines[-1].expandtabs(4)), []
        rows, starts = [Text()], []
        for kind, value in self._lexer.get_tokens("\n".join(lines)):
            style = _style(str(kind))
            for number, part in enumerate(value.split("\n")):
                if number:
                    rows.append(Text())
                rows[-1].append(part.expandtabs(4), style)
            if value.endswith("\n"):
                starts.append(len(rows) - 1)
        # the lexer ends its text with a newline
        return rows[len(lines) - 1], [s for s in starts if s < len(lines)]


def _style(kind: str) -> Style | None:
    while kind:
        if colour := _COLOURS.get(kind):
            return Style.parse(colour)
        kind = kind.rpartition(".")[0]
    return None
