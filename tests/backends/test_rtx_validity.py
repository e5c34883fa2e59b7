"""Why an engine of TensorRT-RTX cannot run here, in our words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from edgekit.backends.tensorrt_rtx.layout import EngineLayout
from edgekit.backends.tensorrt_rtx.validity import (
    DIAGNOSES,
    require_capability,
    require_valid,
    require_version,
)
from edgekit.errors import (
    BackendError,
    BudgetError,
    EdgekitError,
    EngineError,
    MissingBackendError,
    StaleEngineError,
)

LAYOUT = EngineLayout(
    version="1.7.1.116",
    capabilities=(86, 89),
    num_layers=2,
    num_kv_heads=2,
    head_dim=16,
    vocab_size=384,
    context_tokens=64,
    batch=1,
    chunk_tokens=16,
    max_logits=8,
    has_decode_profile=True,
)


@pytest.mark.parametrize("verdict", ["VALID", "SUBOPTIMAL"])
def test_an_engine_that_runs_is_let_through(verdict: str) -> None:
    # flags beside a good verdict are remarks
    require_valid(verdict, 16)


@pytest.mark.parametrize(
    ("flags", "kind", "expected"),
    [
        (1, StaleEngineError, "another version of TensorRT-RTX"),
        (2, StaleEngineError, "compute capability"),
        (4, MissingBackendError, "driver is too old"),
        (8, MissingBackendError, "runtime is too old"),
        (16, BudgetError, "not enough memory"),
        (32, EngineError, "damaged"),
        (64, MissingBackendError, "CUDA does not work"),
        # two at once: the cause before what follows from it
        (1 | 16, StaleEngineError, "another version"),
        (32 | 1, EngineError, "damaged"),
        (0, BackendError, "diagnostics 0"),
        (4096, BackendError, "diagnostics 4096"),  # of a later version
    ],
)
def test_every_diagnosis_is_an_error_of_ours(
    flags: int, kind: type[EdgekitError], expected: str
) -> None:
    with pytest.raises(kind, match=expected) as caught:
        require_valid("INVALID", flags, "the vendor's line")
    assert type(caught.value) is kind
    assert str(caught.value).endswith(": the vendor's line")
    assert caught.value.hint


def test_the_table_is_the_enum_of_the_installed_version() -> None:
    trt = pytest.importorskip("tensorrt_rtx_bindings")
    members = trt.EngineInvalidityDiagnostics.__members__
    assert {row.name: row.flag for row in DIAGNOSES} == {n: int(m) for n, m in members.items()}


def test_another_version_is_named_with_both_remedies() -> None:
    require_version(LAYOUT, "1.7.1.116")
    expected = r"built by TensorRT-RTX 1\.7\.1\.116 and runs on no other version, here is 1\.8\.0"
    with pytest.raises(StaleEngineError, match=expected) as caught:
        require_version(LAYOUT, "1.8.0")
    assert caught.value.hint is not None
    assert "`edgekit build`" in caught.value.hint
    assert (
        "pip install tensorrt-rtx-cu13-bindings==1.7.1.116 tensorrt-rtx-cu13-libs==1.7.1.116"
        in caught.value.hint
    )


@pytest.mark.parametrize(
    ("held", "present", "expected"),
    [
        ([89, 86], [75], "holds sm_86 and sm_89, the GPU here is sm_75"),
        ([86], [120, 75], "holds sm_86, the GPUs here are sm_75 and sm_120"),
        ([120, 86, 89], [75, 75], "holds sm_86, sm_89 and sm_120, the GPU here is sm_75"),
    ],
)
def test_a_gpu_that_the_engine_was_not_built_for(
    held: list[int], present: list[int], expected: str
) -> None:
    with pytest.raises(StaleEngineError, match=expected) as caught:
        require_capability(held, present)
    assert caught.value.hint is not None
    assert "edgekit build" in caught.value.hint


def test_one_gpu_that_fits_is_enough() -> None:
    require_capability([86, 89], [75, 89])


def test_a_layout_is_read_as_it_was_written(tmp_path: Path) -> None:
    layout = replace(LAYOUT, capabilities=(86, 89, 120), has_decode_profile=False)
    layout.write(tmp_path)
    assert EngineLayout.read(tmp_path) == layout
