from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from edgekit.errors import InputError, ProfileError
from edgekit.schema import TomlFile


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One field of every kind that the files have."""

    text: str
    count: int = 0
    maybe: int | None = None
    is_on: bool = False
    names: tuple[str, ...] = ()
    notes: Mapping[str, str] = field(default_factory=dict)


def toml(directory: Path, text: str) -> TomlFile:
    path = directory / "file.toml"
    path.write_text(text, encoding="utf-8")
    return TomlFile(path)


@pytest.mark.parametrize(
    ("text", "table", "key", "line"),
    [
        ("a = 1\nb = 2\n", "", "b", 2),
        ("\n# a = 1\n  a=1\n", "", "a", 3),
        ('"a" = 1\n', "", "a", 1),
        ("'a' = 1\n", "", "a", 1),
        ("[t]\n[u]\na = 1\n", "u", "a", 3),
        ("a = 1\n[t]\na = 2\n", "t", "a", 3),
        ("[ t . u ]  # why\na = 1\n", "t.u", "a", 2),
        ('[t."u"]\n"a" = 1\n', "t.u", "a", 2),
        ("[t]\nu.a = 1\n", "t.u", "a", 2),
        ("t.u.a = 1\n", "t.u", "a", 1),
        ('[t]\n"x.y" = 1\n', "t", "x.y", 2),
        # of an inline table, the line of the table
        ("b = 1\nt = { a = 1 }\n", "t", "a", 2),
        ("[t]\nb = 1\nu = { a = 1 }\n", "t.u", "a", 3),
        # of an array of tables, the row that is meant
        ("[[t]]\na = 1\n[[t]]\na = 2\n", "t.1", "a", 4),
        ("[[t]]\n[[t]]\n[t.u]\na = 1\n[[t]]\na = 2\n", "t.2", "a", 6),
        ("b = 1\nt = [{ a = 1 }, { a = 2 }]\n", "t.1", "a", 2),
        # a key that is not there: where its table begins
        ("a = 1\n[t]\nb = 1\n", "t", "missing", 2),
        ("a = 1\n[t.u]\nb = 1\n", "t", "missing", 2),
        # a table asked for as a key
        ("a = 1\n[t]\nb = 1\n", "", "t", 2),
        ("a = 1\n[t]\nb = 1\n", "t", "", 2),
        # elements of an array that look like a header
        ('a = [\n  ["t"],\n]\n[t]\nb = 1\n', "t", "b", 5),
        ("a = 1\r\n[t]\r\nb = 1\r\n", "t", "b", 3),
    ],
)
def test_a_key_is_found_at_its_line(
    tmp_path: Path, text: str, table: str, key: str, line: int
) -> None:
    file = toml(tmp_path, text)
    assert file.at(table, key) == f"{file.path}:{line}"


@pytest.mark.parametrize(("table", "key"), [("", ""), ("", "missing"), ("t", ""), ("t.u", "a")])
def test_what_is_nowhere_in_the_file_is_named_without_a_line(
    tmp_path: Path, table: str, key: str
) -> None:
    file = toml(tmp_path, "a = 1\n")
    assert file.at(table, key) == str(file.path)


def test_a_row_is_read_as_written(tmp_path: Path) -> None:
    text = 'text = "x"\ncount = 3\nis_on = true\nnames = ["a", "b"]\n'
    file = toml(tmp_path, text)
    assert file.row(Row, file.data) == Row(text="x", count=3, is_on=True, names=("a", "b"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('text = "x"\n\nsize = 3\n', "{path}:3: unknown key in the top level: size"),
        ("text = 1\n", "{path}:1: `text` must be text: 1"),
        ('text = "x"\ncount = -1\n', "{path}:2: `count` must be a whole number >= 0: -1"),
        ('text = "x"\ncount = true\n', "{path}:2: `count` must be a whole number >= 0: True"),
        ('text = "x"\nmaybe = 1.5\n', "{path}:2: `maybe` must be a whole number >= 0: 1.5"),
        ('text = "x"\nis_on = 1\n', "{path}:2: `is_on` must be true or false: 1"),
        ('text = "x"\nnames = "a"\n', "{path}:2: `names` must be a list of names: 'a'"),
        ('text = "x"\n[notes]\na = 1\n', "{path}:2: `notes` must be a table of texts: {{'a': 1}}"),
        ("count = 1\n", "{path}: the top level lacks `text`"),
    ],
)
def test_a_mistake_names_line_and_key(tmp_path: Path, text: str, message: str) -> None:
    file = toml(tmp_path, text)
    with pytest.raises(ProfileError) as caught:
        file.row(Row, file.data)
    assert str(caught.value) == message.format(path=file.path)


def test_a_mistake_in_a_table_names_line_key_and_table(tmp_path: Path) -> None:
    file = toml(tmp_path, 'a = 1\n[rows.x]\ntext = "x"\nsize = 1\n[rows.y]\ncount = 1\n')
    with pytest.raises(ProfileError) as caught:
        file.row(Row, file.data["rows"]["x"], table="rows.x")
    assert str(caught.value) == f"{file.path}:4: unknown key in [rows.x]: size"
    assert caught.value.hint is not None
    assert "count, is_on, maybe, names, notes, text" in caught.value.hint
    with pytest.raises(ProfileError) as caught:
        file.row(Row, file.data["rows"]["y"], table="rows.y")
    assert str(caught.value) == f"{file.path}:5: [rows.y] lacks `text`"


@pytest.mark.parametrize(
    "text",
    ["a = ", "a = 1\na = 2\n", "[t", "a = " + "[" * 5000, "a = 1" + "0" * 5000],
    ids=["no value", "twice", "no end", "too deep", "a number without end"],
)
def test_what_is_not_toml_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ProfileError, match=r"file\.toml is not TOML: ") as caught:
        toml(tmp_path, text)
    assert caught.value.hint == "see https://toml.io"


def test_a_syntax_error_keeps_its_line(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="line 2"):
        toml(tmp_path, "a = 1\nb = ?\n")


def test_a_file_that_is_not_text_or_not_there_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file.toml"
    with pytest.raises(ProfileError, match=f"cannot read {path}: No such file"):
        TomlFile(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ProfileError, match=f"{path} is not TOML: .*decode"):
        TomlFile(path)


def test_the_error_is_the_one_that_the_caller_names(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read "):
        TomlFile(tmp_path / "none.toml", error=InputError)
