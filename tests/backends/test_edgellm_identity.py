from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.backends.edge_llm.identity import (
    BINDING,
    Identity,
    differences,
    read_identity,
    rebuild_command,
    require_same,
)
from edgekit.backends.edge_llm.layout import EngineLayout
from edgekit.errors import EngineError, StaleEngineError
from tests.backends.edgellm import RUNTIME, THOR, write_engine

HERE = read_identity(RUNTIME, THOR)
MANIFEST = {
    "model": "Llama-3.1-Nemotron-Nano-8B-v1", "profile": "jetson-thor", "precision": "nvfp4",
    "kv_precision": "fp16", "context_tokens": 8192, "batch": 1, "device": {"cpu": "Cortex"},
}  # fmt: skip


def test_all_that_an_engine_depends_on_is_read() -> None:
    assert HERE.to_dict() == {
        "gpu": "NVIDIA Thor", "sm": 110, "driver": "580.00", "cuda": "13.0",
        "tensorrt": "10.16.0", "edge_llm": "0.11.0", "jetpack": "7.0", "l4t": "38.2.0",
    }  # fmt: skip


def test_without_a_gpu_its_part_is_unknown() -> None:
    found = read_identity(RUNTIME, replace(THOR, gpus=(), jetson=None))
    assert (found.gpu, found.sm, found.jetpack, found.edge_llm) == (None, None, None, "0.11.0")


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("sm", 87, "compute capability sm_110, here sm_87"),
        ("gpu", "Orin (nvgpu)", r"GPU NVIDIA Thor, here Orin \(nvgpu\)"),
        ("tensorrt", "10.13.3", r"TensorRT 10\.16\.0, here 10\.13\.3"),
        ("edge_llm", "0.12.0", r"Edge-LLM 0\.11\.0, here 0\.12\.0"),
        ("jetpack", "7.2", r"JetPack 7\.0, here 7\.2"),
        ("l4t", "39.2.0", r"Jetson Linux 38\.2\.0, here 39\.2\.0"),
        ("cuda", "13.2", r"CUDA 13\.0, here 13\.2"),
    ],
)
def test_a_difference_is_named_with_the_way_out(
    tmp_path: Path, field: str, value: object, words: str
) -> None:
    assert field in BINDING
    (tmp_path / "manifest.json").write_text(json.dumps(MANIFEST), encoding="utf-8")
    with pytest.raises(StaleEngineError, match=words) as caught:
        require_same(HERE, replace(HERE, **{field: value}), tmp_path / "backend")  # type: ignore[arg-type]
    assert caught.value.exit_code == 5
    assert caught.value.hint is not None
    assert "`edgekit build --model Llama-3.1-Nemotron-Nano-8B-v1" in caught.value.hint
    assert ("--edgellm-python" in caught.value.hint) == (field in ("tensorrt", "edge_llm"))


def test_a_newer_driver_of_a_card_is_no_difference_that_matters() -> None:
    card = replace(HERE, jetpack=None, l4t=None, gpu="NVIDIA GeForce RTX 5090", sm=120)
    require_same(card, replace(card, driver="600.1", cuda="13.4"), Path("/nowhere"))
    with pytest.raises(StaleEngineError, match="driver"):
        require_same(card, replace(card, driver="600.1", sm=86), Path("/nowhere"))


def test_what_cannot_be_read_is_no_difference_but_a_lost_gpu_is() -> None:
    unknown = replace(HERE, tensorrt=None, jetpack=None)
    require_same(HERE, unknown, Path("/nowhere"))
    require_same(unknown, HERE, Path("/nowhere"))
    with pytest.raises(StaleEngineError, match="GPU NVIDIA Thor, here none"):
        require_same(HERE, replace(HERE, gpu=None), Path("/nowhere"))


def test_the_rebuild_command_is_the_manifests(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps(MANIFEST), encoding="utf-8")
    for place in (tmp_path, tmp_path / "backend"):
        assert shlex.split(rebuild_command(place)) == [
            "edgekit", "build", "--model", "Llama-3.1-Nemotron-Nano-8B-v1",
            "--profile", "jetson-thor", "--precision", "nvfp4", "--kv", "fp16",
            "--context", "8192", "--batch", "1", "--backend", "edge-llm",
        ]  # fmt: skip
    assert rebuild_command(Path("/nowhere")) == "edgekit build"


TEXTS = ("gpu", "driver", "cuda", "tensorrt", "jetpack", "l4t")


@given(
    st.builds(
        Identity,
        **{name: st.none() | st.text() for name in TEXTS},
        sm=st.none() | st.integers(0),
        edge_llm=st.text(),
    )
)
def test_an_identity_is_read_as_it_was_written(identity: Identity) -> None:
    assert Identity.from_dict(json.loads(json.dumps(identity.to_dict()))) == identity
    assert list(differences(identity, identity)) == [] or identity.gpu is None
    assert identity.key() == replace(identity).key()


def test_every_field_is_in_the_key() -> None:
    values = HERE.to_dict()
    changed = [Identity(**{**values, name: None}) for name in values if name != "edge_llm"]
    changed.append(replace(HERE, edge_llm="0.11.1"))
    assert len({HERE.key(), *(identity.key() for identity in changed)}) == len(changed) + 1


def test_a_manifest_that_does_not_say_is_an_error() -> None:
    with pytest.raises(EngineError, match="built on: edge_llm"):
        Identity.from_dict({"sm": 110})
    with pytest.raises(EngineError, match="built on: sm"):
        Identity.from_dict({**HERE.to_dict(), "sm": True})


def test_a_layout_is_read_as_it_was_written(tmp_path: Path) -> None:
    engine, _ = write_engine(tmp_path, kv_precision="fp8", has_checkpoint=True)
    layout = EngineLayout.read(engine)
    assert (layout.kv_precision, layout.has_checkpoint, layout.identity) == ("fp8", True, HERE)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 2}', '{"format": 1, "batch": 1}'])
def test_a_damaged_layout_is_an_engine_error(tmp_path: Path, text: str) -> None:
    engine, _ = write_engine(tmp_path)
    (engine / "engine.json").write_text(text, encoding="utf-8")
    with pytest.raises(EngineError, match=r"unreadable .*engine\.json"):
        EngineLayout.read(engine)
