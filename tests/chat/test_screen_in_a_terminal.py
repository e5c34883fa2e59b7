"""The screen from end to end: a process of its own on a pseudo-terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pyte
import pytest

PROGRAM = Path(__file__).with_name("screen_program.py")


class Terminal:
    """A pseudo-terminal, an emulator that shows it, and the program on it."""

    def __init__(self, home: Path) -> None:
        self.master, self.slave = pty.openpty()
        self._screen = pyte.Screen(80, 24)
        self._stream = pyte.ByteStream(self._screen)
        self.resize(80)
        self.process = subprocess.Popen(
            [sys.executable, str(PROGRAM), "think", "talk"],
            stdin=self.slave, stdout=self.slave, stderr=self.slave, start_new_session=True,
            # pyte does not wrap old rows to a new width, as xterm does not
            env={**os.environ, "HOME": str(home), "TERM": "xterm", "XTERM_VERSION": "1", "TMUX": "",
                 "PYTHONPATH": str(PROGRAM.parents[2])},
        )  # fmt: skip

    def resize(self, columns: int) -> None:
        self._screen.resize(24, columns)
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def see(self, text: str) -> None:
        end = time.monotonic() + 20
        while text not in self.shown:
            assert time.monotonic() < end, f"never came: {text!r}\n{self.shown}"
            if select.select([self.master], [], [], 0.1)[0]:
                self._stream.feed(os.read(self.master, 65536))

    @property
    def shown(self) -> str:
        return "\n".join(line.rstrip() for line in self._screen.display).rstrip()

    @property
    def is_cooked(self) -> bool:
        flags = termios.tcgetattr(self.slave)[3]
        return bool(flags & termios.ICANON and flags & termios.ECHO and flags & termios.ISIG)


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    opened = Terminal(tmp_path)
    yield opened
    opened.process.kill()
    opened.process.wait()
    os.close(opened.master)
    os.close(opened.slave)


def test_a_dialogue_with_a_resize_and_an_interrupt(terminal: Terminal, tmp_path: Path) -> None:
    terminal.see("ask something")
    assert not terminal.is_cooked
    terminal.type("hello\r")
    terminal.see("▸ thinking…")
    terminal.type("\x14")
    terminal.see("so it is. so it is.")
    terminal.resize(50)
    terminal.type("x")
    terminal.see("> x\nfake-8b")
    assert terminal.shown.count("thinking…") == 1
    terminal.type("\x15/answer\r")
    terminal.see("yes, and more\n\n> ask something")
    assert "▸ thought for" in terminal.shown
    terminal.type("again\r")
    terminal.see("on and on")
    terminal.type("\x03")
    terminal.see("stopped\n\n> ask something")
    terminal.type("\x04")
    terminal.see("left")
    assert terminal.process.wait(10) == 0
    assert "fake-8b ·" not in terminal.shown
    assert terminal.is_cooked
    assert "+again" in (tmp_path / ".local/state/edgekit/history").read_text(encoding="utf-8")


def test_a_termination_leaves_the_terminal_as_it_was(terminal: Terminal) -> None:
    terminal.see("ask something")
    terminal.type("hello\r")
    terminal.see("▸ thinking…")
    terminal.process.send_signal(signal.SIGTERM)
    assert terminal.process.wait(10) == 128 + signal.SIGTERM
    assert terminal.is_cooked
