"""Edge-LLM's export as a program: what it leaves is looked at, whatever it ends with.

The program here is a stand-in that leaves a given graph; the real one is in test_edgellm_export.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from edgekit.backends.base import Wanted
from edgekit.backends.edge_llm import compiler, exporter
from edgekit.backends.edge_llm.compiler import prepare_source
from edgekit.backends.edge_llm.exporter import (
    ONNX_DIR,
    export_bytes,
    export_onnx,
    exported_by,
)
from edgekit.backends.edge_llm.runtime import Runtime
from edgekit.device import Device, read_device
from edgekit.errors import (
    BackendError,
    BudgetError,
    CheckpointError,
    EngineError,
    MissingBackendError,
)
from tests.backends.test_edgellm_graph import Graph
from tests.backends.test_edgellm_preflight import write

DETAILS = {"torch": "2.13.0", "transformers": "5.14.1", "onnx": "1.19.0"}
WANTED = Wanted(precision="int4_awq", context_tokens=256, batch=1, capabilities=(110,))


@pytest.fixture
def tool(tmp_path: Path) -> Callable[..., Runtime]:
    """`tool(graph, says=..., code=...)`: a runtime whose export leaves that graph."""

    def make(graph: Graph | None, *, says: str = "", code: int = 0, **runtime: str) -> Runtime:
        home = tmp_path / "bin"
        home.mkdir()
        version = runtime.get("version", "0.11.0")
        name = "trtedge" if version != "0.11.0" else "tensorrt-edgellm-export"
        script = f"#!/bin/sh\n[ {name} = trtedge ] && shift\n"
        if graph is not None:
            made = graph.write(tmp_path / "graph")
            script += f'[ "$3" = --help ] || {{ mkdir -p "$2" && cp -r {made} "$2/llm"; }}\n'
        (home / name).write_text(f"{script}echo '{says}'\nexit {code}\n")
        (home / name).chmod(0o755)
        return Runtime(
            python=(str(home / "python"),), version=version, has_trtedge=name == "trtedge",
            details=DETAILS,
        )  # fmt: skip

    return make


def export(runtime: Runtime, tmp_path: Path, precision: str = "int4_awq") -> Path:
    source = write(tmp_path / "source", precision)
    return export_onnx(
        runtime, source, source / ONNX_DIR, precision=precision, kv_precision="fp16",
        log_file=tmp_path / "logs" / "export.log", report=lambda *_: None,
    )  # fmt: skip


def test_a_whole_graph_is_kept_with_its_version(
    tool: Callable[..., Runtime], tmp_path: Path
) -> None:
    folder = export(tool(Graph("int4_awq")), tmp_path)
    assert folder == tmp_path / "source" / "onnx" / "llm"
    assert exported_by(folder.parent) == "0.11.0"
    log = (tmp_path / "logs" / "export.log").read_text()
    assert log.startswith("$ ")
    assert "--int4-gemm-plugin-version 2" in log


def test_an_older_graph_is_replaced_and_what_is_linked_to_it_stays(
    tool: Callable[..., Runtime], tmp_path: Path
) -> None:
    old = tmp_path / "source" / "onnx" / "llm" / "config.json"
    old.parent.mkdir(parents=True)
    old.write_text("old")
    (tmp_path / "stage.json").hardlink_to(old)
    folder = export(tool(Graph("int4_awq")), tmp_path)
    assert "fp16" in (folder / "config.json").read_text()
    assert (tmp_path / "stage.json").read_text() == "old"


def test_success_with_a_wrong_graph_is_none(tool: Callable[..., Runtime], tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"exported something else than int4_awq: .* plain fp16"):
        export(tool(Graph("fp16")), tmp_path)
    assert not (tmp_path / "source" / "onnx").exists()


def test_a_failure_tells_the_last_error(tool: Callable[..., Runtime], tmp_path: Path) -> None:
    says = "12:44:11  ERROR     tensorrt_edgellm.scripts.export: [LLM] no such tensor"
    with pytest.raises(BackendError, match=r"ended with exit code 1: .*\[LLM\] no such tensor"):
        export(tool(None, says=says, code=1), tmp_path)
    assert not (tmp_path / "source" / "onnx").exists()


def test_it_leaves_nothing_and_ends_well(tool: Callable[..., Runtime], tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="left no graph that can be read"):
        export(tool(None), tmp_path)


def test_what_would_be_exported_wrongly_is_not_started(
    tool: Callable[..., Runtime], tmp_path: Path
) -> None:
    source = write(tmp_path / "source", "int8_sq", labels={"quant_algo": "W8A16"})
    with pytest.raises(CheckpointError, match="weight-only int8"):
        export_onnx(
            tool(Graph("int8_sq")), source, source / ONNX_DIR, precision="int8_sq",
            kv_precision="fp16", log_file=tmp_path / "log", report=lambda *_: None,
        )  # fmt: skip
    assert not (tmp_path / "log").exists()


def test_a_version_that_is_not_known_is_asked_for_its_flags(
    tool: Callable[..., Runtime], tmp_path: Path
) -> None:
    runtime = tool(Graph("int4_awq"), says="usage: export", version="0.13.0")
    with pytest.raises(BackendError, match="s trtedge has no --int4-gemm-plugin-version"):
        export(runtime, tmp_path)
    assert not (tmp_path / "source" / "onnx").exists()


def test_a_command_without_flags_is_asked_whether_it_is_there(
    tool: Callable[..., Runtime], tmp_path: Path
) -> None:
    runtime = tool(Graph("int8_sq"), version="0.11.1")
    folder = export(runtime, tmp_path, "int8_sq")
    assert exported_by(folder.parent) == "0.11.1"
    (tmp_path / "bin" / "trtedge").unlink()
    with pytest.raises(MissingBackendError, match="trtedge does not start"):
        export_onnx(
            runtime, tmp_path / "source", tmp_path / "out", precision="int8_sq",
            kv_precision="fp16", log_file=tmp_path / "log", report=lambda *_: None,
        )  # fmt: skip


def test_memory_is_weighed_first(
    tool: Callable[..., Runtime], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = read_device()

    def read() -> Device:
        return Device(cpu=small.cpu, cores=1, memory_bytes=2**28, available_bytes=2**28)

    monkeypatch.setattr(exporter, "read_device", read)
    with pytest.raises(BudgetError, match=r"export needs 50\d.* MiB of memory, 256.00 MiB is"):
        export(tool(Graph("int4_awq")), tmp_path)


def test_memory_is_that_of_the_checkpoint_twice(tmp_path: Path) -> None:
    source = write(tmp_path / "source", "fp16")
    size = (source / "model.safetensors").stat().st_size
    # 6.25 GB for 3.0 GB, and 485 MB for nothing
    assert export_bytes(source) == int(2.1 * size) + 524_288_000


def test_a_stage_is_exported_where_that_can_be(
    tool: Callable[..., Runtime], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = write(tmp_path / "source", "int4_awq")
    prepare_source(None, source, WANTED, report=lambda *_: None)
    assert not (source / ONNX_DIR).exists()
    prepare_source(tool(Graph("int4_awq")), source, WANTED, report=lambda *_: None)
    assert exported_by(source / ONNX_DIR) == "0.11.0"


def test_where_it_cannot_be_the_device_does_it(
    tool: Callable[..., Runtime],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(runtime: Runtime, source: Path) -> None:
        raise MissingBackendError("no onnx")

    monkeypatch.setattr(compiler, "require_export", refuse)
    source = write(tmp_path / "source", "int4_awq")
    prepare_source(tool(Graph("int4_awq")), source, WANTED, report=lambda *_: None)
    assert not (source / ONNX_DIR).exists()
    assert "the device will export the checkpoint to ONNX by itself: no onnx" in caplog.text


def test_a_note_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    assert exported_by(tmp_path) is None
    (tmp_path / "edgekit.json").write_text(json.dumps([]))
    with pytest.raises(EngineError, match="unreadable"):
        exported_by(tmp_path)
