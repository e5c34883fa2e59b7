"""The screen where the terminal wraps old rows to a new width, as most do."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("screen_program.py")

pytestmark = pytest.mark.skipif(shutil.which("tmux") is None, reason="needs tmux")


class Tmux:
    """A server of its own with one window."""

    def __init__(self, directory: Path) -> None:
        self._socket = directory / "tmux"
        program = f"HOME={directory} PYTHONPATH={PROGRAM.parents[2]} {sys.executable} {PROGRAM}"
        self("new-session", "-d", "-x", "80", "-y", "24", f"{program} count; sleep 60")

    def __call__(self, *arguments: str) -> str:
        command = ["tmux", "-S", str(self._socket), "-f", "/dev/null", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    @property
    def shown(self) -> str:
        """What stands there and what has scrolled away."""
        return self("capture-pane", "-p", "-J", "-S", "-")

    def see(self, text: str) -> None:
        end = time.monotonic() + 20
        while text not in self.shown:
            assert time.monotonic() < end, self.shown
            time.sleep(0.05)


@pytest.fixture
def tmux(tmp_path: Path) -> Iterator[Tmux]:
    made = Tmux(tmp_path)
    yield made
    made("kill-server")


def test_resizes_in_the_middle_of_an_answer_neither_lose_nor_double_a_word(tmux: Tmux) -> None:
    tmux.see("ask something")
    tmux("send-keys", "hello", "Enter")
    for last, columns in (("w99", 50), ("w199", 70), ("w299", 40), ("w399", 100)):
        tmux.see(last)
        tmux("resize-window", "-x", str(columns), "-y", "24")
    tmux.see("ask something")
    shown = tmux.shown
    assert re.findall(r"\bw\d+\b", shown) == [f"w{number}" for number in range(400)]
    for text in ("> hello", "Words", "\nend", "ask something", "fake-8b ·"):
        assert shown.count(text) == 1, text
