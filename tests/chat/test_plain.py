from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from edgekit.chat.plain import answer_once, closed_pipe_ends_quietly, read_prompt, talk, tell
from edgekit.errors import InputError
from edgekit.runtime.chat import Chat
from edgekit.runtime.chat_options import ChatOptions
from edgekit.runtime.load import LoadedEngine

MakeEngine = Callable[..., LoadedEngine]
Said = pytest.CaptureFixture[str]


def open_chat(engine: LoadedEngine, **options: Any) -> Chat:
    return Chat(engine, ChatOptions(**options), notify=tell)


def dialogue(chat: Chat, *lines: str | type[BaseException], show_stats: bool = False) -> None:
    """Type `lines`, an exception for a key, then Ctrl-D."""
    typed: Iterator[str | type[BaseException]] = iter([*lines, EOFError])

    def read_line() -> str:
        line = next(typed)
        if isinstance(line, str):
            return line
        raise line

    talk(chat, show_stats=show_stats, read_line=read_line)


def pipe_in(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))


def test_only_answers_go_to_stdout(make_engine: MakeEngine, capsys: Said) -> None:
    dialogue(open_chat(make_engine("one", "two")), "a", "", "b")
    assert capsys.readouterr().out == "one\ntwo\n"


def test_a_blank_line_asks_nothing(make_engine: MakeEngine, capsys: Said) -> None:
    dialogue(open_chat(make_engine()), "", "   ")
    assert capsys.readouterr().out == ""


def test_measures_are_shown_after_each_answer_on_stderr(
    make_engine: MakeEngine, capsys: Said
) -> None:
    dialogue(open_chat(make_engine("one")), "a", show_stats=True)
    said = capsys.readouterr()
    assert said.out == "one\n"
    for word in ("TTFT", "prefill", "decode", "tokens/s", "new tokens", "cached"):
        assert word in said.err


def test_the_stats_command_switches_measures(make_engine: MakeEngine, capsys: Said) -> None:
    dialogue(open_chat(make_engine("one", "two")), "/stats", "a", "/stats", "b")
    assert capsys.readouterr().err.count("TTFT") == 1


def test_the_reset_command_forgets(make_engine: MakeEngine) -> None:
    chat = open_chat(make_engine("one"))
    dialogue(chat, "a", "/reset")
    assert chat.messages == []


def test_the_system_command_sets_and_removes_the_instructions(
    make_engine: MakeEngine,
) -> None:
    engine = make_engine("one", "two")
    chat = open_chat(engine)
    dialogue(chat, "/system Be kind.", "a")
    held = engine.session.held  # type: ignore[attr-defined]  # the session of the fixture
    assert "Be kind." in engine.tokenizer.decode(held[0])
    dialogue(chat, "/system", "b")
    assert "Be kind." not in engine.tokenizer.decode(held[0])


def test_the_think_command_needs_a_mode(make_engine: MakeEngine, capsys: Said) -> None:
    dialogue(open_chat(make_engine()), "/think maybe")
    assert "error: /think takes on or off: 'maybe'" in capsys.readouterr().err


def test_the_think_command_on_a_model_without_is_refused(
    make_engine: MakeEngine, capsys: Said
) -> None:
    dialogue(open_chat(make_engine("one")), "/think on", "a")
    said = capsys.readouterr()
    assert "error: this model has no switch for thinking: tiny" in said.err
    assert said.out == "one\n"


def test_help_names_every_command(make_engine: MakeEngine, capsys: Said) -> None:
    dialogue(open_chat(make_engine()), "/help")
    said = capsys.readouterr().err
    for name in ("/reset", "/stats", "/system", "/think", "/help", "/exit"):
        assert name in said


def test_an_unknown_command_is_not_sent(make_engine: MakeEngine, capsys: Said) -> None:
    dialogue(open_chat(make_engine()), "/rest")
    assert "error: unknown command: /rest" in capsys.readouterr().err


def test_exit_leaves_at_once(make_engine: MakeEngine, capsys: Said) -> None:
    dialogue(open_chat(make_engine("one")), "/exit", "a")
    assert capsys.readouterr().out == ""


def test_ctrl_c_stops_only_the_answer(make_engine: MakeEngine, capsys: Said) -> None:
    chat = open_chat(make_engine("abcdef", fail_at=2))
    dialogue(chat, "a", "/help")
    said = capsys.readouterr()
    assert said.out == "ab\n"
    assert "stopped" in said.err
    assert chat.messages[-1] == {"role": "assistant", "content": "ab"}


