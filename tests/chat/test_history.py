from __future__ import annotations

import stat
from pathlib import Path

import pytest
from prompt_toolkit.history import InMemoryHistory

from edgekit.chat.history import history_path, open_history


def test_the_history_is_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    path = history_path()
    open_history(path).append_string("hello\nworld")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path == tmp_path / ".local/state/edgekit/history"
    assert list(open_history(path).load_history_strings()) == ["hello\nworld"]


def test_a_place_that_cannot_be_written_is_no_reason_to_fail(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert isinstance(open_history(tmp_path / "file" / "history"), InMemoryHistory)


def test_a_history_that_cannot_be_written_any_more_goes_on(tmp_path: Path) -> None:
    history = open_history(tmp_path / "deep" / "history")
    (tmp_path / "deep" / "history").unlink()
    (tmp_path / "deep").rmdir()
    history.append_string("hello")
    assert history.get_strings() == ["hello"]


def test_an_old_history_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "history"
    path.write_bytes(b"".join(b"\n# now\n+entry %d %s\n" % (n, b"x" * 500) for n in range(3000)))
    kept = list(open_history(path).load_history_strings())
    assert path.stat().st_size < 600_000
    assert kept[0].startswith("entry 2999")
    assert all(text.startswith("entry") for text in kept)
