from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.chat.attach import (
    LIMIT_BYTES,
    Attachment,
    attach,
    complete_path,
    mentioned,
    read_attachment,
    split_paths,
    typed_part,
)
from edgekit.errors import InputError


@pytest.fixture(autouse=True)
def in_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "notes.txt").write_text("one\ntwo\n", encoding="utf-8")
    (tmp_path / "my file.md").write_text("# hi", encoding="utf-8")
    (tmp_path / "README").write_text("read me", encoding="utf-8")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "日本.py").write_text("x = 1", encoding="utf-8")
    (tmp_path / ".hidden").write_text("", encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("what is @notes.txt", ["notes.txt"]),
        ("see @notes.txt.", ["notes.txt"]),
        ("(@notes.txt, @README): which?", ["notes.txt", "README"]),
        ("@\"my file.md\" and @'my file.md'", ["my file.md"]),
        ("@sub/日本.py", ["sub/日本.py"]),
        ("@~/notes.txt", ["~/notes.txt"]),
        ("@notes.txt @notes.txt", ["notes.txt"]),
        ("write to me@notes.txt or ask @alice", []),
        ("`@notes.txt` is a name", []),
        ("```\n@notes.txt\n```", []),
        ("```\n@notes.txt", []),
        ("@app.route('/x')\n@functools.cache\n@dataclass\nclass A: ...", []),
    ],
)
def test_files_are_named_by_a_path_after_an_at(text: str, names: list[str]) -> None:
    assert [file.name for file in mentioned(text)] == names


@pytest.mark.parametrize("name", ["nope.txt", "sub/nope", "./nope", "~/nope", '"no such"'])
def test_a_path_that_leads_nowhere_is_an_input_error(name: str) -> None:
    with pytest.raises(InputError, match="there is no such file") as error:
        mentioned(f"see @{name}")
    assert error.value.hint


def test_a_directory_is_no_file() -> None:
    with pytest.raises(InputError, match="not a file: sub/"):
        mentioned("see @sub/")


@pytest.mark.parametrize("content", [b"\xff\xfe", b"a\0b"])
def test_only_text_is_attached(in_directory: Path, content: bytes) -> None:
    (in_directory / "x.bin").write_bytes(content)
    with pytest.raises(InputError, match="text"):
        read_attachment("x.bin")


def test_the_limit_is_said(in_directory: Path) -> None:
    (in_directory / "large.txt").write_bytes(b"a" * (LIMIT_BYTES + 1))
    with pytest.raises(InputError, match=r"a message takes 256\.00 KiB of files"):
        read_attachment("large.txt")


def test_the_limit_holds_for_all_files_together() -> None:
    half = Attachment(name="a.txt", text="", size_bytes=LIMIT_BYTES // 2 + 1)
    attach("x", [half])
    with pytest.raises(InputError, match="the attached files"):
        attach("x", [half, half])


def test_a_file_stands_below_the_message_in_a_fence_with_its_name() -> None:
    text = "what is @notes.txt"
    assert attach(text, mentioned(text)) == f"{text}\n\nnotes.txt:\n```txt\none\ntwo\n```"


def test_a_file_cannot_close_its_fence(in_directory: Path) -> None:
    (in_directory / "a.md").write_text("````\nx\n````", encoding="utf-8")
    assert attach("", [read_attachment("a.md")]) == "a.md:\n`````md\n````\nx\n````\n`````"


@pytest.mark.parametrize("text", ["what is @notes.txt", 'see @"my file.md".', "no file"])
def test_the_typed_part_of_a_message_is_found_again(text: str) -> None:
    assert typed_part(attach(text, mentioned(text))) == text


@pytest.mark.parametrize(
    ("text", "paths"),
    [
        ("notes.txt", ["notes.txt"]),
        ("my file.md", ["my file.md"]),
        ("'my file.md' notes.txt", ["my file.md", "notes.txt"]),
        ("my\\ file.md", ["my file.md"]),
        ("file:///tmp/my%20file.md", ["/tmp/my file.md"]),
        ("it's", ["it's"]),
    ],
)
def test_paths_may_be_quoted_or_escaped(text: str, paths: list[str]) -> None:
    assert split_paths(text) == paths


def test_paths_are_completed() -> None:
    assert list(complete_path("")) == ["README", "my file.md", "notes.txt", "sub/"]
    assert list(complete_path("sub/")) == ["sub/日本.py"]
    assert list(complete_path(".h")) == [".hidden"]
    assert list(complete_path("~/no")) == ["~/notes.txt"]
    assert list(complete_path("nowhere/x")) == []
    assert list(complete_path("~nobody-here/x")) == []
