"""On the device: what is refused before anything is built, and what the builder is given."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgekit.backends.base import Wanted
from edgekit.backends.edge_llm import compiler
from edgekit.backends.edge_llm.command import Sizes
from edgekit.backends.edge_llm.compiler import compile_checkpoint
from edgekit.backends.edge_llm.exporter import ONNX_DIR
from edgekit.backends.edge_llm.runtime import Runtime
from edgekit.device import Device
from edgekit.errors import CheckpointError, MissingBackendError
from tests.backends.test_edgellm_preflight import write

VARIANTS = json.dumps(
    [
        {
            "variant_id": "jetson-thor-jp70", "cpu_arch": "aarch64", "gpu_sm": 110,
            "platform_probe_source": "l4t", "platform_probe_values": ["R38.2"],
            "cuda_runtime_soname": "libcudart.so.13", "tensorrt_runtime_soname": "libnvinfer.so.10",
        }
    ]
)  # fmt: skip
RUNTIME = Runtime(
    python=("/venv/bin/python",), version="0.11.0", has_trtedge=False,
    details={
        "machine": "aarch64", "python": "3.12", "tensorrt": "10.13.3", "variants": VARIANTS,
        "torch": "2.13.0", "transformers": "5.14.1", "onnx": "1.19.0",
    },
)  # fmt: skip


@pytest.fixture
def calls(
    monkeypatch: pytest.MonkeyPatch, recorded: Callable[[str], Device], tmp_path: Path
) -> dict[str, Any]:
    """This is a Thor; what the builder and the export are called with."""
    seen: dict[str, Any] = {"exports": 0}
    thor = recorded("agx-thor-jetpack-7")
    monkeypatch.setattr(compiler, "read_device", lambda: thor)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def build(runtime: Runtime, source: Path, out: Path, sizes: Sizes, **more: Any) -> Any:
        seen.update(source=source, out=out, sizes=sizes, **more)
        return {"edge_llm": runtime.version}

    def export(runtime: Runtime, source: Path, out: Path, **more: Any) -> Path:
        seen["exports"] += 1
        return out / "llm"

    monkeypatch.setattr(compiler, "build_engine", build)
    monkeypatch.setattr(compiler, "export_onnx", export)
    return seen


def run(source: Path, precision: str, runtime: Runtime = RUNTIME, **more: Any) -> dict[str, Any]:
    wanted = Wanted(precision=precision, context_tokens=300, batch=2, capabilities=(110,), **more)
    return compile_checkpoint(
        runtime, source, source.parent / "out", wanted, report=lambda *_: None
    )


@pytest.mark.parametrize("precision", ["fp16", "fp8", "nvfp4"])
def test_floats_go_straight_to_the_builder(
    precision: str, calls: dict[str, Any], tmp_path: Path
) -> None:
    source = write(tmp_path / "source", precision)
    assert run(source, precision) == {"edge_llm": "0.11.0"}
    assert (calls["source"], calls["exports"]) == (source, 0)
    assert calls["sizes"] == Sizes(max_input_tokens=300, kv_capacity_tokens=384, batch=2)
    assert (calls["precision"], calls["kv_precision"]) == (precision, "fp16")


@pytest.mark.parametrize("precision", ["int8_sq", "int4_awq"])
def test_integers_go_through_onnx(precision: str, calls: dict[str, Any], tmp_path: Path) -> None:
    source = write(tmp_path / "source", precision)
    run(source, precision)
    assert (calls["source"], calls["exports"]) == (source / ONNX_DIR / "llm", 1)


@pytest.mark.parametrize(("version", "exports"), [("0.11.0", 0), ("0.11.1", 1)])
def test_a_graph_that_came_along_is_taken_if_this_version_wrote_it(
    version: str, exports: int, calls: dict[str, Any], tmp_path: Path
) -> None:
    source = write(tmp_path / "source", "int4_awq")
    (source / ONNX_DIR / "llm").mkdir(parents=True)
    (source / ONNX_DIR / "edgekit.json").write_text(json.dumps({"edgellm": version}))
    run(source, "int4_awq")
    assert (calls["source"], calls["exports"]) == (source / ONNX_DIR / "llm", exports)


def test_a_stage_that_would_be_read_wrong_is_not_built(
    calls: dict[str, Any], tmp_path: Path
) -> None:
    source = write(tmp_path / "source", "int8_sq", labels={"quant_algo": "W8A16"})
    with pytest.raises(CheckpointError, match="weight-only int8"):
        run(source, "int8_sq")
    assert "source" not in calls


@pytest.mark.parametrize(
    ("record", "changes", "message"),
    [
        ("agx-orin-jetpack-6", {}, "no libraries for a GPU of sm_87 on aarch64: only for sm_110"),
        ("agx-thor-jetpack-7", {"tensorrt": "11.0"}, "no libraries for TensorRT 11"),
        ("agx-thor-jetpack-7", {"python": "3.13"}, "no wheel for Python 3.13"),
    ],
)
def test_a_board_without_libraries_is_not_built_for(
    record: str, changes: dict[str, str], message: str, calls: dict[str, Any],
    recorded: Callable[[str], Device], monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    device = recorded(record)
    monkeypatch.setattr(compiler, "read_device", lambda: device)
    runtime = Runtime(
        python=RUNTIME.python, version="0.11.0", has_trtedge=False,
        details={**RUNTIME.details, **changes},
    )  # fmt: skip
    with pytest.raises(MissingBackendError, match=message):
        run(write(tmp_path / "source", "fp8"), "fp8", runtime)
    assert "source" not in calls


def test_a_build_from_sources_is_for_its_machine(calls: dict[str, Any], tmp_path: Path) -> None:
    details = {name: value for name, value in RUNTIME.details.items() if name != "variants"}
    runtime = Runtime(
        python=RUNTIME.python, version="0.12.0", has_trtedge=True,
        details={**details, "tensorrt": "11.0"},
    )  # fmt: skip
    assert run(write(tmp_path / "source", "fp8"), "fp8", runtime) == {"edge_llm": "0.12.0"}
