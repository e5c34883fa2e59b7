from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit.chat.session_file import read_session, save_session
from edgekit.errors import InputError, StorageError

TEXT = st.text(alphabet=st.characters(exclude_categories=()))  # halves of surrogate pairs too
ARGUMENTS = st.dictionaries(TEXT, st.none() | st.booleans() | st.integers() | TEXT)


@st.composite
def conversations(draw: st.DrawFn) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    for turn in range(draw(st.integers(0, 4))):
        messages.append({"role": "user", "content": draw(TEXT)})
        answer: dict[str, Any] = {"role": "assistant", "content": draw(TEXT)}
        if draw(st.booleans()):
            answer["reasoning_content"] = draw(TEXT)
        ids = [f"call_{turn}_{n}" for n in range(draw(st.integers(0, 2)))]
        if ids:
            arguments = draw(ARGUMENTS.map(json.dumps) | ARGUMENTS)
            function = {"name": draw(TEXT), "arguments": arguments}
            answer["tool_calls"] = [
                {"id": i, "type": "function", "function": function} for i in ids
            ]
        messages.append(answer)
        messages += [{"role": "tool", "tool_call_id": i, "content": draw(TEXT)} for i in ids]
    return messages


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(messages=conversations(), system=st.none() | TEXT)
def test_what_was_saved_is_read(
    tmp_path: Path, messages: list[dict[str, Any]], system: str | None
) -> None:
    path = tmp_path / "chat.jsonl"
    path.unlink(missing_ok=True)
    save_session(path, messages, system)
    if messages or system is not None:
        assert read_session(path) == (system, messages)


def lines(tmp_path: Path, *messages: Any) -> Path:
    path = tmp_path / "chat.jsonl"
    texts = [m if isinstance(m, str) else json.dumps(m) for m in messages]
    path.write_text("\n".join(texts), encoding="utf-8")
    return path


USER = {"role": "user", "content": "hi"}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([USER, "{"], "line 2: not JSON"),
        ([USER, "", "[]"], "line 3: a message must be an object"),
        ([USER, '{"role": "user", "content": NaN}'], "line 2: not JSON: NaN"),
        ([{"role": "developer", "content": "x"}], "line 1: the role must be one of"),
        ([{"role": "user"}], "line 1: the content must be text: None"),
        ([{"role": "user", "content": [1]}], "line 1: the content must be text"),
        ([{**USER, "id": 1}], "line 1: unknown key in a message of the user: id"),
        ([USER, {"role": "system", "content": "x"}], "line 2: only the first"),
        ([{"role": "tool", "content": "x", "tool_call_id": "c1"}], "line 1: no call before it"),
        ([{"role": "assistant", "content": "", "tool_calls": [{}]}], "line 1: a tool call must"),
        (
            [{"role": "assistant", "content": None,
              "tool_calls": [{**CALL, "function": {"name": "f", "arguments": "["}}]}],
            "line 1: the arguments of f are not a JSON object",
        ),
    ],
)  # fmt: skip
def test_a_bad_line_is_named(tmp_path: Path, messages: list[Any], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        read_session(lines(tmp_path, *messages))


def test_a_file_of_openai_is_read(tmp_path: Path) -> None:
    messages = [
        {"role": "system", "content": "Be kind."},
        USER,
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "name": "f", "content": "42"},
    ]
    assert read_session(lines(tmp_path, *messages)) == ("Be kind.", messages[1:])


@pytest.mark.parametrize("content", [b"hello\n", b"\xff\xfe", b'{"a": 1}\n', b"\0"])
def test_another_kind_of_file_is_not_overwritten(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(InputError, match="something other than a conversation"):
        save_session(path, [USER], None)
    assert path.read_bytes() == content


def test_a_device_is_not_replaced() -> None:
    with pytest.raises(InputError, match="not a file"):
        save_session(Path("/dev/null"), [USER], None)


def test_a_conversation_is_overwritten(tmp_path: Path) -> None:
    path = lines(tmp_path, USER)
    save_session(path, [USER, USER], None)
    assert len(read_session(path)[1]) == 2


def test_a_new_file_is_private_and_the_mode_of_an_old_one_stays(tmp_path: Path) -> None:
    path = tmp_path / "chat.jsonl"
    save_session(path, [USER], None)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    save_session(path, [USER], None)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    path = lines(tmp_path, USER)
    link = tmp_path / "link"
    link.symlink_to(path)
    save_session(link, [USER, USER], None)
    assert link.is_symlink()
    assert len(read_session(path)[1]) == 2


def test_a_failed_save_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(number: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageError, match="no space left"):
        save_session(tmp_path / "chat.jsonl", [USER], None)
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_is_not_there_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such directory"):
        save_session(tmp_path / "nope" / "chat.jsonl", [USER], None)
