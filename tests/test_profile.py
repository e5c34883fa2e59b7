from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from edgekit.backends import list_backends
from edgekit.errors import ProfileError
from edgekit.precision import PRECISIONS
from edgekit.profile import find_profile, list_profiles, read_profile

SHIPPED = Path(__file__).parent.parent / "profiles"

GOOD = """\
name = "board"
summary = "a board"
backends = ["onnxruntime"]
precisions = ["int8", "fp16"]
reserved_bytes = 1024
[storage.int8]
linear_bits = 8
int8_activations = true
[storage.fp16]
linear_bits = 32
"""


def write(directory: Path, text: str = GOOD, name: str = "board") -> Path:
    directory.mkdir(exist_ok=True)
    path = directory / f"{name}.toml"
    path.write_text(text)
    return path


@pytest.fixture(autouse=True)
def no_path_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGEKIT_PROFILE_PATH", raising=False)


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.toml")), ids=lambda path: str(path.stem))
def test_every_shipped_profile_loads_and_is_named_after_its_file(path: Path) -> None:
    profile = find_profile(path.stem)
    assert profile.name == path.stem
    assert profile.summary
    assert set(profile.precisions) <= set(profile.storage) <= set(PRECISIONS)
    for precision in profile.precisions:
        assert profile.storage_for(precision, 10**9).linear_bits >= 4


def test_every_precision_of_a_shipped_profile_has_a_backend() -> None:
    can = {info.name: info.precisions for info in list_backends()}
    for path in SHIPPED.glob("*.toml"):
        profile = read_profile(path)
        known = [can[name] for name in profile.backends if name in can]
        for precision in profile.precisions if known else ():
            assert any(precision in row for row in known), f"{profile.name}: {precision}"


def test_all_shipped_profiles_are_listed() -> None:
    assert set(list_profiles()) == {path.stem for path in SHIPPED.glob("*.toml")}


def test_a_profile_reads_as_written(tmp_path: Path) -> None:
    profile = read_profile(write(tmp_path))
    assert (profile.backends, profile.precisions) == (("onnxruntime",), ("int8", "fp16"))
    assert (profile.reserved_bytes, profile.kv_bits, profile.memory_bytes) == (1024, 16, None)
    assert profile.storage["int8"].int8_activations is True
    assert profile.storage["fp16"].linear_bits == 32


def test_storage_is_settled_by_the_models_size(tmp_path: Path) -> None:
    text = GOOD.replace(
        "linear_bits = 8\n",
        "linear_bits = 8\ngroup_size = 128\nsmall_model_params = 1000\n"
        "small_model_group_size = 32\n",
    )
    profile = read_profile(write(tmp_path, text))
    assert profile.storage_for("int8", 999).group_size == 32
    assert profile.storage_for("int8", 1000).group_size == 128
    assert profile.storage_for("fp16", 999).group_size is None


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("reserved_bytes", "reserved_byte", "unknown key in {path}: reserved_byte"),
        ("int8_activations", "int8_activation", r"unknown key in \[storage.int8\] of {path}"),
        ('name = "board"\n', "", "{path} lacks 'name'"),
        ('precisions = ["int8", "fp16"]\n', "", "{path} lacks 'precisions'"),
        ('backends = ["onnxruntime"]\n', "", "{path} lacks 'backends'"),
        ("linear_bits = 8\n", "", r"\[storage.int8\] of {path} lacks 'linear_bits'"),
        ('name = "board"', "name = 3", "`name` in {path} must be text: 3"),
        ('"a board"', "true", "`summary` in {path} must be text: True"),
        ('["onnxruntime"]', '"onnxruntime"', "`backends` in {path} must be a list of names"),
        ('["onnxruntime"]', "[1]", "`backends` in {path} must be a list of names"),
        ('["onnxruntime"]', "7", "`backends` in {path} must be a list of names"),
        ('["int8", "fp16"]', '"fp16"', "`precisions` in {path} must be a list of names"),
        ("= 1024", "= -1", "`reserved_bytes` in {path} must be a whole number >= 0: -1"),
        ("= 1024", "= 1.5", "`reserved_bytes` in {path} must be a whole number >= 0: 1.5"),
        ("= 1024", "= true", "`reserved_bytes` in {path} must be a whole number >= 0: True"),
        ("= 1024", '= "1 GiB"', "`reserved_bytes` in {path} must be a whole number >= 0: '1 GiB'"),
        ("activations = true", "activations = 1", "must be true or false: 1"),
        ('"int8", "fp16"', '"int8", "fp7"', "profile `board` names an unknown precision: fp7"),
        ("[storage.fp16]", "[storage.fp7]", "profile `board` names an unknown precision: fp7"),
        ('"int8", "fp16"', '"int8", "fp8"', r"profile `board` lacks the table \[storage.fp8\]"),
        ('"int8", "fp16"', "", "needs at least one backend and precision"),
        ('"onnxruntime"', "", "needs at least one backend and precision"),
        ("[storage.int8]\n", "[storage]\n", "`storage` in {path} must hold one table"),
        ('name = "board"', "name = board", "cannot read profile {path}"),
        ('name = "board"', 'name = "plank"', "{path} names itself `plank`, its file says `board`"),
        (
            "= 1024",
            "= 0\ndefault_context_tokens = 0",
            "needs `default_context_tokens` of 1 or more",
        ),
        (GOOD[GOOD.index("[storage") :], "storage = 3", "`storage` in {path} must hold one table"),
    ],
)
def test_a_mistake_in_a_profile_is_one_sentence(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    assert old in GOOD
    path = write(tmp_path, GOOD.replace(old, new, 1))
    with pytest.raises(ProfileError, match=message.format(path=path)):
        read_profile(path)


def test_a_file_that_is_not_text_or_not_there_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "board.toml"
    with pytest.raises(ProfileError, match=f"cannot read profile {path}"):
        find_profile(str(path))
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ProfileError, match=f"cannot read profile {path}"):
        find_profile(str(path))


