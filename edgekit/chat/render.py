"""Markdown and plain text as lines for a terminal of a given width, through rich.

Nothing a model writes is lost: HTML is text, and so is mathematics in TeX; line breaks stay; the
address of a link is shown. Lines have no spaces at their end, so that they survive a resize.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from markdown_it import MarkdownIt
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token
from rich import markdown
from rich.cells import chop_cells
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.segment import Segment
from rich.text import Text
from rich.theme import Theme

from edgekit.chat.clusters import Placeholders
from edgekit.chat.highlight import CodeLines

_THEME = Theme(
    {
        "markdown.h1": "bold underline",
        **{f"markdown.h{level}": "bold" for level in range(2, 7)},
        "markdown.code": "cyan",
        "markdown.block_quote": "dim",
        "markdown.item.number": "none",
        "markdown.item.bullet": "none",
        "markdown.link": "underline",
        "markdown.link_url": "dim",
        "markdown.table.border": "dim",
        "markdown.table.header": "bold",
    }
)
_RULE = "─" * 3


class Renderer:
    """Lines of ANSI text, `width` cells at most. The width may be changed at any time."""

    def __init__(self, width: int) -> None:
        self.width = width
        self._clusters = Placeholders()
        self._console = Console(
            force_terminal=True, color_system="standard", theme=_THEME, legacy_windows=False,
            highlight=False, markup=False, emoji=False,
        )  # fmt: skip

    def markdown(self, source: str) -> list[str]:
        """One block of Markdown, without blank lines around it."""
        lines = self._lines(_Markdown(self._clusters.put(source)))
        while lines and not lines[-1]:
            lines.pop()
        while lines and not lines[0]:
            del lines[0]
        return lines

    def plain(self, text: str, style: str = "") -> list[str]:
        """Text as it is, wrapped between words."""
        text = self._clusters.put(text.expandtabs(4))
        return self._lines(Text(text, style, overflow="fold", no_wrap=False))

    def whole(self, line: Text) -> str:
        """One line however long: the terminal wraps it, and copies it without the breaks."""
        return self._ansi(line.render(self._console, end=""))

    def chopped(self, line: Text) -> list[str]:
        """The same in rows, cut where the terminal would."""
        offsets, at = [], 0
        for row in chop_cells(line.plain, self.width)[:-1]:
            at += len(row)
            offsets.append(at)
        return [self.whole(row) for row in line.divide(offsets)]

    def _lines(self, renderable: RenderableType) -> list[str]:
        options = self._console.options.update(width=max(self.width, 1))
        return [
            self._ansi(line) for line in self._console.render_lines(renderable, options, pad=False)
        ]

    def _ansi(self, segments: Iterable[Segment]) -> str:
        row = list(segments)
        while row and not (row[-1].text.strip() or _has_ground(row[-1])):
            row.pop()
        if row and not _has_ground(row[-1]):
            row[-1] = Segment(row[-1].text.rstrip(), row[-1].style)
        if self._console.no_color:
            row = list(Segment.remove_color(row))
        text = "".join(s.style.render(s.text) if s.style else s.text for s in row)
        return self._clusters.take(text)


def _has_ground(segment: Segment) -> bool:
    return segment.style is not None and segment.style.bgcolor is not None


class _Code(markdown.CodeBlock):
    """A fence inside a list or a quotation; those outside are printed line by line."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = CodeLines(self.lexer_name)
        for line in str(self.text).rstrip("\n").split("\n"):
            text = lines.push(line)
            text.overflow = "fold"
            yield text


class _Rule(markdown.HorizontalRule):
    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(_RULE, "dim")


class _Heading(markdown.Heading):
    LEVEL_ALIGN: ClassVar = {}


class _Item(markdown.ListItem):
    def render_bullet(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from self._render("• ", console, options)

    def render_number(
        self, console: Console, options: ConsoleOptions, number: int, last_number: int
    ) -> RenderResult:
        yield from self._render(f"{number}. ", console, options)

    def _render(self, mark: str, console: Console, options: ConsoleOptions) -> RenderResult:
        inner = options.update(width=max(options.max_width - len(mark), 1))
        for number, line in enumerate(console.render_lines(self.elements, inner, pad=False)):
            yield Segment(" " * len(mark) if number else mark)
            yield from line
            yield Segment.line()


class _Markdown(markdown.Markdown):
    elements: ClassVar[dict[str, type[markdown.MarkdownElement]]] = {
        **markdown.Markdown.elements,
        "fence": _Code,
        "heading_open": _Heading,
        "hr": _Rule,
        "list_item_open": _Item,
    }

    def __init__(self, source: str) -> None:
        super().__init__("", hyperlinks=False)
        self.parsed = _PARSER.parse(source)
        for token in self.parsed:
            for child in token.children or ():
                _keep(child)


def _keep(token: Token) -> None:
    """Line breaks stay, and a picture is shown as the link that it is."""
    if token.type == "softbreak":
        token.type = "hardbreak"
    elif token.type == "image":
        token.type, token.tag = "text", ""
        token.content = f"{token.content} ({token.attrs.get('src', '')})"
        token.children = None


def _mathematics(state: StateInline, silent: bool) -> bool:
    r"""TeX between \( \), \[ \] or $$ is text: no escapes, no emphasis in it."""
    opener = state.src[state.pos : state.pos + 2]
    closer = {"\\(": "\\)", "\\[": "\\]", "$$": "$$"}.get(opener)
    end = state.src.find(closer, state.pos + 2) if closer else -1
    if closer is None or not 0 <= end < state.posMax:
        return False
    if not silent:
        state.push("text", "", 0).content = state.src[state.pos : end + 2]
    state.pos = end + 2
    return True


def _make_parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
    # indented code and underlined headings are mostly no such thing where models write them
    parser.disable(["code", "lheading", "html_block", "html_inline", "reference"])
    parser.inline.ruler.before("escape", "mathematics", _mathematics)
    return parser


_PARSER = _make_parser()
