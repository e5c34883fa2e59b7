"""Edge-LLM's real wheel, as far as it goes without its GPU: names, flags, and how it fails.

Takes the interpreter that `EDGEKIT_EDGELLM_PYTHON` names, or the one that `edgekit doctor --install
edge-llm` made.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
from pathlib import Path

import pytest

from edgekit.backends.edge_llm import onnx_build, worker
from edgekit.backends.edge_llm.builder import build_engine, make_command, require_flags
from edgekit.backends.edge_llm.command import Sizes, export_command
from edgekit.backends.edge_llm.environment import child_environment
from edgekit.backends.edge_llm.process import WORKER_PATH, Worker
from edgekit.backends.edge_llm.runtime import Runtime, find_runtime
from edgekit.device import Device, read_device
from edgekit.errors import MissingBackendError
from edgekit.progress import no_progress

pytestmark = pytest.mark.slow

SIZES = Sizes(max_input_tokens=64, kv_capacity_tokens=128, batch=1)
OBJECTS = {"native", "channel", "chunk", "request", "item", "runtime", "engine", "handle", "config"}
"""Variables of `worker.py` and `onnx_build.py` that hold objects of the bindings, and `self._…`."""
OURS = {"done", "result", "_engine", "_runtime", "_native"}
SOURCES = """
import inspect, json
from experimental.server.runtime import engine
print(json.dumps({name: inspect.getsource(getattr(engine.LLM, name)) for name in
                  ("_make_generation_request", "_load_runtime", "generate_stream")}))
"""


@pytest.fixture(scope="module")
def runtime() -> Runtime:
    try:
        return find_runtime(None)
    except MissingBackendError as exc:
        pytest.skip(f"{exc}: {exc.hint}")


@pytest.fixture(scope="module")
def here() -> Device:
    device = read_device()
    if device.gpus:
        pytest.skip("these are of a machine without its GPU")
    return device


def used_names(module: object) -> set[str]:
    """Attributes and keywords that a file of ours uses on objects of the bindings."""
    tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))  # type: ignore[attr-defined]
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            inner = node.value
            holder = inner.attr if isinstance(inner, ast.Attribute) else getattr(inner, "id", "")
            if holder.strip("_") in OBJECTS:
                names.add(node.attr)
    return names - OURS


@pytest.fixture(scope="module")
def library(runtime: Runtime) -> bytes:
    """Its native runtime, of any of the machines that it is for."""
    where = subprocess.run(
        [*runtime.python, "-c", "import tensorrt_edgellm as t; print(t.__path__[0])"],
        capture_output=True, text=True, check=True,
        env=child_environment(os.environ, is_own=runtime.is_own),
    ).stdout.strip()  # fmt: skip
    payloads = sorted(Path(where).glob("_native/payloads/*/_edgellm_runtime*.so"))
    assert payloads
    return payloads[0].read_bytes()


def test_its_runtime_follows_links(library: bytes) -> None:
    """It looks at a checkpoint's files with `stat` and has none of the calls that tell a link from
    a file."""
    assert b"stat\0" in library
    for name in (b"lstat\0", b"readlink\0", b"symlink_status", b"read_symlink"):
        assert name not in library


def test_every_name_that_is_used_is_in_its_bindings(library: bytes) -> None:
    names = used_names(worker) | used_names(onnx_build)
    assert {"stream_channels", "wait_pop", "max_generate_length", "LLMBuilder"} <= names
    names |= {"engine_dir", "multimodal_engine_dir", "lora_weights_map", "checkpoint_dir",
              "context_cache_config", "max_batch_size", "timeout_ms", *worker._REASONS}  # fmt: skip
    assert not [name for name in names if name.encode() not in library]


def test_a_request_is_filled_as_its_own_server_does(runtime: Runtime) -> None:
    said = subprocess.run(
        [*runtime.python, "-c", SOURCES], capture_output=True, text=True, check=True,
        env=child_environment(os.environ, is_own=runtime.is_own),
    ).stdout  # fmt: skip
    sources = json.loads(said)
    theirs = {
        f"{node.value.id}.{node.attr}"
        for node in ast.walk(ast.parse(_dedented(sources["_make_generation_request"])))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }
    tree = ast.parse(Path(worker.__file__).read_text(encoding="utf-8"))
    (ours,) = (n for n in ast.walk(tree) if getattr(n, "name", "") == "make_request")
    for node in ast.walk(ours):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            holder = {"item": "req", "request": "request"}[getattr(node.value, "id", "")]
            assert f"{holder}.{node.attr}" in theirs
    calls = [
        node
        for node in ast.walk(ast.parse(_dedented(sources["_load_runtime"])))
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "RequestEngine"
    ]
    # engine, media, LoRA, checkpoint, cache: in the order of the keywords that the worker uses
    (call,) = calls
    assert [type(argument).__name__ for argument in call.args] == [
        "Attribute", "Attribute", "Dict", "Attribute", "Name"
    ]  # fmt: skip
    assert [keyword.arg for keyword in call.keywords] == ["max_batch_size"]
    for name in ("wait_pop(timeout_ms=", "is_finished()", "is_cancelled()", ".ready()", ".get()"):
        assert name in sources["generate_stream"]


def _dedented(source: str) -> str:
    return "class A:\n" + source


def test_without_its_gpu_the_worker_says_so(runtime: Runtime, here: Device, tmp_path: Path) -> None:
    told = child_environment(os.environ, is_own=runtime.is_own)
    loading = Worker((*runtime.python, str(WORKER_PATH)), environment=told)
    with pytest.raises(MissingBackendError, match=r"Native\w+Error|TensorRTDependencyError"):
        loading.load({"engine": str(tmp_path), "checkpoint": "", "max_batch_size": 1})
    loading.close()


@pytest.mark.parametrize("is_onnx", [True, False], ids=["onnx", "direct"])
def test_without_its_gpu_the_builders_say_so(
    runtime: Runtime, here: Device, tmp_path: Path, *, is_onnx: bool
) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    (source / ("model.onnx" if is_onnx else "config.json")).write_text("{}")
    with pytest.raises(MissingBackendError) as caught:
        build_engine(
            runtime, source, out, SIZES, precision="fp16", kv_precision="fp16", device=here,
            log_file=tmp_path / "log", report=no_progress,
        )  # fmt: skip
    assert "Error: " in str(caught.value)
    assert "ended" not in str(caught.value)  # a known failure, in our words


def test_the_export_knows_every_flag(runtime: Runtime, tmp_path: Path) -> None:
    if not runtime.can_export:
        pytest.skip("it was installed without [export]")
    command = export_command(runtime, checkpoint=tmp_path, out=tmp_path, precision="int4_awq")
    require_flags(command, child_environment(os.environ, is_own=runtime.is_own))


def test_the_direct_builder_knows_every_flag(runtime: Runtime, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    command = make_command(runtime, tmp_path, tmp_path / "out", SIZES)
    require_flags(command, child_environment(os.environ, is_own=runtime.is_own))
