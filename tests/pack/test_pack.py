"""`edgekit pack`: one file, the same for the same engine, of nothing that is damaged."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import Result

from edgekit.errors import EngineError
from edgekit.pack import pack, pack_to
from edgekit.pack.frames import FrameReader, stored_frame
from edgekit.pack.index import BLOCK_BYTES, PackIndex, make_index, member_header
from tests.pack.conftest import FILES, LONG_NAME, contents, set_all_times, write_engine

Run = Callable[..., Result]


def packed(directory: Path, out: Path) -> bytes:
    pack_to(directory, out)
    return out.read_bytes()


def archive(data: bytes) -> tarfile.TarFile:
    reader, parts = FrameReader(io.BytesIO(data), "pack"), []
    while part := reader.read(1 << 20):
        parts.append(part)
    return tarfile.open(fileobj=io.BytesIO(b"".join(parts)))


def test_the_same_engine_gives_the_same_file(engine: Path, tmp_path: Path) -> None:
    first = packed(engine, tmp_path / "first")
    copied = tmp_path / "elsewhere" / "copy"
    shutil.copytree(engine, copied)
    set_all_times(copied)
    assert packed(copied, tmp_path / "second") == first


def test_a_pipe_gets_the_same_but_for_the_length_that_is_not_known(
    engine: Path, tmp_path: Path
) -> None:
    whole, pipe = packed(engine, tmp_path / "file"), io.BytesIO()
    done = pack(engine, pipe)
    assert done.packed_bytes == len(whole) == len(pipe.getvalue())
    assert (done.index.packed_bytes, pack(engine, io.BytesIO()).index) == (None, done.index)
    different = [a != b for a, b in zip(whole, pipe.getvalue(), strict=True)]
    text = len(stored_frame(member_header("x", 0) + done.index.to_bytes()))
    assert any(different)
    assert not any(different[text:])


def test_any_tar_reads_it_and_the_index_comes_first(engine: Path, tmp_path: Path) -> None:
    data = packed(engine, tmp_path / "pack.tar.zst")
    with archive(data) as tar:
        first, *members = tar.getmembers()
        assert first.name == "edgekit-pack.json"
        held = {member.name: tar.extractfile(member) for member in members}
        assert {n: f.read() for n, f in held.items() if f} == contents(engine)
        file = tar.extractfile(first)
        assert file is not None
        index = json.loads(file.read())
    assert all((m.mtime, m.uid, m.gid, m.uname, m.mode) == (0, 0, 0, "", 0o644) for m in members)
    assert [entry["path"] for entry in index["files"]] == [m.name for m in members]
    assert index["packed_bytes"] == len(data)
    assert (index["kind"], index["place"]) == ("engine", "tiny/cpu/int8-onnxruntime")


@pytest.mark.skipif(shutil.which("zstd") is None, reason="zstd is not installed")
def test_the_system_s_own_tools_unpack_it(engine: Path, tmp_path: Path) -> None:
    packed(engine, tmp_path / "pack.tar.zst")
    out = tmp_path / "out"
    out.mkdir()
    command = ["tar", "--zstd", "-xf", str(tmp_path / "pack.tar.zst"), "-C", str(out)]
    subprocess.run(command, check=True)
    held = contents(out)
    assert held.pop("edgekit-pack.json")
    assert held == contents(engine)


def test_headers_are_the_same_bytes_in_every_python() -> None:
    """What one version wrote another one compares byte by byte."""
    headers = [member_header(name, size) for name, size in (
        ("backend/model.data", 5), ("größe", 0), (LONG_NAME, 2**33 + 1),
    )]  # fmt: skip
    assert [len(header) // BLOCK_BYTES for header in headers] == [1, 1, 3]
    digest = hashlib.sha256(b"".join(headers)).hexdigest()
    assert digest == "88340791aaef821f71c8268f307815750345ae9df02d541fe45d9a8c0dceb038"
    with tarfile.open(fileobj=io.BytesIO(headers[-1]), mode="r|") as tar:
        member = tar.next()
    assert member is not None
    assert (member.name, member.size) == (LONG_NAME, 2**33 + 1)


@pytest.mark.parametrize("name", ["backend/model.data", "tokenizer/tokenizer.json"])
def test_a_damaged_engine_is_found_while_it_is_packed(
    engine: Path, tmp_path: Path, name: str
) -> None:
    data = bytearray(FILES[name])
    data[len(data) // 2] ^= 1
    (engine / name).write_bytes(data)
    out = tmp_path / "out" / "pack"
    out.parent.mkdir()
    with pytest.raises(EngineError, match=f"differs from what was built: .*{name}"):
        pack_to(engine, out)
    assert not list(out.parent.iterdir())


def test_a_pack_that_fails_leaves_the_one_before(engine: Path, tmp_path: Path) -> None:
    before = packed(engine, tmp_path / "pack")
    (engine / "backend" / "model.data").write_bytes(b"short")
    with pytest.raises(EngineError, match="has 5 bytes, the manifest says 500000"):
        pack_to(engine, tmp_path / "pack", force=True)
    assert (tmp_path / "pack").read_bytes() == before


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("backend/a:b", "some systems refuse"),
        ("backend/a\\b", "some systems refuse"),
        ("backend/a\nb", "a control character"),
        ("backend/a ", "ends with a dot or a space"),
        ("Backend/model.data", "for one"),
        ("backend/Model.data", "for one"),
        ("backend/gro\u0308ße.json", "for one"),
    ],
)
def test_names_that_another_system_cannot_hold_are_refused(
    tmp_path: Path, name: str, reason: str
) -> None:
    engine = write_engine(tmp_path / "engine", {**FILES, name: b""})
    with pytest.raises(EngineError, match=f"cannot be carried to every machine: .*{reason}"):
        pack(engine, io.BytesIO())


def test_the_command_names_the_file_and_says_what_is_in_it(
    engine: Path, run_cli: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run_cli("pack", engine)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("tiny-cpu-int8-onnxruntime.tar.zst\n  engine tiny/cpu/int8")
    again = run_cli("pack", "--store", tmp_path / "here")
    assert (again.exit_code, again.stdout) == (2, "")
    assert "there is something already: tiny-cpu-int8-onnxruntime.tar.zst" in again.stderr
    told = run_cli("pack", "int8", "--store", tmp_path / "here", "--force", "--json")
    data = json.loads(told.stdout)
    file = tmp_path / data["file"]
    assert (data["packed_bytes"], data["content_bytes"]) == (
        file.stat().st_size,
        sum(len(content) for content in contents(engine).values()),
    )


def test_a_stage_is_packed_by_its_directory_or_its_name(
    stage: Path, engine: Path, run_cli: Run, tmp_path: Path
) -> None:
    for name in (str(stage), "tiny/cpu/int8-onnxruntime.stage", "int8-onnxruntime.stage"):
        out = tmp_path / "stage.tar.zst"
        result = run_cli("pack", name, "--store", tmp_path / "here", "-o", out, "--force", "--json")
        assert json.loads(result.stdout)["kind"] == "stage", result.stderr
    other = run_cli("pack", "int8-onnx.stage", "--store", tmp_path / "here")
    assert other.exit_code == 2
    assert "stages are tiny/cpu/int8-onnxruntime.stage" in other.stderr


def test_what_cannot_be_packed_is_one_sentence(run_cli: Run, tmp_path: Path, engine: Path) -> None:
    nothing = run_cli("pack", tmp_path, "-o", tmp_path / "x")
    assert (nothing.exit_code, nothing.stdout) == (5, "")
    assert "not an engine directory" in nothing.stderr
    both = run_cli("pack", engine, "-o", "-", "--json")
    assert (both.exit_code, both.stdout) == (2, "")
    away = run_cli("pack", engine, "-o", tmp_path / "no" / "directory")
    assert away.exit_code == 2
    assert "no such directory" in away.stderr


def test_two_processes_and_a_pipe(engine: Path, store: Path) -> None:
    code = "from edgekit.cli import main; main(prog_name='edgekit')"
    edgekit = [sys.executable, "-c", code]
    sender = subprocess.Popen([*edgekit, "pack", str(engine), "-o", "-"], stdout=subprocess.PIPE)
    done = subprocess.run(
        [*edgekit, "unpack", "-", "--store", str(store)],
        stdin=sender.stdout, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert sender.stdout is not None
    sender.stdout.close()
    assert (sender.wait(), done.returncode) == (0, 0), done.stderr
    assert contents(store / "tiny" / "cpu" / "int8-onnxruntime") == contents(engine)


def test_an_index_is_as_long_whatever_the_length_is(engine: Path) -> None:
    from edgekit.engine import read_manifest

    index = make_index(read_manifest(engine), "engine", (engine / "manifest.json").read_bytes())
    texts = [replace(index, packed_bytes=size).to_bytes() for size in (None, 0, 1, 10**9, 2**60)]
    assert len({len(text) for text in texts}) == 1
    read = [PackIndex.from_bytes(text, "x") for text in texts]
    assert [each.packed_bytes for each in read] == [None, 0, 1, 10**9, 2**60]
