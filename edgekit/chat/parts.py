"""The parts that the panel is put together from: style, completion, rows of a given number."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition, to_filter
from prompt_toolkit.layout import ConditionalContainer, FormattedTextControl, Window
from prompt_toolkit.layout.dimension import Dimension
from prompt_toolkit.layout.menus import CompletionsMenu
from prompt_toolkit.styles import Style

from edgekit.chat.clean import clean_line
from edgekit.chat.complete import complete

MENU_ROWS = 6
STYLE = Style.from_dict(
    {
        "label": "bold",
        "hint": "fg:ansibrightblack",
        "toolbar": "fg:ansibrightblack",
        "completion-menu": "bg:default fg:default",
        "completion-menu.completion": "bg:default fg:default",
        "completion-menu.completion.current": "reverse",
        "completion-menu.meta.completion": "bg:default fg:ansibrightblack",
        "completion-menu.meta.completion.current": "bg:default fg:ansibrightblack",
        "scrollbar.background": "bg:default",
        "scrollbar.button": "bg:ansibrightblack",
    }
)


def make_menu() -> CompletionsMenu:
    """Completions in rows of their own, for there may be no room to float in."""
    menu = CompletionsMenu(max_height=MENU_ROWS)
    assert isinstance(menu.content, Window)
    menu.content.dont_extend_height = to_filter(True)  # the toolbar stays below it
    return menu


def as_high_as(control: FormattedTextControl, count: Callable[[], int]) -> ConditionalContainer:
    """A window with as many rows as `count` says, or fewer where they do not fit."""
    window = Window(
        control,
        height=lambda: Dimension(min=0, max=count(), preferred=count()),
        dont_extend_height=True,
    )
    return ConditionalContainer(window, Condition(lambda: count() > 0))


class PathsAndCommands(Completer):
    """`edgekit.chat.complete` for prompt_toolkit."""

    def get_completions(
        self, document: Document, complete_event: CompleteEvent
    ) -> Iterable[Completion]:
        for found in complete(document.text_before_cursor):
            name = found.text.rstrip("/").rpartition("/")[2] + "/" * found.text.endswith("/")
            yield Completion(
                found.text,
                start_position=-found.num_replaced,
                display=clean_line(found.text if found.text.startswith("/") else name),
                display_meta=found.note,
            )
