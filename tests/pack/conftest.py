"""An engine of a few files, whole and sealed, and packs that no `edgekit pack` writes."""

from __future__ import annotations

import io
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgekit.engine import MANIFEST_FILE, STAGE_FILE, Manifest
from edgekit.pack.frames import FrameWriter
from edgekit.pack.index import END, INDEX_FILE, _digest_of, member_header, padding

LONG_NAME = "tokenizer/" + "long-" * 30 + "name.json"  # longer than a header of an archive holds
FILES = {
    "backend/model.data": random.Random(0).randbytes(300_000) + bytes(200_000),
    "backend/empty": b"",
    "backend/größe.json": b"{}",
    LONG_NAME: b"x" * 512,
    "reference/edgekit_reference.npz": random.Random(1).randbytes(5_000),
    "tokenizer/tokenizer.json": json.dumps(list(range(5_000))).encode(),
}


def write_engine(directory: Path, files: dict[str, bytes], *, file: str = MANIFEST_FILE) -> Path:
    for name, data in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    manifest = Manifest(
        model="tiny",
        checkpoint_sha256="0" * 64,
        precision="int8",
        kv_precision="fp16",
        profile="cpu",
        backend={"name": "onnxruntime", "version": "1.32.0"},
        context_tokens=256,
        batch=1,
        plan={"devices": ["cpu"]},
        device={},
        build_key="key",
    )
    manifest.sealed(directory).write(directory, file=file)
    return directory


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    return write_engine(tmp_path / "here" / "tiny" / "cpu" / "int8-onnxruntime", FILES)


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    place = tmp_path / "here" / "tiny" / "cpu" / "int8-onnxruntime.stage"
    return write_engine(place, {"source/model.onnx": b"graph"}, file=STAGE_FILE)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "there"


def contents(directory: Path) -> dict[str, bytes]:
    """Every file below a directory; none where there is none."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def left(store: Path) -> set[str]:
    """What is below a store, but for its lock."""
    names = {path.relative_to(store).as_posix() for path in store.rglob("*")}
    return names - {".work", ".work/lock"}


Forge = Callable[..., bytes]


def forge(
    changes: dict[str, Any],
    files: dict[str, bytes] | None = None,
    headers: dict[str, bytes] | None = None,
) -> bytes:
    """A pack whose index is sealed as it should be, but says `changes`; with these contents, and
    with other headers than follow from the index."""
    entries = changes.get("files") or []
    data: dict[str, Any] = {
        "format": 1, "edgekit_version": "0", "kind": "engine", "model": "tiny", "profile": "cpu",
        "precision": "int8", "backend": "onnxruntime", "place": "tiny/cpu/int8-onnxruntime",
        "packed_bytes": None, "files": entries, **changes,
    }  # fmt: skip
    data["index_sha256"] = _digest_of(data)
    text = json.dumps(data, indent=1, sort_keys=True).encode()
    longest = json.dumps({**data, "packed_bytes": 2**60}, indent=1, sort_keys=True)
    text = text.ljust(len(longest)) + b"\n"
    out = io.BytesIO()
    writer = FrameWriter(out)
    writer.store(member_header(INDEX_FILE, len(text)) + text + padding(len(text)))
    for name, content in (files or {}).items():
        header = (headers or {}).get(name) or member_header(name, len(content))
        writer.write(header + content + padding(len(content)))
        writer.end_frame()
    writer.write(END)
    writer.end_frame()
    return out.getvalue()


def entry(path: object, data: bytes = b"", **changes: Any) -> dict[str, Any]:
    import hashlib

    sha256 = hashlib.sha256(data).hexdigest()
    return {"path": path, "size_bytes": len(data), "sha256": sha256, **changes}


def set_all_times(directory: Path) -> None:
    for path in directory.rglob("*"):
        os.utime(path, (1, 1))
        path.chmod(0o700)