def test_ctrl_c_once_at_the_prompt_stays(make_engine: MakeEngine, capsys: Said) -> None:
    dialogue(open_chat(make_engine("one", "two")), KeyboardInterrupt, "a", KeyboardInterrupt, "b")
    assert capsys.readouterr().out == "one\ntwo\n"


def test_ctrl_c_twice_at_the_prompt_leaves(make_engine: MakeEngine, capsys: Said) -> None:
    dialogue(open_chat(make_engine("one")), KeyboardInterrupt, KeyboardInterrupt, "a")
    assert capsys.readouterr().out == ""


def test_a_message_that_does_not_fit_is_an_error_line(
    make_engine: MakeEngine, capsys: Said
) -> None:
    dialogue(open_chat(make_engine("one")), "a" * 700, "b")
    said = capsys.readouterr()
    assert "error: the last message needs" in said.err
    assert "hint:" in said.err
    assert said.out == "one\n"


def test_pruning_is_said_on_stderr(make_engine: MakeEngine, capsys: Said) -> None:
    chat = open_chat(make_engine("one", "two", "three", context_tokens=450), max_new_tokens=8)
    dialogue(chat, "a" * 180, "b" * 180, "c" * 180)
    assert "forgot the oldest 2 messages" in capsys.readouterr().err


def test_one_answer_ends_with_one_newline(make_engine: MakeEngine, capsys: Said) -> None:
    answer_once(open_chat(make_engine("one\n")), "a", as_json=False, show_stats=False)
    answer_once(open_chat(make_engine("two")), "a", as_json=False, show_stats=False)
    assert capsys.readouterr().out == "one\ntwo\n"


def test_json_is_one_object_with_the_answer(make_engine: MakeEngine, capsys: Said) -> None:
    engine = make_engine("héllo world")
    answer_once(open_chat(engine), "a", as_json=True, show_stats=True)
    said = capsys.readouterr()
    data = json.loads(said.out)
    assert list(data) == [
        "engine", "prompt_tokens", "cached_tokens", "new_tokens", "thinking_tokens",
        "drafted_tokens", "accepted_tokens", "finish_reason", "thinking", "text", "tool_calls",
        "ttft_ms", "prefill_tokens_per_s", "decode_tokens_per_s",
    ]  # fmt: skip
    assert (data["engine"], data["text"]) == (str(engine.directory), "héllo world")
    assert (data["finish_reason"], data["cached_tokens"]) == ("stop", 0)
    assert "TTFT" in said.err


def test_ctrl_c_in_a_single_answer_is_not_swallowed(make_engine: MakeEngine) -> None:
    chat = open_chat(make_engine("abc", fail_at=1))
    with pytest.raises(KeyboardInterrupt):
        answer_once(chat, "a", as_json=False, show_stats=False)


def test_piped_text_is_the_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe_in(monkeypatch, "what is 你好?\n".encode())
    assert read_prompt(None, is_required=False) == "what is 你好?"


def test_piped_text_goes_below_the_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe_in(monkeypatch, b"line 1\nline 2\n")
    assert read_prompt("explain", is_required=False) == "explain\n\nline 1\nline 2"


def test_an_empty_pipe_leaves_the_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe_in(monkeypatch, b"\n")
    assert read_prompt("explain", is_required=False) == "explain"


def test_an_empty_pipe_alone_is_an_input_error(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe_in(monkeypatch, b"")
    with pytest.raises(InputError, match="no prompt: stdin is empty"):
        read_prompt(None, is_required=False)


def test_a_pipe_that_is_not_text_is_an_input_error(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe_in(monkeypatch, b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not UTF-8"):
        read_prompt(None, is_required=False)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe_in(monkeypatch, b"")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)


@pytest.mark.usefixtures("terminal")
def test_a_terminal_without_prompt_is_a_dialogue() -> None:
    assert read_prompt(None, is_required=False) is None


@pytest.mark.usefixtures("terminal")
def test_json_in_a_terminal_needs_a_prompt() -> None:
    with pytest.raises(InputError, match="`--json` needs a prompt"):
        read_prompt(None, is_required=True)


def test_a_closed_pipe_ends_the_answer_quietly(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as closed:  # noqa: PTH123  # a file descriptor, not a path
        monkeypatch.setattr(sys, "stdout", closed)
        answer_once(open_chat(make_engine("abc")), "a", as_json=False, show_stats=False)


def test_other_errors_pass_through_the_pipe_guard() -> None:
    with pytest.raises(InputError), closed_pipe_ends_quietly():
        raise InputError("x")
