from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from edgekit.chat.commands import COMMANDS, help_text
from edgekit.chat.plain import talk
from edgekit.runtime.piece import Piece, ToolCall

if TYPE_CHECKING:
    from tests.chat.conftest import FakeChat

MakeChat = Callable[..., "FakeChat"]
Said = pytest.CaptureFixture[str]
TOOLS = [{"type": "function", "function": {"name": "f", "description": "does f"}}]


@pytest.fixture(autouse=True)
def in_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def typed(capsys: Said) -> Callable[..., str]:
    """`typed(chat, line, ...)`: what stderr says of these lines."""

    def run(chat: FakeChat, *lines: str | type[BaseException]) -> str:
        given: Iterator[str | type[BaseException]] = iter([*lines, EOFError])

        def read_line() -> str:
            line = next(given)
            if isinstance(line, str):
                return line
            raise line

        talk(chat, show_stats=False, read_line=read_line)
        return capsys.readouterr().err

    return run


Typed = Callable[..., str]


def test_help_has_every_command_with_what_it_takes() -> None:
    for command in COMMANDS.values():
        assert f"{command.usage} " in help_text()
        assert command.help in help_text()


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("/think maybe", "/think takes on or off: 'maybe'"),
        ("/budget lots", "/budget takes a number of tokens, off or none: 'lots'"),
        ("/budget -3", "/budget takes a number"),
        ("/answer", "nothing is being thought"),
        ("/retry", "there is no question yet"),
        ("/edit", "there is no question to change yet"),
        ("/edit x", "there is no question to change yet"),
        ("/save", "there is nothing to save yet"),
        ("/load", "/load takes a file"),
        ("/load nope", "cannot read nope: No such file"),
        ("/tools nope", "there is no such file: nope"),
        ("/attach nope", "there is no such file: nope"),
        ("/reset now", "/reset takes nothing after it: now"),
        ("/rest", "did you mean `/reset`?"),
        ("/xyz", "`/help` lists the commands"),
        ("/home/me/x.txt", "write @/home/me/x.txt"),
        ("see @nope.txt", "there is no such file: nope.txt"),
    ],
)
def test_wrong_use_is_an_error_line_and_nothing_is_sent(
    make_chat: MakeChat, typed: Typed, line: str, error: str
) -> None:
    chat = make_chat()
    assert error in typed(chat, line)
    assert chat.messages == []


@pytest.mark.parametrize(
    ("value", "tokens", "words"),
    [("512", 512, "ends after 512"), ("off", 0, "no thinking"), ("none", -1, "has no limit")],
)
def test_the_budget_is_set(
    make_chat: MakeChat, typed: Typed, value: str, tokens: int, words: str
) -> None:
    chat = make_chat()
    assert words in typed(chat, f"/budget {value}")
    assert chat.budget == tokens


def test_a_space_sends_what_begins_with_a_slash(make_chat: MakeChat, typed: Typed) -> None:
    chat = make_chat()
    typed(chat, " /etc is what?")
    assert chat.messages[0]["content"] == "/etc is what?"


def test_a_question_is_answered_again(make_chat: MakeChat, typed: Typed) -> None:
    chat = make_chat()
    typed(chat, "a", "/retry")
    assert [m["content"] for m in chat.messages] == ["a", "You said: a"]
    assert len(chat.kept) == 2


def test_a_question_is_replaced(make_chat: MakeChat, typed: Typed) -> None:
    chat = make_chat()
    typed(chat, "a", "/edit b")
    assert [m["content"] for m in chat.messages] == ["b", "You said: b"]


def test_without_an_input_line_an_edit_needs_its_text(make_chat: MakeChat, typed: Typed) -> None:
    assert "hint: /edit TEXT" in typed(make_chat(), "a", "/edit")


def test_a_conversation_is_saved_and_loaded(make_chat: MakeChat, typed: Typed) -> None:
    chat = make_chat(system="Be kind.")
    assert "saved 2 messages to my chat.jsonl" in typed(chat, "a", "/save 'my chat.jsonl'")
    assert Path("my chat.jsonl").exists()
    other = make_chat()
    assert "loaded 2 messages from my chat.jsonl" in typed(other, "/load my chat.jsonl")
    assert (other.messages, other.system) == (chat.messages, "Be kind.")


