from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from edgekit.chat.render import Renderer
from edgekit.chat.view import AnswerView, ThinkingTail
from edgekit.runtime.piece import Piece, ToolCall

if TYPE_CHECKING:
    from tests.chat.conftest import FakeChat

MakeChat = Callable[..., "FakeChat"]
_SGR = re.compile(r"\x1b\[[0-9;]*m")


def thinking(text: str) -> Piece:
    return Piece(kind="thinking", text=text)


def answer(text: str) -> Piece:
    return Piece(kind="answer", text=text)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def open_view(chat: FakeChat, width: int = 60) -> tuple[AnswerView, Any, Clock]:
    clock, made = Clock(), chat.ask("hello")
    return AnswerView(made, Renderer(width), clock=clock), made, clock


def plain(lines: list[str]) -> list[str]:
    return [_SGR.sub("", line) for line in lines]


def test_the_prompt_is_read_first(make_chat: MakeChat) -> None:
    view, _, clock = open_view(make_chat())
    clock.now = 1.5
    assert view.status(is_unfolded=False) == "▸ reading 5 tokens… 1.5 s"
    assert view.rows(5, is_unfolded=False) == []


def test_thinking_is_one_line_that_unfolds(make_chat: MakeChat) -> None:
    view, made, clock = open_view(make_chat())
    clock.now = 1.0
    assert view.take([thinking("I think\nof "), thinking("it")]) == []
    made.thinking_tokens = 143
    clock.now = 4.2
    assert view.status(is_unfolded=False).startswith("▸ thinking… 143 tokens, 3.2 s")
    assert view.rows(5, is_unfolded=False) == []
    assert view.status(is_unfolded=True).startswith("▾ thinking…")
    assert view.rows(5, is_unfolded=True) == ["\x1b[2mI think\x1b[0m", "\x1b[2mof it\x1b[0m"]
    assert plain(view.rows(1, is_unfolded=True)) == ["of it"]


def test_one_line_stays_of_the_thinking(make_chat: MakeChat) -> None:
    view, made, clock = open_view(make_chat())
    view.take([thinking("hm")])
    made.thinking_tokens, clock.now = 143, 3.2
    lines = view.take([Piece(kind="tag", text="</think>"), answer("Yes.\n\n")])
    assert plain(lines) == [
        "▸ thought for 143 tokens, 3.2 s (/thinking shows it)", "", "Yes.",
    ]  # fmt: skip
    assert view.status(is_unfolded=False) == ""


def test_thinking_that_was_stopped_is_folded_too(make_chat: MakeChat) -> None:
    view, _, _ = open_view(make_chat())
    view.take([thinking("hm")])
    assert plain(view.finish()) == ["▸ thought for 0 tokens, 0.0 s (/thinking shows it)"]


def test_an_answer_that_was_thinking_after_all_is_told(make_chat: MakeChat) -> None:
    view, _, _ = open_view(make_chat())
    lines = view.take([answer("Hm."), Piece(kind="retype"), answer("Yes.")]) + view.finish()
    assert plain(lines) == [
        "Hm.", "", "▴ what stands above was thinking; the answer follows", "", "Yes.",
    ]  # fmt: skip


def test_tool_calls_are_lines(make_chat: MakeChat) -> None:
    view, _, _ = open_view(make_chat())
    calls = [
        ToolCall(id="1", name="f", arguments={"city": "Zürich\x1b[2J"}),
        ToolCall(id="2", name="g", arguments={}, problem="'n' is a required property"),
    ]
    pieces = [Piece(kind="call", text="", call=call) for call in calls]
    lines = view.take([answer("Let me look."), *pieces]) + view.finish()
    assert plain(lines) == [
        "Let me look.", "", '⚙ f({"city": "Zürich\\u001b[2J"})', "⚙ g({})",
        "  'n' is a required property",
    ]  # fmt: skip


def test_nothing_that_was_printed_is_shown_below_it(make_chat: MakeChat) -> None:
    view, _, _ = open_view(make_chat())
    assert view.take([answer("one\n\ntwo")]) == ["one"]
    assert view.rows(5, is_unfolded=False) == ["", "two"]
    assert view.finish() == ["", "two"]
    assert view.rows(5, is_unfolded=False) == []


def test_long_thinking_costs_as_much_as_short() -> None:
    tail = ThinkingTail(Renderer(40))
    for _ in range(3000):
        tail.push("some words ")
    assert sys.getsizeof(tail._lines[-1]) < 5000
    assert len(tail.rows(10)) == 10
    assert len("".join(tail._lines)) == 33_000
