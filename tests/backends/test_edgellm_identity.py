from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from edgekit.backends.edge_llm.identity import (
    BINDING,
    read_identity,
    require_same,
)
from edgekit.backends.edge_llm.layout import EngineLayout
from edgekit.errors import StaleEngineError
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
        require_same(HERE, replace(HERE, **{field: value}), tmp_path / "backend", THOR)  # type: ignore[arg-type]
    assert caught.value.exit_code == 5
    assert caught.value.hint is not None
    assert "`edgekit build --model nvidia/Llama-3.1-Nemotron-Nano-8B-v1" in caught.value.hint
    assert ("--edgellm-python" in caught.value.hint) == (field in ("tensorrt", "edge_llm"))


def test_a_newer_driver_of_a_card_is_no_difference_that_matters() -> None:
    card = replace(HERE, jetpack=None, l4t=None, gpu="NVIDIA GeForce RTX 5090", sm=120)
    require_same(card, replace(card, driver="600.1", cuda="13.4"), Path("/nowhere"), THOR)
    with pytest.raises(StaleEngineError, match="driver"):
        require_same(card, replace(card, driver="600.1", sm=86), Path("/nowhere"), THOR)


def test_what_cannot_be_read_is_no_difference_but_a_lost_gpu_is() -> None:
    unknown = replace(HERE, tensorrt=None, jetpack=None)
    require_same(HERE, unknown, Path("/nowhere"), THOR)
    require_same(unknown, HERE, Path("/nowhere"), THOR)
    with pytest.raises(StaleEngineError, match="GPU NVIDIA Thor, here none"):
        require_same(HERE, replace(HERE, gpu=None), Path("/nowhere"), THOR)


def test_a_layout_is_read_as_it_was_written(tmp_path: Path) -> None:
    engine, _ = write_engine(tmp_path, kv_precision="fp8", has_checkpoint=True)
    layout = EngineLayout.read(engine)
    assert (layout.kv_precision, layout.has_checkpoint, layout.identity) == ("fp8", True, HERE)