def test_a_conversation_is_saved_where_it_was(make_chat: MakeChat, typed: Typed) -> None:
    chat = make_chat()
    typed(chat, "a", "/save x.jsonl", "b", "/save")
    assert [path.name for path in Path().iterdir()] == ["x.jsonl"]
    assert len(Path("x.jsonl").read_text(encoding="utf-8").splitlines()) == 4


def test_without_a_name_the_date_is_one(make_chat: MakeChat, typed: Typed) -> None:
    typed(make_chat(), "a", "/save")
    [path] = Path().iterdir()
    assert path.name.startswith("chat-20")


def test_a_file_goes_with_the_message(make_chat: MakeChat, typed: Typed) -> None:
    Path("a.txt").write_text("A", encoding="utf-8")
    Path("b.txt").write_text("B", encoding="utf-8")
    chat = make_chat()
    said = typed(chat, "/attach a.txt", "look @b.txt", "again")
    fences = "a.txt:\n```txt\nA\n```\n\nb.txt:\n```txt\nB\n```"
    assert chat.messages[0]["content"] == f"look @b.txt\n\n{fences}"
    assert chat.messages[2]["content"] == "again"
    assert "goes with the next message: a.txt (1 B)" in said


def test_attached_files_may_be_dropped(make_chat: MakeChat, typed: Typed) -> None:
    Path("a.txt").write_text("A", encoding="utf-8")
    chat = make_chat()
    assert "a message takes 256.00 KiB" in typed(chat, "/attach a.txt", "/attach off", "x")
    assert chat.messages[0]["content"] == "x"


def test_tools_are_declared_listed_and_dropped(make_chat: MakeChat, typed: Typed) -> None:
    Path("tools.json").write_text(json.dumps(TOOLS), encoding="utf-8")
    chat = make_chat()
    assert "f: does f" in typed(chat, "/tools tools.json")
    assert "f: does f" in typed(chat, "/tools")
    assert "no tools are declared" in typed(chat, "/tools off")


@pytest.mark.parametrize(("text", "error"), [("{", "not JSON"), ("{}", "not a list of tools")])
def test_a_bad_file_of_tools_is_an_error_line(
    make_chat: MakeChat, typed: Typed, text: str, error: str
) -> None:
    Path("tools.json").write_text(text, encoding="utf-8")
    assert f"error: {error}: tools.json" in typed(make_chat(), "/tools tools.json")


def test_the_context_is_drawn(make_chat: MakeChat, typed: Typed) -> None:
    assert "░ free 4,096, 100 of them" in typed(make_chat(), "/context")


def test_the_last_thinking_is_shown(make_chat: MakeChat, typed: Typed) -> None:
    script = [Piece(kind="thinking", text="hm, so"), Piece(kind="answer", text="yes")]
    chat = make_chat(script)
    said = typed(chat, "/thinking", "a", "b", "/thinking")
    assert "there was no thinking yet" in said
    assert said.count("hm, so") == 2  # while it came, and when it was asked for


def test_the_results_of_tool_calls_are_asked_for(
    make_chat: MakeChat, typed: Typed, capsys: Said
) -> None:
    Path("rain.txt").write_text("rain\n", encoding="utf-8")
    calls = [
        ToolCall(id="1", name="f", arguments={"x": 1}),
        ToolCall(id="2", name="g", arguments={}),
        ToolCall(id="3", name="h", arguments={}, problem="'n' is required"),
    ]
    chat = make_chat([Piece(kind="call", call=call) for call in calls])
    said = typed(chat, "a", "sun", "@rain.txt", "")
    for name in "fgh":
        assert f"result of {name}?" in said
    results = [m for m in chat.messages if m["role"] == "tool"]
    assert [(m["tool_call_id"], m["content"]) for m in results] == [
        ("1", "sun"), ("2", "rain\n"), ("3", "'n' is required"),
    ]  # fmt: skip
    assert chat.messages[-1]["role"] == "assistant"


def test_calls_without_results_do_not_break_the_conversation(
    make_chat: MakeChat, typed: Typed
) -> None:
    call = ToolCall(id="1", name="f", arguments={})
    chat = make_chat([Piece(kind="call", call=call)])
    typed(chat, "a", KeyboardInterrupt, "b", "/save x.jsonl", "/load x.jsonl")
    roles = [m["role"] for m in chat.messages]
    assert roles == ["user", "assistant", "tool", "user", "assistant"]
