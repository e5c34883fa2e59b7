"""An engine of TensorRT-LLM opens on the GPU and with the versions that it was built with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from edgekit.backends.tensorrt_llm.identity import (
    Identity,
    read_identity,
    require_same,
)
from edgekit.backends.tensorrt_llm.kinds import CHECKPOINT, ENGINE
from edgekit.backends.tensorrt_llm.runtime import Runtime
from edgekit.device import Device, Gpu
from edgekit.errors import StaleEngineError
from edgekit.units import GIB

BUILT = Identity(
    gpu="NVIDIA GeForce RTX 4090",
    sm=89,
    driver="580.82.09",
    cuda="13.0.96",
    tensorrt="10.14.1.48",
    tensorrt_llm="1.2.1",
)
RUNTIME = Runtime(
    kind="interpreter",
    python=("python",),
    version="1.2.1",
    details={"tensorrt": "10.14.1.48", "cuda": "13.0.96"},
)


def machine(*gpus: Gpu) -> Device:
    return Device(cpu="cpu", cores=1, memory_bytes=1, available_bytes=1, gpus=gpus)


HERE = machine(Gpu(index=0, name="NVIDIA GeForce RTX 4090", sm=89, memory_bytes=24 * GIB))


def test_what_is_here_is_read() -> None:
    gpu = Gpu(index=1, name="NVIDIA GeForce RTX 4090", sm=89, driver="580.82.09")
    assert read_identity(RUNTIME, machine(gpu), gpu_index=1) == BUILT
    assert read_identity(RUNTIME, machine()).gpu is None


@pytest.mark.parametrize(
    "here",
    [
        BUILT,
        replace(BUILT, driver="590.1"),
        replace(BUILT, cuda="13.1.2", driver="590.1"),
        replace(BUILT, sm=None, tensorrt=None),  # cannot be read here
    ],
)
def test_the_same_gpu_and_versions_open(here: Identity, tmp_path: Path) -> None:
    require_same(BUILT, here, tmp_path, binding=ENGINE.binding, backend="tensorrt-llm", device=HERE)


@pytest.mark.parametrize(
    ("here", "expected"),
    [
        (
            replace(BUILT, gpu="NVIDIA GeForce RTX 3070", sm=86, driver="535.1"),
            "GPU NVIDIA GeForce RTX 4090, here NVIDIA GeForce RTX 3070; "
            "compute capability sm_89, here sm_86; driver 580.82.09, here 535.1",
        ),
        (replace(BUILT, tensorrt_llm="1.2.0"), "TensorRT-LLM 1.2.1, here 1.2.0"),
        (replace(BUILT, tensorrt_llm="1.3.0"), "TensorRT-LLM 1.2.1, here 1.3.0"),
        (replace(BUILT, tensorrt="10.15.0"), "TensorRT 10.14.1.48, here 10.15.0"),
        (replace(BUILT, gpu=None, sm=None, driver=None), "RTX 4090, here none"),
    ],
)
def test_another_gpu_or_version_is_refused_with_all_that_differs(
    here: Identity, expected: str, tmp_path: Path
) -> None:
    with pytest.raises(StaleEngineError) as caught:
        require_same(
            BUILT, here, tmp_path, binding=ENGINE.binding, backend="tensorrt-llm", device=HERE
        )
    assert caught.value.exit_code == 5
    assert str(caught.value).endswith(expected)
    assert caught.value.hint is not None
    assert "edgekit build" in caught.value.hint
    is_version = here.gpu == BUILT.gpu
    assert ("--trtllm-python" in caught.value.hint) == is_version


CHECKED = replace(BUILT, tensorrt=None, tensorrt_llm="1.3.0")
"""Of a checkpoint for the PyTorch backend."""


def test_a_checkpoint_opens_on_another_card_of_its_generation(tmp_path: Path) -> None:
    for here in (CHECKED, replace(CHECKED, gpu="NVIDIA L4"), replace(CHECKED, tensorrt="10.15")):
        require_same(
            CHECKED, here, tmp_path, binding=CHECKPOINT.binding, backend="any", device=HERE
        )


@pytest.mark.parametrize(
    ("here", "expected"),
    [
        (replace(CHECKED, tensorrt_llm="1.2.1"), "TensorRT-LLM 1.3.0, here 1.2.1"),
        (replace(CHECKED, tensorrt_llm="1.4.0"), "TensorRT-LLM 1.3.0, here 1.4.0"),
        (replace(CHECKED, gpu="NVIDIA A10", sm=86), "compute capability sm_89, here sm_86"),
        (replace(CHECKED, gpu=None, sm=None, driver=None), "RTX 4090, here none"),
    ],
)
def test_a_checkpoint_is_bound_to_the_kernels_that_it_was_proved_with(
    here: Identity, expected: str, tmp_path: Path
) -> None:
    with pytest.raises(StaleEngineError, match=expected) as caught:
        require_same(
            CHECKED, here, tmp_path, binding=CHECKPOINT.binding, backend="tensorrt-llm", device=HERE
        )
    assert "edgekit build" in str(caught.value.hint)
