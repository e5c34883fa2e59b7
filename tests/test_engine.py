from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from edgekit import engine as engine_module
from edgekit.engine import (
    Manifest,
    engine_path,
    find_engine,
    list_engines,
    open_manifest,
    read_manifest,
    remove_engine,
)
from edgekit.errors import EngineError, InputError, StaleEngineError, StorageError
from edgekit.scratch import remove_scratch, scratch_directory, sha256_file, write_beside


def manifest(**changes: Any) -> Manifest:
    fields: dict[str, Any] = {
        "model": "tiny", "checkpoint_sha256": "ab" * 32, "precision": "fp16",
        "kv_precision": "fp32", "profile": "cpu",
        "backend": {"name": "onnxruntime", "version": "1.0"}, "context_tokens": 64, "batch": 1,
        "plan": {"fits": True}, "device": {"cpu": "any Ω"}, "quality": {},
        "build_key": "cd" * 32,
    }  # fmt: skip
    return Manifest(**{**fields, **changes})


def write_engine(engine: Path, **changes: Any) -> Path:
    """A directory with a manifest and two files; no backend could open it, none has to."""
    (engine / "backend").mkdir(parents=True)
    (engine / "backend" / "model.data").write_bytes(bytes(range(200)))
    (engine / "tokenizer").mkdir()
    (engine / "tokenizer" / "tokenizer.json").write_text("{}")
    manifest(**changes).sealed(engine).write(engine)
    return engine


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    return write_engine(tmp_path / "engine")


def test_a_manifest_reads_as_it_was_written(engine: Path) -> None:
    read = read_manifest(engine)
    assert read == manifest().sealed(engine)
    # a second round changes nothing, not a byte
    text = (engine / "manifest.json").read_bytes()
    read.write(engine)
    assert (engine / "manifest.json").read_bytes() == text


