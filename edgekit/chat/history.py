"""What was typed before, in a file that only the user can read."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from prompt_toolkit.history import FileHistory, History, InMemoryHistory

_LIMIT_BYTES = 1024 * 1024


def history_path() -> Path:
    """Where the history is kept."""
    return Path.home() / ".local" / "state" / "edgekit" / "history"


def open_history(path: Path) -> History:
    """The history in a file; one that lasts until the end where no file can be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        with path.open("rb+") as file:
            if (size := path.stat().st_size) > _LIMIT_BYTES:
                file.seek(size - _LIMIT_BYTES // 2)
                kept = file.read().partition(b"\n\n")[2]  # entries begin with an empty line
                file.seek(0)
                file.write(b"\n" + kept)
                file.truncate()
    except OSError:
        return InMemoryHistory()
    return _FileHistory(path)


class _FileHistory(FileHistory):
    def load_history_strings(self) -> Iterable[str]:
        try:
            return list(super().load_history_strings())
        except OSError:
            return []

    def store_string(self, string: str) -> None:
        try:
            super().store_string(string)
        except OSError:  # a full disk is no reason to stop talking
            return