def test_an_unknown_name_lists_the_known() -> None:
    with pytest.raises(ProfileError, match="unknown profile: rtx-9090") as caught:
        find_profile("rtx-9090")
    assert caught.value.hint is not None
    assert "cpu" in caught.value.hint


def test_a_file_of_the_user_wins_over_a_shipped_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = write(tmp_path, GOOD.replace('"board"', '"cpu"'), "cpu")
    monkeypatch.setenv("EDGEKIT_PROFILE_PATH", str(tmp_path))
    assert list_profiles()["cpu"] == mine
    assert find_profile("cpu").summary == "a board"


def test_the_first_directory_of_the_path_wins_and_missing_ones_are_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = write(tmp_path / "first", GOOD.replace("a board", "first"))
    write(tmp_path / "second", GOOD.replace("a board", "second"))
    other = write(tmp_path / "second", GOOD.replace('"board"', '"other"'), "other")
    path = os.pathsep.join(["", str(tmp_path / "none"), *(str(tmp_path / n) for n in
                            ("first", "second"))])  # fmt: skip
    monkeypatch.setenv("EDGEKIT_PROFILE_PATH", path)
    assert find_profile("board").summary == "first"
    found = list_profiles()
    assert (found["board"], found["other"]) == (first, other)
    assert "cpu" in found


def test_a_path_names_a_file_whatever_the_search_path_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "first", GOOD.replace("a board", "first"))
    path = write(tmp_path / "second", GOOD.replace("a board", "second"))
    monkeypatch.setenv("EDGEKIT_PROFILE_PATH", str(tmp_path / "first"))
    assert find_profile(str(path)).summary == "second"


def test_the_list_is_printed_as_text_and_as_json(run_cli: Callable[..., Result]) -> None:
    text = run_cli("profiles")
    assert text.exit_code == 0
    assert any(line.startswith("cpu ") for line in text.stdout.splitlines())
    rows: list[dict[str, Any]] = json.loads(run_cli("profiles", "list", "--json").stdout)
    assert [row["name"] for row in rows] == list(list_profiles())
    assert json.loads(run_cli("profiles", "--json").stdout) == rows


def test_show_prints_the_file_of_a_name_or_of_a_path(
    run_cli: Callable[..., Result], tmp_path: Path
) -> None:
    assert run_cli("profiles", "show", "cpu").stdout == (SHIPPED / "cpu.toml").read_text()
    path = write(tmp_path, GOOD.replace('"board"', '"cpu"'), "cpu")
    assert run_cli("profiles", "show", path).stdout == path.read_text()


def test_a_broken_profile_exits_2_without_a_traceback(
    run_cli: Callable[..., Result], tmp_path: Path
) -> None:
    result = run_cli("plan", "--profile", write(tmp_path, GOOD.replace("1024", '"1"')))
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: `reserved_bytes` in ")