def test_a_manifest_is_sorted_json_with_a_digest_of_every_file(engine: Path) -> None:
    data = json.loads((engine / "manifest.json").read_text())
    assert list(data) == sorted(data)
    assert data["file_bytes"] == {"backend/model.data": 200, "tokenizer/tokenizer.json": 2}
    # sha256 of the two bytes "{}", as `printf '{}' | sha256sum` prints it
    assert data["files"]["tokenizer/tokenizer.json"] == (
        "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    )
    assert set(data["files"]) == set(data["file_bytes"])


def test_a_file_named_manifest_deeper_in_the_engine_is_sealed_too(tmp_path: Path) -> None:
    (tmp_path / "backend").mkdir()
    (tmp_path / "backend" / "manifest.json").write_text("theirs")
    manifest().sealed(tmp_path).write(tmp_path)
    assert set(open_manifest(tmp_path).files) == {"backend/manifest.json"}


def test_an_untouched_engine_opens(engine: Path) -> None:
    assert open_manifest(engine) == open_manifest(engine, full=True) == read_manifest(engine)


def edit_manifest(engine: Path, **changes: Any) -> None:
    path = engine / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no manifest": (lambda e: (e / "manifest.json").unlink(), "not an engine directory: "),
    "empty manifest": (lambda e: (e / "manifest.json").write_text(""), "unreadable manifest "),
    "a list": (lambda e: (e / "manifest.json").write_text("[]"), "unreadable manifest "),
    "not text": (lambda e: (e / "manifest.json").write_bytes(b"\xff\xfe"), "unreadable manifest "),
    "a deep pit": (lambda e: (e / "manifest.json").write_text("[" * 10**5), "unreadable manifest "),
    "half a manifest": (
        lambda e: os.truncate(e / "manifest.json", 100), "unreadable manifest ",
    ),
    "edited by hand": (
        lambda e: edit_manifest(e, context_tokens=65), "the manifest was changed after the build: ",
    ),
    "missing digest": (
        lambda e: edit_manifest(e, manifest_sha256=None), "the manifest was changed after ",
    ),
    "missing file": (
        lambda e: (e / "backend" / "model.data").unlink(), "engine file is missing: ",
    ),
    "extra file": (
        lambda e: (e / "tokenizer" / "chat_template.jinja").write_text("{{ evil }}"),
        "no file of this engine: ",
    ),
    "truncated file": (
        lambda e: os.truncate(e / "backend" / "model.data", 199),
        "has 199 bytes, the manifest says 200",
    ),
    "grown file": (
        lambda e: os.truncate(e / "backend" / "model.data", 201),
        "has 201 bytes, the manifest says 200",
    ),
    "flipped bit": (
        lambda e: flip(e / "backend" / "model.data"), "engine file differs from what was built: ",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("full", [False, True], ids=["open", "full"])
def test_damage_is_an_engine_error_in_one_sentence(engine: Path, kind: str, full: bool) -> None:
    damage, message = DAMAGE[kind]
    damage(engine)
    with pytest.raises(EngineError, match=message) as caught:
        open_manifest(engine, full=full)
    assert caught.value.exit_code == 5
    assert "\n" not in str(caught.value)
    assert not str(caught.value).endswith(".")
    assert caught.value.hint is not None


@pytest.mark.parametrize("kind", DAMAGE)
def test_verify_of_a_damaged_engine_exits_5(
    run_cli: Callable[..., Result], engine: Path, kind: str
) -> None:
    damage, message = DAMAGE[kind]
    damage(engine)
    result = run_cli("verify", engine)
    assert (result.exit_code, result.stdout) == (5, "")
    assert result.stderr.startswith("error: ")
    assert message in result.stderr


def test_a_format_of_the_future_is_stale(engine: Path) -> None:
    edit_manifest(engine, format=2, invention={})
    with pytest.raises(StaleEngineError, match="has format 2, this edgekit reads 1") as caught:
        read_manifest(engine)
    assert caught.value.exit_code == 5


def test_unexpected_keys_with_a_right_digest_are_named(engine: Path) -> None:
    data = json.loads((engine / "manifest.json").read_text())
    data["invention"] = 1
    data["manifest_sha256"] = engine_module._digest_of(data)
    (engine / "manifest.json").write_text(json.dumps(data))
    with pytest.raises(EngineError, match="unexpected keys: invention"):
        read_manifest(engine)


def test_large_files_are_hashed_only_in_full(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "_HASHED_ON_OPEN_BYTES", 199)
    flip(engine / "backend" / "model.data")
    open_manifest(engine)
    with pytest.raises(EngineError, match="engine file differs"):
        open_manifest(engine, full=True)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Three engines, oldest first: a/cpu/int8, a/cpu/int8_sq, ba/cpu/int8."""
    store = tmp_path / "store"
    for age, (model, precision) in enumerate([("a", "int8"), ("a", "int8_sq"), ("ba", "int8")]):
        path = engine_path(
            store, model=model, profile="cpu", precision=precision, backend="onnxruntime"
        )
        write_engine(path, model=model, precision=precision)
        os.utime(path / "manifest.json", (1000 + age, 1000 + age))
    return store


def test_engines_are_listed_newest_first(store: Path) -> None:
    names = [path.relative_to(store).as_posix() for path in list_engines(store)]
    assert names == [
        "ba/cpu/int8-onnxruntime", "a/cpu/int8_sq-onnxruntime", "a/cpu/int8-onnxruntime",
    ]  # fmt: skip


def test_what_a_build_left_is_no_engine(store: Path) -> None:
    shutil.copytree(store / "a/cpu/int8-onnxruntime", store / "a/cpu/.building-int8-onnxruntime")
    shutil.copytree(store / "a/cpu/int8-onnxruntime", store / ".work/x/y")
    assert len(list_engines(store)) == 3


def test_a_store_that_is_not_there_has_no_engines(tmp_path: Path) -> None:
    assert list_engines(tmp_path / "none") == []
    with pytest.raises(InputError, match="no engine in the store: ") as caught:
        find_engine(tmp_path / "none")
    assert caught.value.hint is not None
    assert "edgekit build" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (None, "ba/cpu/int8-onnxruntime"),
        # an exact path, although it is part of another: "ba/cpu/int8-…"
        ("a/cpu/int8-onnxruntime", "a/cpu/int8-onnxruntime"),
        # a whole word, although it begins another: "int8" and "int8_sq"
        ("a/cpu/int8", "a/cpu/int8-onnxruntime"),
        ("ba", "ba/cpu/int8-onnxruntime"),
        ("int8_sq", "a/cpu/int8_sq-onnxruntime"),
        # any part that only one has
        ("_s", "a/cpu/int8_sq-onnxruntime"),
    ],
)
def test_an_engine_is_found_by_path_and_by_part(
    store: Path, name: str | None, expected: str
) -> None:
    assert find_engine(store, name) == store / expected


def test_an_engine_is_found_by_directory(store: Path, tmp_path: Path) -> None:
    elsewhere = write_engine(tmp_path / "elsewhere")
    assert find_engine(store, str(elsewhere)) == elsewhere


@pytest.mark.parametrize(
    ("name", "message", "listed"),
    [
        ("int8", "matches more than one engine: int8", 2),
        ("cpu", "matches more than one engine: cpu", 3),
        ("fp8", "no engine matches: fp8", 3),
    ],
)
def test_no_match_and_many_are_refused_with_a_list(
    store: Path, name: str, message: str, listed: int
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        find_engine(store, name)
    assert caught.value.hint is not None
    assert caught.value.hint.count("onnxruntime") == listed


def test_a_directory_that_is_no_engine_is_refused(store: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with pytest.raises(EngineError, match="not an engine directory: "):
        find_engine(store, str(tmp_path / "other"))


@pytest.mark.parametrize("model", ["", ".", "..", "../up", "a/b", "/root", ".hidden", "a\0b"])
def test_a_model_whose_name_would_leave_the_store_is_refused(tmp_path: Path, model: str) -> None:
    with pytest.raises(InputError, match="cannot keep an engine under the name"):
        engine_path(tmp_path, model=model, profile="cpu", precision="fp16", backend="onnxruntime")


def test_remove_deletes_the_engine_and_the_parents_it_leaves_empty(store: Path) -> None:
    remove_engine(store / "ba/cpu/int8-onnxruntime", store)
    assert sorted(path.name for path in store.iterdir()) == ["a"]
    remove_engine(store / "a/cpu/int8-onnxruntime", store)
    assert [path.name for path in (store / "a/cpu").iterdir()] == ["int8_sq-onnxruntime"]
    remove_engine(store / "a/cpu/int8_sq-onnxruntime", store)
    assert list(store.iterdir()) == []


def test_remove_leaves_the_directories_above_an_engine_outside_the_store(
    store: Path, tmp_path: Path
) -> None:
    engine = write_engine(tmp_path / "mine" / "engine")
    remove_engine(engine, store)
    assert list((tmp_path / "mine").iterdir()) == []


def test_a_damaged_engine_can_be_removed_but_another_directory_can_not(
    store: Path, tmp_path: Path
) -> None:
    damaged = store / "ba/cpu/int8-onnxruntime"
    (damaged / "manifest.json").write_text("{")
    remove_engine(damaged, store)
    assert not damaged.exists()
    (tmp_path / "photos").mkdir()
    with pytest.raises(EngineError, match="not an engine directory"):
        remove_engine(tmp_path / "photos", store)
    assert (tmp_path / "photos").is_dir()


def test_the_commands_list_show_and_remove(run_cli: Callable[..., Result], store: Path) -> None:
    rows = json.loads(run_cli("engines", "list", "--json", "--store", store).stdout)
    assert [row["model"] for row in rows] == ["ba", "a", "a"]
    shown = json.loads(run_cli("engines", "show", "_sq", "--json", "--store", store).stdout)
    assert shown["engine"] == str(store / "a/cpu/int8_sq-onnxruntime")
    result = run_cli("engines", "rm", "int8_sq", "--store", store)
    assert (result.exit_code, result.stdout) == (0, "")
    assert len(list_engines(store)) == 2


@pytest.mark.parametrize("command", [[], ["list"]])
def test_options_before_and_after_the_subcommand_mean_the_same(
    run_cli: Callable[..., Result], store: Path, command: list[str]
) -> None:
    rows = json.loads(run_cli("engines", "--store", store, "--json", *command).stdout)
    assert len(rows) == 3


def test_remove_takes_the_store_from_before_the_subcommand(
    run_cli: Callable[..., Result], store: Path
) -> None:
    assert run_cli("engines", "--store", store, "rm", "ba").exit_code == 0
    assert len(list_engines(store)) == 2


def test_a_damaged_engine_does_not_hide_the_others(
    run_cli: Callable[..., Result], store: Path
) -> None:
    (store / "ba/cpu/int8-onnxruntime/manifest.json").write_text("{")
    result = run_cli("engines", "list", "--json", "--store", store)
    assert result.exit_code == 0
    assert len(json.loads(result.stdout)) == 2
    assert "unreadable manifest " in result.stderr
    text = run_cli("engines", "--store", store)
    assert text.stdout.count("onnxruntime 1.0") == 2


def test_an_empty_store_lists_nothing(run_cli: Callable[..., Result], tmp_path: Path) -> None:
    result = run_cli("engines", "--store", tmp_path / "none")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "build one with `edgekit build`" in result.stderr
    assert json.loads(run_cli("engines", "--store", tmp_path, "--json").stdout) == []


def fill(directory: Path, text: str) -> None:
    (directory / "file").write_text(text)


def test_a_directory_appears_whole(tmp_path: Path) -> None:
    final = tmp_path / "a" / "b" / "engine"
    with scratch_directory(final) as scratch:
        fill(scratch, "new")
        assert not final.exists()
    assert (final / "file").read_text() == "new"
    assert [path.name for path in final.parent.iterdir()] == ["engine"]


def test_a_failed_body_leaves_nothing_not_even_the_directories_above(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), scratch_directory(tmp_path / "a" / "b" / "engine") as s:
        fill(s, "half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_failed_body_leaves_what_was_there(tmp_path: Path) -> None:
    final = tmp_path / "engine"
    with scratch_directory(final) as scratch:
        fill(scratch, "old")
    with pytest.raises(RuntimeError), scratch_directory(final) as scratch:
        fill(scratch, "half")
        raise RuntimeError
    assert (final / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["engine"]


def test_a_directory_is_replaced(tmp_path: Path) -> None:
    final = tmp_path / "engine"
    for text in ("old", "new"):
        with scratch_directory(final) as scratch:
            assert list(scratch.iterdir()) == []
            fill(scratch, text)
            assert not final.exists() or (final / "file").read_text() == "old"
    assert (final / "file").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["engine"]


def test_a_replacement_that_cannot_move_in_gives_the_old_one_back(tmp_path: Path) -> None:
    final = tmp_path / "engine"
    with scratch_directory(final) as scratch:
        fill(scratch, "old")
    with pytest.raises(FileNotFoundError), scratch_directory(final) as scratch:
        shutil.rmtree(scratch)  # the last rename has nothing to move
    assert (final / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["engine"]


def test_leftovers_of_a_killed_build_do_not_reach_the_next(tmp_path: Path) -> None:
    left = tmp_path / ".building-engine"
    left.mkdir()
    fill(left, "of the killed one")
    with scratch_directory(tmp_path / "engine") as scratch:
        assert list(scratch.iterdir()) == []
    assert [path.name for path in tmp_path.iterdir()] == ["engine"]


def test_a_file_where_a_directory_must_be_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("of the user")
    for final in (tmp_path / "file", tmp_path / "file" / "engine", tmp_path / "file" / "a" / "b"):
        refused = pytest.raises(StorageError, match="a file is where a directory must be")
        with refused, scratch_directory(final):
            pytest.fail("there is nowhere to write")
    assert (tmp_path / "file").read_text() == "of the user"


def test_remove_scratch_deletes_leftovers_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / ".building-engine").mkdir()
    fill(tmp_path / ".building-engine", "half")
    (tmp_path / ".building-note.json").write_text("half")
    (tmp_path / "engine").mkdir()
    (tmp_path / "building").mkdir()
    removed = remove_scratch(tmp_path)
    assert sorted(path.name for path in removed) == [".building-engine", ".building-note.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["building", "engine"]


def test_remove_scratch_gives_a_moved_aside_engine_back(tmp_path: Path) -> None:
    # killed between the two renames: the old one aside, the new one complete but not in place
    for name, text in ((".building-old-engine", "old"), (".building-engine", "new")):
        (tmp_path / name).mkdir()
        fill(tmp_path / name, text)
    remove_scratch(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["engine"]
    assert (tmp_path / "engine" / "file").read_text() == "old"


def test_remove_scratch_drops_a_moved_aside_engine_that_was_replaced(tmp_path: Path) -> None:
    # killed after the second rename
    for name, text in ((".building-old-engine", "old"), ("engine", "new")):
        (tmp_path / name).mkdir()
        fill(tmp_path / name, text)
    remove_scratch(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["engine"]
    assert (tmp_path / "engine" / "file").read_text() == "new"


def test_remove_scratch_of_nothing_does_nothing(tmp_path: Path) -> None:
    assert remove_scratch(tmp_path / "none") == []


def test_write_beside_replaces_a_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "note.json"
    write_beside(path, "old")
    write_beside(path, "Ω")
    assert path.read_text(encoding="utf-8") == "Ω"
    assert [found.name for found in tmp_path.iterdir()] == ["note.json"]


def test_write_beside_that_fails_leaves_the_old_text(tmp_path: Path) -> None:
    path = tmp_path / "note.json"
    write_beside(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_beside(path, "\ud800")
    assert path.read_text() == "old"
    assert [found.name for found in tmp_path.iterdir()] == ["note.json"]


def test_sha256_file_is_that_of_the_standard(tmp_path: Path) -> None:
    # FIPS 180-2, appendix B.1
    (tmp_path / "abc").write_text("abc")
    assert sha256_file(tmp_path / "abc") == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )


def test_only_an_engine_is_removed_outside_the_store(tmp_path: Path) -> None:
    other = tmp_path / "extension"
    other.mkdir()
    (other / "manifest.json").write_text('{"name": "something else"}')
    with pytest.raises(EngineError):
        remove_engine(other, tmp_path / "engines")
    assert (other / "manifest.json").exists()


def test_a_question_is_not_taken_for_a_path(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no engine"):
        find_engine(tmp_path, "why is the sky blue? " * 40)
