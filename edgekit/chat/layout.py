"""The rows below the scrollback: what the answer adds now, the input, completions, a toolbar."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from time import perf_counter
from typing import Protocol

from prompt_toolkit.buffer import Buffer
from prompt_toolkit.completion import (
    ThreadedCompleter,
)
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition, is_searching
from prompt_toolkit.formatted_text import ANSI, StyleAndTextTuples, to_formatted_text
from prompt_toolkit.history import History
from prompt_toolkit.input import Input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.keys import Keys
from prompt_toolkit.layout import (
    BufferControl,
    FormattedTextControl,
    HSplit,
    Layout,
    VerticalAlign,
    Window,
)
from prompt_toolkit.layout.containers import AnyContainer
from prompt_toolkit.layout.dimension import Dimension
from prompt_toolkit.layout.processors import AfterInput, ConditionalProcessor
from prompt_toolkit.output import Output
from prompt_toolkit.widgets import SearchToolbar
from rich.cells import cell_len

from edgekit.chat.complete import completes
from edgekit.chat.contract import Answer
from edgekit.chat.parts import MENU_ROWS, STYLE, PathsAndCommands, as_high_as, make_menu
from edgekit.chat.terminal import InlineApplication
from edgekit.chat.toolbar import Toolbar

_INPUT_ROWS = 8


class Talker(Protocol):
    """Whom the panel serves."""

    answer: Answer | None

    @property
    def label(self) -> str: ...

    @property
    def is_idle(self) -> bool: ...

    def rows(self, max_rows: int, *, is_unfolded: bool) -> list[str]: ...

    def status(self, *, is_unfolded: bool) -> list[str]: ...

    def entered(self, text: str) -> None: ...

    def interrupted(self, *, had_text: bool) -> None: ...

    def typed(self) -> None: ...

    def leave(self) -> None: ...


class Panel:
    """Builds the application; it lives as long as the dialogue."""

    def __init__(
        self, talker: Talker, toolbar: Toolbar, *, history: History, source: Input | None,
        output: Output,
    ) -> None:  # fmt: skip
        self._talker = talker
        self._toolbar = toolbar
        self.frame_s = 0.0
        """How long the last frame took."""
        self._started = 0.0
        self._is_unfolded = False
        self._rows: list[str] = []
        """Of ANSI text, above the input."""
        self._shown: dict[int, str] = {}
        self._parity: dict[int, bool] = {}
        self._search = SearchToolbar()
        self._buffer = Buffer(
            multiline=True,
            history=history,
            completer=ThreadedCompleter(PathsAndCommands()),
            complete_while_typing=Condition(self._completes),
            on_text_changed=lambda _: talker.typed(),
        )
        self.application = InlineApplication(
            layout=self._layout(),
            key_bindings=self._keys(),
            style=STYLE,
            input=source,
            output=output,
            erase_when_done=True,
            before_render=lambda _: self._update(),
            after_render=lambda _: self._measure(),
        )

    @property
    def columns(self) -> int:
        return self.application.output.get_size().columns

    @property
    def text(self) -> str:
        """What is typed."""
        return self._buffer.text

    def set_text(self, text: str) -> None:
        self._buffer.document = Document(text)

    def run(self, begin: Callable[[], None]) -> None:
        self.application.run(pre_run=begin)

    def leave(self, error: BaseException | None = None) -> None:
        """End `run`, which raises the error if there is one."""
        if self.application.is_done or not self.application.is_running:
            return
        if error is None:
            self.application.exit()
        else:
            self.application.exit(exception=error)

    def refresh(self) -> None:
        self.application.invalidate()

    def print_above(self, lines: Sequence[str]) -> None:
        self.application.print_above(lines)

    def _completes(self) -> bool:
        return completes(self._buffer.document.text_before_cursor)

    def _update(self) -> None:
        """Before every frame: what the talker has to show now, in the room there is."""
        self._started = perf_counter()
        size = self.application.output.get_size()
        typed = sum(cell_len(line) // size.columns + 1 for line in self._buffer.document.lines)
        menu = MENU_ROWS if self._buffer.complete_state else 0
        status = self._talker.status(is_unfolded=self._is_unfolded)
        room = size.rows - min(typed, _INPUT_ROWS) - menu - len(status) - 2
        rows = self._talker.rows(room, is_unfolded=self._is_unfolded)
        self._rows = rows + [f"\x1b[90m{line}\x1b[0m" for line in status]

    def _measure(self) -> None:
        self.frame_s = perf_counter() - self._started

    def _layout(self) -> Layout:
        is_new = Condition(lambda: not self._buffer.text and self._talker.is_idle)
        hint = AfterInput("ask something", style="class:hint")
        field = Window(
            BufferControl(
                self._buffer,
                input_processors=[ConditionalProcessor(hint, is_new)],
                search_buffer_control=self._search.control,
            ),
            height=Dimension(min=1, max=_INPUT_ROWS),
            wrap_lines=True,
            dont_extend_height=True,
            get_line_prefix=self._prefix,
        )
        toolbar = FormattedTextControl(self._toolbar_text)
        rows: list[AnyContainer] = [
            as_high_as(FormattedTextControl(self._live_text), lambda: len(self._rows)),
            field,
            self._search,
            make_menu(),
            as_high_as(toolbar, lambda: 1),
        ]
        return Layout(HSplit(rows, align=VerticalAlign.TOP), focused_element=field)

    def _live_text(self) -> StyleAndTextTuples:
        """A row that changes is cleared and written anew as a whole, which a class without style
        makes happen: terminals disagree on the width of emoji, and tmux wraps cleared cells too."""
        text: StyleAndTextTuples = []
        for at, row in enumerate(self._rows):
            if self._shown.get(at) != row:
                self._shown[at] = row
                self._parity[at] = not self._parity.get(at)
            text.append(("[ZeroWidthEscape]", "\x1b[2K"))
            text += to_formatted_text(ANSI(row + "\n"), style=f"class:row{self._parity[at]:d}")
        return text

    def _prefix(self, line_number: int, wrap_count: int) -> StyleAndTextTuples:
        label = self._talker.label
        is_first = line_number == 0 and wrap_count == 0
        return [("class:label", label if is_first else " " * cell_len(label))]

    def _toolbar_text(self) -> StyleAndTextTuples:
        return [("class:toolbar", self._toolbar.text(self._talker.answer, self.columns - 1))]

    def _keys(self) -> KeyBindings:
        keys = KeyBindings()
        bind = partial(keys.add, filter=~is_searching)
        bind("enter")(self._enter)
        bind("escape", "enter")(lambda event: event.current_buffer.insert_text("\n"))
        bind("c-j")(lambda event: event.current_buffer.insert_text("\n"))
        bind("c-c")(lambda _: self._interrupt())
        keys.add(Keys.SIGINT)(lambda _: self._interrupt())
        bind("c-t")(lambda _: self._toggle())
        bind("c-z")(lambda event: event.app.suspend_to_background())
        is_empty = Condition(lambda: not self._buffer.text)
        keys.add("c-d", filter=~is_searching & is_empty)(lambda _: self._talker.leave())
        return keys

    def _enter(self, event: KeyPressEvent) -> None:
        state = self._buffer.complete_state
        if state is not None and state.current_completion is not None:
            self._buffer.complete_state = None  # the completion is taken, not the line
            return
        text = self._buffer.text
        if text.strip():
            self._buffer.append_to_history()
        self._buffer.reset()
        self._talker.entered(text)

    def _interrupt(self) -> None:
        had_text = bool(self._buffer.text)
        if had_text and self._talker.answer is None:
            self._buffer.reset()
        self._talker.interrupted(had_text=had_text)

    def _toggle(self) -> None:
        self._is_unfolded = not self._is_unfolded
        self.refresh()
