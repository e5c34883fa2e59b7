"""Where sentences for the user go: to stderr, or to the screen while there is one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from edgekit.chat.plain import tell


class Notices:
    """Give it to `Chat` as `notify`."""

    def __init__(self) -> None:
        self._show: Callable[[str], None] = tell

    def __call__(self, text: str) -> None:
        self._show(text)

    @contextmanager
    def shown_by(self, show: Callable[[str], None]) -> Iterator[None]:
        """Meanwhile they go there."""
        before, self._show = self._show, show
        try:
            yield
        finally:
            self._show = before
