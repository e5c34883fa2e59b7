"""`chat` on a terminal: an input line that stays while the answer is made above it.

The main thread shows and reads; one worker thread makes the answer. Finished lines go to the
terminal's own scrollback, so that it keeps its search, selection and size.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from contextlib import suppress
from time import perf_counter

from prompt_toolkit.history import History
from prompt_toolkit.input import Input
from prompt_toolkit.output import Output

from edgekit.chat.clean import clean_text
from edgekit.chat.contract import Answer, Chat
from edgekit.chat.dialogue import Dialogue
from edgekit.chat.history import history_path, open_history
from edgekit.chat.layout import Panel
from edgekit.chat.notices import Notices
from edgekit.chat.render import Renderer
from edgekit.chat.terminal import open_output
from edgekit.chat.toolbar import Toolbar
from edgekit.chat.view import AnswerView
from edgekit.chat.worker import Worker
from edgekit.errors import EdgekitError

_FRAME_S = 0.06
_SHARE = 10
"""A frame may take this fraction of the time until the next one: the model needs the cores."""


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
    def __init__(
        self, chat: Chat, *, show_stats: bool, history: History, source: Input | None,
        output: Output,
    ) -> None:  # fmt: skip
        super().__init__(chat, show_stats=show_stats)
        self._toolbar = Toolbar(chat)
        self._panel = Panel(self, self._toolbar, history=history, source=source, output=output)
        self._renderer = Renderer(self._panel.columns)
        self._worker: Worker | None = None
        self._view: AnswerView | None = None
        self._queue: list[str] = []
        self._is_edit = False
        self._num_interrupts = 0

    def run(self) -> None:
        """Until the user leaves; the worker has ended then."""
        try:
            with suppress(EOFError):  # the terminal was closed
                self._panel.run(self._begin)
        finally:
            self._end_worker()

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
        self._view = AnswerView(answer, self._renderer)
        self._worker = Worker(answer)
        self._panel.application.create_background_task(self._follow(self._view, self._worker))

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
            return f"{self.calls[0].name} = "
        return "edit> " if self._is_edit else "> "

    @property
    def is_idle(self) -> bool:
        return self.answer is None and not self.calls

    def rows(self, max_rows: int, *, is_unfolded: bool) -> list[str]:
        """Rows of the answer that are not printed yet."""
        self._resize()
        if self._view is None:
            return []
        rows = self._view.rows(max_rows - 1, is_unfolded=is_unfolded)
        return [*rows, ""] if rows else []

    def status(self, *, is_unfolded: bool) -> list[str]:
        """What goes on, and what waits for it to end."""
        text = self._view.status(is_unfolded=is_unfolded) if self._view else ""
        return [text] * bool(text) + [f"  next: {line}" for line in self._queue]

    # inside

    def _begin(self) -> None:
        self._toolbar.update()
        self.say(f"{self.chat.model_name}: /help lists the commands, Ctrl-D leaves")
        with suppress(NotImplementedError, RuntimeError, ValueError):  # not in the main thread
            for number in (signal.SIGTERM, signal.SIGHUP):
                asyncio.get_running_loop().add_signal_handler(
                    number, self._panel.leave, SystemExit(128 + number)
                )

    def _send(self, text: str) -> None:
        is_edit, self._is_edit = self._is_edit, False
        if text.startswith("/"):
            self._print_plain(f"> {text}", "dim", has_gap=False)
        if is_edit and text.strip() and not text.startswith("/"):
            self.ask(text.strip(), is_edit=True)
        else:
            self.take(text)
        if self.answer is None:  # the session has one user at a time
            self._toolbar.update()

    async def _follow(self, view: AnswerView, worker: Worker) -> None:
        """Show an answer while it is made."""
        try:
            is_over = False
            while not is_over:
                started = perf_counter()
                is_over = not worker.is_alive
                self._resize()
                self._panel.print_above(view.take(worker.take()))
                self._panel.refresh()
                took = max(perf_counter() - started, self._panel.frame_s)
                await asyncio.sleep(0 if is_over else max(_FRAME_S, took * _SHARE))
            self._panel.print_above([*view.finish(), ""])
            self._finish(worker)
        except Exception as exc:
            self._panel.leave(exc)

    def _finish(self, worker: Worker) -> None:
        if self._view is not None and self._view.is_stopping:
            self.say("stopped")
        answer = self.answer
        self._guarded(self._end_worker)
        if worker.error is not None:
            error = worker.error
            self._guarded(lambda: _raise(error))
        if answer is not None:
            self.ended(answer)
        self._num_interrupts = 0
        self._toolbar.update()
        self._panel.refresh()
        if self._queue and self.is_idle:
            self.entered(self._queue.pop(0))

    def _end_worker(self) -> None:
        """Wait for the worker; the answer is kept as far as it came."""
        worker, answer = self._worker, self.answer
        self._worker = self._view = None
        if worker is None or answer is None:
            return
        if worker.is_alive:
            answer.stop()
        worker.join()
        self.answer = None
        self.chat.keep(answer)

    def _stop_answer(self) -> None:
        if self.answer is None or self._view is None:
            return
        self._num_interrupts += 1
        if self._view.is_stopping and self._num_interrupts > 2:
            self.leave()
        self.answer.stop()
        self._view.is_stopping = True
        if self._queue:
            self._panel.set_text("\n".join([*self._queue, *filter(None, [self._panel.text])]))
            self._queue = []
        self._panel.refresh()

    def _guarded(self, act: Callable[[], None], text: str = "") -> None:
        """Act; an error that edgekit can explain is a line, `text` can be sent again."""
        try:
            act()
        except EdgekitError as exc:
            self._print_plain(f"error: {exc}", "red", has_gap=not exc.hint)
            if exc.hint:
                self._print_plain(f"hint: {exc.hint}", "dim")
            if text and not text.startswith("/") and not self._panel.text:
                self._panel.set_text(text)
        except Exception as exc:
            self._panel.leave(exc)

    def _print_plain(self, text: str, style: str, *, has_gap: bool = True) -> None:
        self._resize()
        self._panel.print_above([*self._renderer.plain(clean_text(text), style), *[""] * has_gap])

    def _resize(self) -> None:
        self.width = self._renderer.width = self._panel.columns


def _raise(error: BaseException) -> None:
    raise error
