"""Answers without a dialogue: what goes to stdout, and what to stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from edgekit.chat.notices import Notices
from edgekit.chat.plain import answer_in_events, answer_once, wants_screen
from edgekit.errors import BackendError
from edgekit.runtime.piece import Piece, ToolCall

if TYPE_CHECKING:
    from tests.chat.conftest import FakeChat

MakeChat = Callable[..., "FakeChat"]
Said = pytest.CaptureFixture[str]
CALL = ToolCall(id="1", name="f", arguments={"x": "é"})
PIECES = [
    Piece(kind="tag", text="<think>"),
    Piece(kind="thinking", text="hm"),
    Piece(kind="tag", text="</think>"),
    Piece(kind="answer", text="yes\x1b[2J"),
    Piece(kind="retype"),
    Piece(kind="call", text="<call>", call=CALL),
]


def events(said: Said) -> list[dict[str, Any]]:
    return [json.loads(line) for line in said.readouterr().out.splitlines()]


def test_each_piece_is_a_line_of_json(make_chat: MakeChat, capsys: Said) -> None:
    answer_in_events(make_chat(PIECES), "a", show_stats=False)
    *pieces, done = events(capsys)
    assert pieces == [
        {"type": "thinking", "text": "hm"},
        {"type": "answer", "text": "yes\x1b[2J"},
        {"type": "retype"},
        {"type": "tool_call", "id": "1", "name": "f", "arguments": {"x": "é"}, "problem": None},
    ]
    assert (done["type"], done["engine"]) == ("done", "/store/fake")
    assert done["finish_reason"] == "stop"


@pytest.mark.parametrize("error", [KeyboardInterrupt, BackendError])
def test_an_answer_that_broke_off_is_done_without_a_reason(
    make_chat: MakeChat, capsys: Said, error: type[BaseException]
) -> None:
    chat = make_chat([Piece(kind="answer", text="so"), error("x")])
    with pytest.raises(error):
        answer_in_events(chat, "a", show_stats=False)
    assert [event["type"] for event in events(capsys)] == ["answer", "done"]


def test_measures_are_told_on_stderr(make_chat: MakeChat, capsys: Said) -> None:
    answer_in_events(make_chat(), "a", show_stats=True)
    assert "TTFT" in capsys.readouterr().err


def test_thinking_goes_to_stderr_and_calls_to_stdout(make_chat: MakeChat, capsys: Said) -> None:
    answer_once(make_chat(PIECES), "a", as_json=False, show_stats=False)
    said = capsys.readouterr()
    assert said.out == 'yes\x1b[2Jf({"x": "é"})\n'
    assert said.err.startswith("hm\n")


def test_a_terminal_gets_nothing_that_steers_it(
    make_chat: MakeChat, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    for stream in (sys.stdout, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True)
    answer_once(make_chat(PIECES), "a", as_json=False, show_stats=False)
    said = capsys.readouterr()
    assert said.out.startswith("yes[2J")
    assert said.err.startswith("\x1b[2mhm\x1b[0m\n")


def test_the_screen_needs_a_terminal_that_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    assert not wants_screen(is_plain=False)  # pytest's streams are none
    for stream in (sys.stdin, sys.stdout):
        monkeypatch.setattr(stream, "isatty", lambda: True)
    assert wants_screen(is_plain=False)
    assert not wants_screen(is_plain=True)
    monkeypatch.setenv("TERM", "dumb")
    assert not wants_screen(is_plain=False)


def test_notices_go_where_they_can_be_seen(capsys: Said) -> None:
    notices, shown = Notices(), list[str]()
    notices("one")
    with notices.shown_by(shown.append):
        notices("two")
    notices("three")
    assert (shown, capsys.readouterr().err) == (["two"], "one\nthree\n")
