"""An answer that a worker makes while the main thread prints it."""

from __future__ import annotations

import asyncio
from time import perf_counter

from edgekit.chat.contract import Answer
from edgekit.chat.layout import Panel
from edgekit.chat.render import Renderer
from edgekit.chat.view import AnswerView
from edgekit.chat.worker import Worker

_FRAME_S = 0.06
_SHARE = 10
"""A frame may take this fraction of the time until the next one: the model needs the cores."""


class Follower:
    """Begins to make the answer at once; `follow` it, or `end` it."""

    def __init__(self, answer: Answer, renderer: Renderer, panel: Panel) -> None:
        self.view = AnswerView(answer, renderer)
        self._answer = answer
        self._panel = panel
        self._worker = Worker(answer)

    @property
    def error(self) -> BaseException | None:
        """What ended the answer early; to be read when it has ended."""
        return self._worker.error

    async def follow(self) -> None:
        """Print what is finished, until all is."""
        is_over = False
        while not is_over:
            started = perf_counter()
            is_over = not self._worker.is_alive
            self._panel.print_above(self.view.take(self._worker.take()))
            self._panel.refresh()
            took = max(perf_counter() - started, self._panel.frame_s)
            await asyncio.sleep(0 if is_over else max(_FRAME_S, took * _SHARE))
        self.end()

    def stop(self) -> None:
        """End the answer at the next token."""
        self.view.is_stopping = True
        self._answer.stop()

    def end(self) -> None:
        """Wait for the worker, and print what is left."""
        self._answer.stop()
        self._worker.join()
        lines = self.view.take(self._worker.take()) + self.view.finish()
        self._panel.print_above([*lines, *[""] * self.view.has_printed])
