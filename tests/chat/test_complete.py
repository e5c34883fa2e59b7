from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.chat.complete import complete, completes


def texts(before: str) -> list[str]:
    """What the line would be with each candidate."""
    return [before[: len(before) - found.num_replaced] + found.text for found in complete(before)]


@pytest.fixture(autouse=True)
def in_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").touch()
    (tmp_path / "my file.md").touch()
    (tmp_path / "with (odd)").mkdir()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("/th", ["/think", "/thinking"]),
        ("/think ", ["/think on", "/think off"]),
        ("/think of", ["/think off"]),
        ("/load no", ["/load notes.txt"]),
        ("/load 'my", ["/load 'my file.md"]),
        ("/nope ", []),
        ("see @no", ["see @notes.txt"]),
        ("see @my", ['see @"my file.md"']),
        ('see @"my', ['see @"my file.md']),
        ("see @w", ['see @"with (odd)/']),
        ("me@no", []),
        ("notes", []),
        ("", []),
    ],
)
def test_commands_arguments_and_paths_are_completed(before: str, after: list[str]) -> None:
    assert texts(before) == after
    if after:
        assert completes(before)


def test_nothing_is_looked_up_while_words_are_typed() -> None:
    assert not completes("hello")
