"""When an engine that is there already is taken for the one that was asked for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from edgekit.backends import Backend, find_backend
from edgekit.engine import MANIFEST_FILE, STAGE_FILE, Manifest
from edgekit.errors import StaleEngineError
from edgekit.pipeline import _same_engine

KEY = "a" * 64


class Bound:
    """A backend whose engines open where `gpu` is theirs."""

    def __init__(self, gpu: str) -> None:
        self.gpu = gpu

    def __getattr__(self, name: str) -> Any:
        return getattr(find_backend("onnxruntime"), name)

    def require_here(self, recorded: Mapping[str, Any], engine: Path) -> None:
        if recorded["gpu"] != self.gpu:
            raise StaleEngineError(f"{engine.name} is of a {recorded['gpu']}")


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    (tmp_path / "backend").mkdir()
    (tmp_path / "backend" / "llm.engine").write_bytes(b"plan")
    manifest = Manifest(
        model="m", checkpoint_sha256="0" * 64, precision="fp16", kv_precision="fp16", profile="p",
        backend={"name": "b", "version": "1"}, context_tokens=8, batch=1, plan={},
        device={"gpu": "Thor"}, build_key=KEY,
    ).sealed(tmp_path)  # fmt: skip
    manifest.write(tmp_path)
    manifest.write(tmp_path, file=STAGE_FILE)
    return tmp_path


def same(engine: Path, backend: Any, key: str = KEY, file: str = MANIFEST_FILE) -> bool:
    asked: Backend = backend
    return _same_engine(engine, key, asked, file) is not None


def test_the_same_inputs_are_the_same_engine(engine: Path) -> None:
    assert same(engine, find_backend("onnxruntime"))
    assert same(engine, Bound("Thor"))


def test_other_inputs_or_a_damaged_file_are_another(engine: Path) -> None:
    assert not same(engine, Bound("Thor"), "b" * 64)
    (engine / "backend" / "llm.engine").write_bytes(b"pla")
    assert not same(engine, Bound("Thor"))
    assert not same(engine / "nowhere", Bound("Thor"))


def test_what_was_compiled_on_another_device_is_built_again(engine: Path) -> None:
    assert not same(engine, Bound("Orin"))


def test_a_stage_is_of_no_device(engine: Path) -> None:
    assert same(engine, Bound("Orin"), file=STAGE_FILE)
