from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from edgekit.engine import Manifest
from edgekit.errors import EngineError, InputError
from edgekit.runtime import load
from edgekit.runtime.load import load_engine
from edgekit.runtime.sampling import Sampling


class Backend:
    """Notes how it was asked to open an engine."""

    def __init__(self) -> None:
        self.asked: dict[str, Any] = {}
        self.is_closed = False

    def open(self, engine: Path, **options: Any) -> Backend:
        self.asked = {"engine": engine, **options}
        return self

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Backend:
    made = Backend()
    monkeypatch.setattr(load, "find_backend", lambda _: made)
    return made


def write_engine(
    directory: Path, inner: tokenizers.Tokenizer, generation_config: dict[str, Any]
) -> Path:
    (directory / "tokenizer").mkdir()
    (directory / "backend").mkdir()
    inner.save(str(directory / "tokenizer" / "tokenizer.json"))
    (directory / "tokenizer" / "generation_config.json").write_text(json.dumps(generation_config))
    manifest = Manifest(
        model="tiny",
        checkpoint_sha256="",
        precision="fp16",
        kv_precision="fp16",
        profile="cpu",
        backend={"name": "onnxruntime", "version": "0"},
        context_tokens=128,
        batch=1,
        plan={},
        device={},
        build_key="",
    )
    manifest.sealed(directory).write(directory)
    return directory


@pytest.fixture
def engine(byte_level: tokenizers.Tokenizer, tmp_path: Path) -> Path:
    return write_engine(tmp_path, byte_level, {"do_sample": True, "temperature": 0.6})


def test_the_backend_opens_its_own_directory(engine: Path, backend: Backend) -> None:
    load_engine(engine, threads=3, num_slots=2)
    assert backend.asked == {
        "engine": engine / "backend",
        "context_tokens": 128,
        "num_slots": 2,
        "threads": 3,
    }


def test_a_smaller_context_is_passed_on(engine: Path, backend: Backend) -> None:
    load_engine(engine, context_tokens=64)
    assert backend.asked["context_tokens"] == 64


def test_a_larger_context_than_built_is_refused(engine: Path, backend: Backend) -> None:
    with pytest.raises(InputError, match="context of 128 tokens, asked for 129"):
        load_engine(engine, context_tokens=129)
    assert backend.asked == {}


def test_sampling_is_what_the_checkpoint_recommends(engine: Path, backend: Backend) -> None:
    assert load_engine(engine).sampling == Sampling(temperature=0.6)


def test_leaving_the_block_closes_the_session(engine: Path, backend: Backend) -> None:
    with load_engine(engine) as loaded:
        assert loaded.manifest.model == "tiny"
        assert not backend.is_closed
    assert backend.is_closed


def test_a_damaged_tokenizer_is_found_before_the_weights_are_loaded(
    engine: Path, backend: Backend
) -> None:
    (engine / "tokenizer" / "tokenizer.json").write_text("{}")
    with pytest.raises(EngineError, match=r"tokenizer\.json"):
        load_engine(engine)
    assert backend.asked == {}


def test_a_bad_recommended_sampling_is_an_engine_error(
    byte_level: tokenizers.Tokenizer, tmp_path: Path, backend: Backend
) -> None:
    config = {"do_sample": True, "temperature": "hot"}
    with pytest.raises(EngineError, match=r"generation_config\.json: temperature must be"):
        load_engine(write_engine(tmp_path, byte_level, config))


def test_a_directory_that_is_no_engine_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="not an engine directory"):
        load_engine(tmp_path)
