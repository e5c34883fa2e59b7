from __future__ import annotations

import io
import subprocess
import sys

import pytest
from prompt_toolkit.data_structures import Point, Size
from prompt_toolkit.layout.screen import Char, Screen

from edgekit.chat.terminal import SteadyOutput, added_rows, wraps_again


def screen(*rows: str) -> Screen:
    made = Screen()
    for y, row in enumerate(rows):
        x = 0
        for char in row:
            made.data_buffer[y][x] = Char(char)
            x += made.data_buffer[y][x].width
    return made


def test_rows_above_the_cursor_that_wrap_are_counted() -> None:
    # 25 cells make 3 rows of 10, 10 cells make 1, and 6 wide characters 2; the cursor's own: 1
    shown = screen("x" * 25, "x" * 10 + "  ", "日" * 6, "> typed words")
    assert added_rows(shown, Point(x=12, y=3), 10) == 2 + 0 + 1 + 1
    assert added_rows(shown, Point(x=12, y=3), 30) == 0


@pytest.mark.parametrize(
    ("environment", "wraps"),
    [
        ({"TERM": "xterm-256color"}, True),
        ({"TERM": "xterm", "XTERM_VERSION": "XTerm(390)"}, False),
        ({"TERM": "tmux", "TMUX": "/tmp/x", "XTERM_VERSION": "XTerm(390)"}, True),
        ({"TERM": "screen", "STY": "1.pts"}, False),
        ({"TERM": "rxvt-unicode"}, False),
    ],
)
def test_few_terminals_do_not_wrap_again(environment: dict[str, str], *, wraps: bool) -> None:
    assert wraps_again(environment) == wraps


def test_what_is_held_is_written_at_once() -> None:
    written: list[str] = []

    class Stream(io.StringIO):
        def write(self, text: str) -> int:
            written.append(text)
            return len(text)

    output = SteadyOutput(Stream(), lambda: Size(rows=24, columns=80), term="xterm")
    with output.held():
        output.write_raw("a")
        output.flush()
        output.write_raw("b")
        output.flush()
    assert written == ["ab"]


def test_only_the_screen_loads_its_libraries() -> None:
    code = (
        "import sys, edgekit.chat.plain, edgekit.chat.notices; "
        "sys.exit(sorted({'prompt_toolkit', 'rich', 'pygments'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
