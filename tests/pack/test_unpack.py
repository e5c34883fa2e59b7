"""`edgekit unpack`: every byte is as it was packed, or nothing is left."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit.errors import EdgekitError, EngineError, InputError, StaleEngineError, StorageError
from edgekit.pack import pack, pack_to, unpack
from edgekit.pack.index import MAX_INDEX_BYTES, PackIndex, member_header, padding
from tests.pack.conftest import FILES, contents, entry, forge, left, write_engine

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

Run = Callable[..., Result]
PLACE = "tiny/cpu/int8-onnxruntime"
EDGEKIT = [sys.executable, "-c", "from edgekit.cli import main; main(prog_name='edgekit')"]


@pytest.fixture
def file(engine: Path, tmp_path: Path) -> Path:
    pack_to(engine, tmp_path / "pack.tar.zst")
    return tmp_path / "pack.tar.zst"


def unpack_bytes(data: bytes, store: Path, **options: Any) -> Path:
    return unpack(io.BytesIO(data), "pack", store=store, **options).path


@pytest.mark.parametrize("way", ["file", "pipe"])
def test_what_arrives_is_what_was_packed(
    way: str, engine: Path, file: Path, store: Path, run_cli: Run
) -> None:
    if way == "file":
        result = run_cli("unpack", file, "--store", store, "--json")
        assert result.exit_code == 0, result.stderr
        data = json.loads(result.stdout)
        assert (data["kind"], data["was_there"]) == ("engine", False)
        arrived = Path(data["path"])
    else:
        pipe = io.BytesIO()
        pack(engine, pipe)
        arrived = unpack_bytes(pipe.getvalue(), store)
    assert arrived == store / PLACE
    assert contents(arrived) == contents(engine)
    assert {name for name in left(store) if "building" in name} == set()
    assert run_cli("engines", "--store", store).stdout.startswith(str(arrived))


def test_a_stage_says_how_to_go_on(stage: Path, store: Path, tmp_path: Path, run_cli: Run) -> None:
    pack_to(stage, tmp_path / "stage.tar.zst")
    result = run_cli("unpack", tmp_path / "stage.tar.zst", "--store", store)
    assert contents(store / f"{PLACE}.stage") == contents(stage)
    assert f"next: edgekit compile {store / PLACE}.stage" in result.stdout


def test_what_is_there_already_is_not_written_again(file: Path, store: Path, run_cli: Run) -> None:
    assert run_cli("unpack", file, "--store", store).exit_code == 0
    before = (store / PLACE / "manifest.json").stat().st_ino
    again = run_cli("unpack", file, "--store", store)
    assert (again.exit_code, "is there already" in again.stderr) == (0, True)
    assert (store / PLACE / "manifest.json").stat().st_ino == before


def test_another_engine_is_replaced_only_by_force(
    file: Path, store: Path, engine: Path, run_cli: Run
) -> None:
    write_engine(store / PLACE, {**FILES, "backend/other": b"of another build"})
    other = contents(store / PLACE)
    refused = run_cli("unpack", file, "--store", store)
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "something else lies there" in refused.stderr
    assert contents(store / PLACE) == other
    assert run_cli("unpack", file, "--store", store, "--force").exit_code == 0
    assert contents(store / PLACE) == contents(engine)


@pytest.mark.parametrize("force", [False, True])
def test_what_is_no_engine_is_never_replaced(force: bool, file: Path, tmp_path: Path) -> None:
    out = tmp_path / "home"
    out.mkdir()
    (out / "letter.txt").write_text("of the user")
    with file.open("rb") as stream, pytest.raises(InputError, match="that is no engine"):
        unpack(stream, "pack", store=tmp_path / "store", out=out, force=force)
    assert contents(out) == {"letter.txt": b"of the user"}


def test_a_damaged_engine_in_its_place_is_not_taken_for_the_same(
    file: Path, store: Path, engine: Path
) -> None:
    shutil.copytree(engine, store / PLACE)
    (store / PLACE / "backend" / "model.data").write_bytes(bytes(500_000))
    with file.open("rb") as stream, pytest.raises(InputError, match="something else lies there"):
        unpack(stream, "pack", store=store)
    with file.open("rb") as stream:
        assert not unpack(stream, "pack", store=store, force=True).was_there
    assert contents(store / PLACE) == contents(engine)


def test_it_goes_where_it_is_told(file: Path, engine: Path, tmp_path: Path, store: Path) -> None:
    out = tmp_path / "by" / "hand"
    with file.open("rb") as stream:
        unpack(stream, "pack", store=store, out=out)
    assert contents(out) == contents(engine)
    assert not store.exists()


@pytest.mark.parametrize("share", [0.0, 1e-6, 0.001, 0.01, 0.5, 0.999, 1.0])
def test_a_file_that_is_cut_off_says_how_many_bytes_are_missing(
    share: float, file: Path, store: Path, run_cli: Run
) -> None:
    data = file.read_bytes()
    kept = min(int(share * len(data)), len(data) - 1)
    file.write_bytes(data[:kept])
    result = run_cli("unpack", file, "--store", store)
    assert (result.exit_code, result.stdout) == (5, "")
    if kept > 2_500:  # the index is there
        told = f"{kept} of {len(data)} bytes are here, {len(data) - kept} are missing"
        assert told in result.stderr
    else:
        assert "the pack ends before its index does" in result.stderr
    assert not left(store)
    assert file.read_bytes() == data[:kept]
    file.write_bytes(data)  # the rest has come
    assert run_cli("unpack", file, "--store", store).exit_code == 0


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_pipe_that_ends_early_leaves_nothing(
    data: st.DataObject, engine: Path, store: Path
) -> None:
    pipe = io.BytesIO()
    pack(engine, pipe)
    whole = pipe.getvalue()
    kept = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(EngineError, match=r"is cut off in|ends before"):
        unpack_bytes(whole[:kept], store)
    assert not left(store)


def test_a_copy_that_went_on_at_the_wrong_place_is_found(
    file: Path, store: Path, run_cli: Run
) -> None:
    data = file.read_bytes()
    file.write_bytes(data + data[-1000:])
    result = run_cli("unpack", file, "--store", store)
    assert result.exit_code == 5
    assert "1000 too many" in result.stderr
    file.write_bytes(data[:100_000] + data[99_000:-1000])
    assert run_cli("unpack", file, "--store", store).exit_code == 5
    with pytest.raises(EngineError, match="not written by `edgekit pack`, from byte"):
        unpack_bytes(data + b"more", store)
    assert not left(store)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_flipped_bit_is_found_or_changes_nothing(
    data: st.DataObject, file: Path, engine: Path, store: Path
) -> None:
    """A frame can be described in more than one way: only what comes out of it counts."""
    changed = bytearray(file.read_bytes())
    place = data.draw(st.one_of(st.integers(0, len(changed) - 1), st.integers(0, 4_000)))
    changed[place] ^= 1 << data.draw(st.integers(0, 7))
    try:
        arrived = unpack_bytes(bytes(changed), store, size_bytes=len(changed))
    except EngineError:
        assert not left(store)
    else:
        assert contents(arrived) == contents(engine)
        shutil.rmtree(store)


def test_every_bit_of_the_index_counts(file: Path, store: Path) -> None:
    data = file.read_bytes()
    start = data.index(b'"sha256"')
    for bit in range(8 * 80):
        changed = bytearray(data)
        changed[start + bit // 8] ^= 1 << bit % 8
        with pytest.raises(EngineError):
            unpack_bytes(bytes(changed), store)


MANIFEST = entry("manifest.json", b"{}")
TRICKS = [
    "../escaped", "backend/../../escaped", "/etc/escaped", "//server/escaped", "C:/escaped",
    "c:escaped", "backend\\..\\escaped", "", ".", "backend//x", "backend/", "./x", "a\0b", "a\nb",
    "x:stream", "a.", "a ", "\ud800", "a" * 256, "/".join(["a" * 200] * 6), 7, None, ["x"],
]  # fmt: skip


@pytest.mark.parametrize("path", TRICKS, ids=repr)
def test_a_path_that_leads_elsewhere_is_refused(path: object, store: Path, tmp_path: Path) -> None:
    before = set(tmp_path.rglob("*"))
    files = sorted([entry(path), MANIFEST], key=lambda each: str(each["path"]))
    with pytest.raises(EngineError, match="the index of the pack"):
        unpack_bytes(forge({"files": files}, {}), store)
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "place",
    ["../../x", "/a/b/c", "a/b", "a/b/c/d", "a/../c", "a/.work/c", ".work/b/c", "a/b/c:d", "", 3],
)
def test_a_place_outside_the_store_is_refused(place: object, store: Path) -> None:
    with pytest.raises(EngineError, match=r"no place in a store|the index of the pack"):
        unpack_bytes(forge({"files": [MANIFEST], "place": place}), store)


@pytest.mark.parametrize(
    "paths",
    [
        ["a", "a"], ["a", "A"], ["a", "a/b"], ["a/b", "A/c"], ["b", "a"],
        ["gr\u00f6\u00dfe", "gro\u0308\u00dfe"], ["stra\u00dfe", "strasse"],
        ["\u212b", "\u00c5"],
    ],
)  # fmt: skip
def test_names_that_some_systems_take_for_one_are_refused(paths: list[str], store: Path) -> None:
    files = [*(entry(path) for path in paths), MANIFEST]
    if paths != ["b", "a"]:
        files.sort(key=lambda each: each["path"])
    with pytest.raises(EngineError, match=r"for one|there twice"):
        unpack_bytes(forge({"files": files}), store)


def member(name: str, **changes: Any) -> bytes:
    info = tarfile.TarInfo(name)
    for key, value in changes.items():
        setattr(info, key, value)
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    "header",
    [
        member("backend/x", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        member("backend/x", type=tarfile.LNKTYPE, linkname="../../outside"),
        member("backend/x", type=tarfile.DIRTYPE),
        member("backend/x", type=tarfile.CHRTYPE, devmajor=1, devminor=3),
        member("backend/x", type=tarfile.FIFOTYPE),
        member("backend/x", type=tarfile.GNUTYPE_SPARSE, size=4),
        member("backend/x", type=tarfile.XHDTYPE, size=4),
        member("backend/x", size=5),
        member("../x", size=4),
        member("backend/x", size=4, mode=0o4755),
    ],
)
def test_an_archive_that_says_other_things_than_its_index_is_refused(
    header: bytes, store: Path
) -> None:
    files = {"backend/x": b"data", "manifest.json": b"{}"}
    entries = [entry(name, data) for name, data in files.items()]
    with pytest.raises(EngineError, match="damaged in backend/x"):
        unpack_bytes(forge({"files": entries}, files, {"backend/x": header}), store)
    assert not left(store)


def test_an_index_that_lies_about_the_manifest_is_refused(engine: Path, store: Path) -> None:
    files = dict(sorted(contents(engine).items()))
    entries = [entry(name, data) for name, data in files.items()]
    assert unpack_bytes(forge({"files": entries}, files), store)
    shutil.rmtree(store)
    for changes in ({"place": "other/cpu/int8-onnxruntime"}, {"kind": "stage"}):
        with pytest.raises(EngineError):
            unpack_bytes(forge({"files": entries, **changes}, files), store)
    files |= {"backend/added": b"more"}
    files = dict(sorted(files.items()))
    entries = [entry(name, data) for name, data in files.items()]
    with pytest.raises(EngineError, match="the index and the manifest of the pack differ"):
        unpack_bytes(forge({"files": entries}, files), store)
    assert not left(store)


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"format": 2}, StaleEngineError, "has format 2, this edgekit reads 1"),
        ({"format": None}, StaleEngineError, "has format None"),
        ({"kind": "wheel"}, EngineError, "unknown kind 'wheel'"),
        ({"surprise": 1}, EngineError, "surprise"),
        ({"files": []}, EngineError, "no manifest.json"),
        ({"files": [entry("manifest.json", size_bytes=-1)]}, EngineError, "no size"),
        ({"files": [entry("manifest.json", size_bytes=1.0)]}, EngineError, "no size"),
        ({"files": [entry("manifest.json", size_bytes=True)]}, EngineError, "no size"),
        ({"files": [entry("manifest.json", sha256="x")]}, EngineError, "no digest"),
        ({"files": {"manifest.json": 1}}, EngineError, "the index of the pack"),
        ({"packed_bytes": 10**30}, EngineError, "no size"),
        ({"files": [entry("manifest.json", size_bytes=2**60)]}, StorageError, "are free on"),
    ],
)
def test_an_index_that_is_none_is_refused(
    changes: dict[str, Any], kind: type[EdgekitError], message: str, store: Path
) -> None:
    with pytest.raises(kind, match=message):
        unpack_bytes(forge({"files": [MANIFEST], **changes}), store)
    assert not left(store)


_VALUES: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["path", "size_bytes", "sha256", "x"]), inner, max_size=4)
    ),
    max_leaves=8,
)
_FIELDS = ["format", "edgekit_version", "kind", "model", "place", "packed_bytes", "files"]


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(changes=st.dictionaries(st.sampled_from(_FIELDS), _VALUES, min_size=1, max_size=3))
def test_no_index_is_too_strange(changes: dict[str, Any], store: Path) -> None:
    files = changes.pop("files", [MANIFEST])
    try:
        data = forge({"files": files, **changes})
    except (ValueError, TypeError):
        return
    with pytest.raises((EngineError, StorageError)):
        unpack_bytes(data, store)
    assert not left(store)


@settings(max_examples=300, deadline=None)
@given(text=st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_no_text_is_too_strange_for_an_index(text: bytes) -> None:
    with pytest.raises(EngineError):
        PackIndex.from_bytes(text, "pack")


@pytest.mark.parametrize("text", [b"[" * 100_000, b'{"format": ' + b"9" * 5000 + b"}", b"\xff"])
def test_json_that_breaks_parsers_does_not_break_this_one(text: bytes) -> None:
    with pytest.raises(EngineError):
        PackIndex.from_bytes(text, "pack")


def frame(data: bytes, window_log: int) -> bytes:
    parameter = zstd.CompressionParameter
    options = {int(parameter.compression_level): 1, int(parameter.window_log): window_log}
    compressor = zstd.ZstdCompressor(options=options)
    return compressor.compress(data) + compressor.flush()


def test_a_frame_may_not_make_the_reader_hold_much(store: Path) -> None:
    files = {"manifest.json": b"{}"}
    data = forge({"files": [entry("manifest.json", b"{}")]})
    whole = member_header("manifest.json", 2) + files["manifest.json"] + padding(2)
    index = data[: data.index(b"\x28\xb5\x2f\xfd", 4)]
    with pytest.raises(EngineError, match="damaged at about byte"):
        unpack_bytes(index + frame(whole, 27), store)
    with pytest.raises(EngineError, match=r"is cut off in the end|unreadable|format"):
        unpack_bytes(index + frame(whole, 20), store)


def test_a_bomb_is_not_inflated(store: Path) -> None:
    """A gigabyte of zeros where the index says two bytes: no more than a piece is looked at."""
    data = forge({"files": [entry("manifest.json", b"{}")]})
    index = data[: data.index(b"\x28\xb5\x2f\xfd", 4)]
    bomb = frame(bytes(2**26), 20) * 16
    tracemalloc.start()
    with pytest.raises(EngineError, match=r"damaged in manifest\.json"):
        unpack_bytes(index + bomb, store)
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()
    huge = frame(member_header("edgekit-pack.json", MAX_INDEX_BYTES + 1), 20)
    with pytest.raises(EngineError, match="not written by `edgekit pack`"):
        unpack_bytes(huge, store)


@pytest.mark.parametrize(
    "data",
    [b"PK\x03\x04", b"\x1f\x8b" + bytes(100), b"#!/bin/sh\n", frame(bytes(10_000), 20),
     b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd"],
)  # fmt: skip
def test_another_file_is_known_as_such(data: bytes, store: Path) -> None:
    with pytest.raises(EngineError, match="not written by `edgekit pack`"):
        unpack_bytes(data, store)


def test_too_little_space_is_said_before_anything_is_written(
    file: Path, store: Path, run_cli: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(file)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100_000))
    result = run_cli("unpack", file, "--store", store)
    assert result.exit_code == StorageError.exit_code
    assert "unpacking takes" in result.stderr
    assert "97.66 KiB are free on the disk of:" in result.stderr
    assert not left(store)


def start_half(data: bytes, store: Path) -> subprocess.Popen[bytes]:
    """An `unpack` that has had half of a pack from a pipe, and waits for the rest."""
    process = subprocess.Popen(
        [*EDGEKIT, "unpack", "-", "--store", str(store)],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None
    process.stdin.write(data[: len(data) // 2])
    process.stdin.flush()
    scratch = store / "tiny" / "cpu" / ".building-int8-onnxruntime"
    deadline = time.monotonic() + 60
    while not scratch.is_dir() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert scratch.is_dir()
    return process


def test_one_that_was_killed_starts_again_and_leaves_nothing_of_the_first(
    file: Path, store: Path, engine: Path, run_cli: Run
) -> None:
    process = start_half(file.read_bytes(), store)
    process.kill()
    process.communicate()
    assert not (store / PLACE).exists()
    assert run_cli("unpack", file, "--store", store).exit_code == 0
    assert contents(store / PLACE) == contents(engine)
    assert not [name for name in left(store) if "building" in name]


def test_ctrl_c_and_a_lost_sender_leave_nothing(file: Path, store: Path) -> None:
    process = start_half(file.read_bytes(), store)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert (process.returncode, err.decode().strip()) == (130, "interrupted")
    assert not left(store)
    process = start_half(file.read_bytes(), store)
    _, err = process.communicate()
    assert process.returncode == 5
    assert b"stdin is cut off in" in err
    assert not left(store)


def test_two_at_once_do_not_disturb_each_other(file: Path, store: Path, run_cli: Run) -> None:
    process = start_half(file.read_bytes(), store)
    second = run_cli("unpack", file, "--store", store)
    assert (second.exit_code, "another build is running" in second.stderr) == (2, True)
    data = file.read_bytes()
    _, err = process.communicate(data[len(data) // 2 :])
    assert process.returncode == 0, err.decode()


@pytest.mark.slow
def test_two_gigabytes(tmp_path: Path, store: Path) -> None:
    """Packed, killed on the way, cut off, one bit flipped: found, and nothing is left."""
    engine, block = tmp_path / "engine", os.urandom(2**26)
    (engine / "backend").mkdir(parents=True)
    with (engine / "backend" / "model.data").open("wb") as data:
        for _ in range(32):
            data.write(block)
    write_engine(engine, {"tokenizer/tokenizer.json": b"{}"})
    file = tmp_path / "pack.tar.zst"
    done = pack_to(engine, file)
    shutil.rmtree(engine)
    size = file.stat().st_size
    assert done.packed_bytes == size > 2**31

    process = subprocess.Popen(
        [*EDGEKIT, "unpack", str(file), "--store", str(store)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    written = store / "tiny" / "cpu" / ".building-int8-onnxruntime" / "backend" / "model.data"
    while not written.exists() or written.stat().st_size < 2**28:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (store / PLACE).exists()

    with file.open("r+b") as stream:
        stream.seek(-12_345, os.SEEK_END)
        tail = stream.read()
        stream.seek(0)
        os.truncate(file, size - 12_345)
        with pytest.raises(EngineError, match=f"of {size} bytes are here, 12345 are missing"):
            unpack(stream, "pack", store=store, size_bytes=size - 12_345)
    assert written.exists()  # of the one that was killed: the index is read first
    with file.open("r+b") as stream:
        stream.seek(0, os.SEEK_END)
        stream.write(tail)
        stream.seek(size // 2)
        byte = stream.read(1)[0]
        stream.seek(size // 2)
        stream.write(bytes([byte ^ 1]))
        stream.seek(0)
        with pytest.raises(EngineError, match=r"damaged in backend/model\.data"):
            unpack(stream, "pack", store=store, size_bytes=size)
    assert not contents(store / "tiny")  # but for the directories of the one that was killed
