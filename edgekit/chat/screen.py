"""`chat` on a terminal: an input line that stays while the answer is made above it.

The main thread shows and reads; one worker thread makes the answer. Finished lines go to the
terminal's own scrollback, so that it keeps its search, selection and size.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from contextlib import suppress

from prompt_toolkit.history import History
from prompt_toolkit.input import Input
from prompt_toolkit.output import Output

from edgekit.chat.clean import clean_line, clean_text
from edgekit.chat.contract import Answer, Chat
from edgekit.chat.dialogue import Dialogue
from edgekit.chat.follow import Follower
from edgekit.chat.history import history_path, open_history
from edgekit.chat.layout import Panel
from edgekit.chat.notices import Notices
from edgekit.chat.render import Renderer
from edgekit.chat.terminal import open_output
from edgekit.chat.toolbar import Toolbar
from edgekit.errors import EdgekitError


def run_screen(
    chat: Chat,
    *,
    show_stats: bool,
    notices: Notices | None = None,
    history: History | None = None,
    source: Input | None = None,
    output: Output | None = None,
) -> None:
    """Talk until the user leaves. `notices` are shown among the answers meanwhile.

    Raises what an answer raised, if it is no `EdgekitError`, once the terminal is as it was.
    """
    screen = _Screen(
        chat,
        show_stats=show_stats,
        history=history or open_history(history_path()),
        source=source,
        output=output or open_output(),
    )
    notices = notices or Notices()
    with notices.shown_by(screen.say):
        screen.run()


class _Screen(Dialogue):
    keys = "Ctrl-T unfolds the thinking, Alt-Enter begins a line, Ctrl-R searches what was typed."

    def __init__(
        self, chat: Chat, *, show_stats: bool, history: History, source: Input | None,
        output: Output,
    ) -> None:  # fmt: skip
        super().__init__(chat, show_stats=show_stats)
        self._toolbar = Toolbar(chat)
        self._panel = Panel(self, self._toolbar, history=history, source=source, output=output)
        self._renderer = Renderer(self._panel.columns)
        self._follower: Follower | None = None
        self._queue: list[str] = []
        self._is_edit = False
        self._num_interrupts = 0

    def run(self) -> None:
        """Until the user leaves; the worker has ended then."""
        self._toolbar.update()
        try:
            with suppress(EOFError):  # the terminal was closed
                self._panel.run(self._begin_soon)
        finally:
            follower, _ = self._follower, self._end()
        if follower is not None and follower.error is not None:
            raise follower.error

    # what the commands ask of a front end

    def say(self, text: str) -> None:
        self._print_plain(text, "dim")

    def echo(self, text: str) -> None:
        marked = "\n".join(
            f"{'> ' if number == 0 else '  '}{line}" for number, line in enumerate(text.split("\n"))
        )
        self._print_plain(marked, "bold")

    def show(self, answer: Answer) -> None:
        self._resize()
        self._follower = Follower(answer, self._renderer, self._panel)
        self._panel.application.create_background_task(self._follow(self._follower))

    def put_back(self, text: str, *, is_edit: bool = False) -> None:
        self._panel.set_text(text)
        self._is_edit = is_edit

    def leave(self) -> None:
        if self.answer is not None:
            self.answer.stop()
        self._panel.leave()

    # keys

    def entered(self, text: str) -> None:
        """Enter: the text is sent, or waits for the answer to end."""
        self._num_interrupts = 0
        if self.answer is not None and not text.startswith("/"):
            if text.strip():
                self._queue.append(text)
            return
        self._guarded(lambda: self._send(text), text)

    def typed(self) -> None:
        """Any change of the input: a Ctrl-C before it is forgotten."""
        self._num_interrupts = 0

    def interrupted(self, *, had_text: bool) -> None:
        """Ctrl-C; where no answer is made, it has taken away what was typed."""
        if self.answer is not None:
            self._stop_answer()
        elif had_text or self._is_edit:
            self._is_edit = False
        elif self.calls:
            self._guarded(self.drop_calls)
            self.say("the calls stay without results")
        else:
            self._num_interrupts += 1
            if self._num_interrupts > 1:
                self.leave()
            else:
                self.say("Ctrl-C again leaves, as Ctrl-D does")

    # what the panel shows

    @property
    def label(self) -> str:
        """What stands before the input."""
        if self.answer is None and self.calls:
            return f"{clean_line(self.calls[0].name)[:30]} = "
        return "edit> " if self._is_edit else "> "

    @property
    def is_idle(self) -> bool:
        return self.answer is None and not self.calls

    def rows(self, max_rows: int, *, is_unfolded: bool) -> list[str]:
        """Rows of the answer that are not printed yet."""
        self._resize()
        if self._follower is None:
            return []
        rows = self._follower.view.rows(max_rows - 1, is_unfolded=is_unfolded)
        return [*rows, ""] if rows else []

    def status(self, *, is_unfolded: bool) -> list[str]:
        """What goes on, and what waits for it to end."""
        view = self._follower.view if self._follower else None
        text = view.status(is_unfolded=is_unfolded) if view else ""
        return [text] * bool(text) + [f"  next: {clean_line(line)}" for line in self._queue]

    # inside

    def _begin_soon(self) -> None:
        """Once the terminal gives every key at once: what is typed before that is echoed."""
        asyncio.get_running_loop().call_soon(self._guarded, self._begin)

    def _begin(self) -> None:
        self.say(f"{self.chat.model_name}: /help lists the commands, Ctrl-D leaves")
        with suppress(NotImplementedError, RuntimeError, ValueError):  # not in the main thread
            for number in (signal.SIGTERM, signal.SIGHUP):
                asyncio.get_running_loop().add_signal_handler(
                    number, self._panel.leave, SystemExit(128 + number)
                )

    def _send(self, text: str) -> None:
        if text.startswith("/"):
            self._is_edit = False
            self._print_plain(f"> {text}", "dim", has_gap=False)
            self.take(text)
        elif self._is_edit and text.strip():
            self.ask(clean_text(text).strip(), is_edit=True)
            self._is_edit = False
        else:
            self.take(text)
        if self.answer is None:  # the session has one user at a time
            self._toolbar.update()

    async def _follow(self, follower: Follower) -> None:
        """Show an answer while it is made, then what was typed meanwhile."""
        try:
            await follower.follow()
            if follower.view.is_stopping:
                self.say("stopped")
            answer = self._end()
            if follower.error is not None:
                self._report(follower.error)
            if answer is not None:
                self.ended(answer)
            self._toolbar.update()
        except Exception as exc:
            self._report(exc)
        self._num_interrupts = 0
        self._panel.refresh()
        if self._queue and self.is_idle:
            self.entered(self._queue.pop(0))

    def _end(self) -> Answer | None:
        """The answer that was being made, once it has ended; kept as far as it came."""
        follower, answer = self._follower, self.answer
        if follower is None or answer is None:
            return None
        if not self._panel.application.is_running:
            follower.end()
        self._follower = self.answer = None
        self.chat.keep(answer)
        return answer

    def _stop_answer(self) -> None:
        if self._follower is None:
            return
        self._num_interrupts += 1
        if self._follower.view.is_stopping and self._num_interrupts > 2:
            self.leave()
        self._follower.stop()
        if self._queue:
            self._panel.set_text("\n".join([*self._queue, *filter(None, [self._panel.text])]))
            self._queue = []
        self._panel.refresh()

    def _guarded(self, act: Callable[[], None], text: str = "") -> None:
        try:
            act()
        except Exception as exc:
            self._report(exc, text)

    def _report(self, error: BaseException, text: str = "") -> None:
        """An error that edgekit can explain is a line, and `text` can be sent again."""
        if not isinstance(error, EdgekitError):
            self._panel.leave(error)
            return
        self._print_plain(f"error: {error}", "red", has_gap=not error.hint)
        if error.hint:
            self._print_plain(f"hint: {error.hint}", "dim")
        if text and not text.startswith("/") and not self._panel.text:
            self._panel.set_text(text)

    def _print_plain(self, text: str, style: str, *, has_gap: bool = True) -> None:
        self._resize()
        self._panel.print_above([*self._renderer.plain(clean_text(text), style), *[""] * has_gap])

    def _resize(self) -> None:
        self.width = self._renderer.width = self._panel.columns
