"""The one thread that makes an answer while another one shows it."""

from __future__ import annotations

from queue import Empty, SimpleQueue
from threading import Thread

from edgekit.chat.contract import Answer
from edgekit.runtime.piece import Piece


class Worker:
    """Iterates an answer. Join it before the session, or the chat, is used again."""

    def __init__(self, answer: Answer) -> None:
        self.error: BaseException | None = None
        """What ended the answer early; read it after `join`."""
        self._answer = answer
        self._pieces: SimpleQueue[Piece] = SimpleQueue()
        self._thread = Thread(target=self._run, name="edgekit-answer")
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """False means that no more pieces come, and `take` gives the last ones."""
        return self._thread.is_alive()

    def take(self) -> list[Piece]:
        """The pieces that came since the last call."""
        pieces = []
        try:
            while True:
                pieces.append(self._pieces.get_nowait())
        except Empty:
            return pieces

    def join(self) -> None:
        """Wait for the end; call `Answer.stop` before where it shall come soon."""
        self._thread.join()

    def _run(self) -> None:
        try:
            for piece in self._answer:
                self._pieces.put(piece)
        except BaseException as exc:
            self.error = exc
