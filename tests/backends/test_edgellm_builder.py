"""Both builders as real processes: scripts over a package that behaves as Edge-LLM's does."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from edgekit.backends import build_process
from edgekit.backends.build_failure import find_failure
from edgekit.backends.build_log import TOTAL
from edgekit.backends.edge_llm.builder import (
    GUARD,
    build_engine,
    build_environment,
    make_command,
)
from edgekit.backends.edge_llm.command import Sizes
from edgekit.backends.edge_llm.failures import FAILURES, explain_failure
from edgekit.backends.edge_llm.log import STAGES, BuildLog, split_line
from edgekit.backends.edge_llm.runtime import Runtime
from edgekit.errors import (
    BackendError,
    BudgetError,
    EdgekitError,
    InputError,
    MissingBackendError,
    StaleEngineError,
    StorageError,
)
from tests.backends import edgellm
from tests.backends.edgellm import RUNTIME, THOR, write_direct_builder, write_tokenizer

SIZES = Sizes(max_input_tokens=1024, kv_capacity_tokens=4096, batch=1)


class Build:
    """A source, a place for the engine, and what was reported."""

    def __init__(self, directory: Path) -> None:
        self.source, self.out = directory / "source", directory / "out" / "backend"
        self.log = directory / "logs" / "build.log"
        self.bin = directory / "bin"
        self.reports: list[int] = []
        for path in (self.source, self.bin):
            path.mkdir()
        config = {"vocab_size": 1000, "kv_cache_dtype": "fp16"}
        (self.source / "config.json").write_text(json.dumps(config), encoding="utf-8")
        (self.source / "model.safetensors").write_bytes(b"weights")
        write_tokenizer(self.source)

    def onnx(self, **how: Any) -> None:
        (self.source / "model.onnx").write_bytes(b"graph")
        self.how(**how)

    def how(self, **how: Any) -> None:
        (self.source / "build.json").write_text(json.dumps(how), encoding="utf-8")

    def direct(self, name: str = "tensorrt-edgellm-build", *, lacks: str = "") -> Runtime:
        """A runtime whose builder lies beside its interpreter."""
        (self.bin / "python").symlink_to(sys.executable)
        write_direct_builder(self.bin / name, lacks=lacks)
        return replace(RUNTIME, python=(str(self.bin / "python"),), has_trtedge=name == "trtedge")

    def run(
        self, runtime: Runtime = RUNTIME, sizes: Sizes = SIZES, **options: Any
    ) -> dict[str, Any]:
        fields: dict[str, Any] = {"precision": "fp16", "kv_precision": "fp16", **options}
        return build_engine(
            runtime, self.source, self.out, sizes, **fields, device=THOR, log_file=self.log,
            environ={**os.environ, **edgellm.ENVIRONMENT}, report=self.report, grace_s=2,
        )  # fmt: skip

    def report(self, step: str, done: int, total: int) -> None:
        assert (step, total) == (build_process.STEP, TOTAL)
        self.reports.append(done)

    def environment(self) -> dict[str, str]:
        """That the builder ran with."""
        text = (self.out / "llm" / "environment.json").read_text(encoding="utf-8")
        found: dict[str, str] = json.loads(text)
        return found


@pytest.fixture
def build(tmp_path: Path) -> Build:
    return Build(tmp_path)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_process, "_POLL_S", 0.05)
    monkeypatch.setattr(build_process, "_DRAIN_S", 0.3)


# --- from an ONNX folder ---


def test_an_onnx_folder_is_built_with_every_size_written_out(build: Build) -> None:
    build.onnx()
    identity = build.run()
    config = json.loads((build.out / "llm" / "config.json").read_text(encoding="utf-8"))
    assert config["builder_config"] == {
        "max_input_len": 1024, "max_kv_cache_capacity": 4096, "max_batch_size": 1,
    }  # fmt: skip
    layout = json.loads((build.out / "engine.json").read_text(encoding="utf-8"))
    assert layout["identity"] == identity
    assert identity["tensorrt"] == "10.16.0"
    assert (layout["has_checkpoint"], layout["vocab_size"]) == (False, 1000)
    assert (layout["max_input_tokens"], layout["kv_capacity_tokens"]) == (1024, 4096)
    assert not (build.out / "checkpoint").exists()
    assert build.reports == sorted(build.reports)
    assert build.reports[-1] == TOTAL
    assert len(set(build.reports)) > 4
    said = build.log.read_text(encoding="utf-8")
    assert said.startswith("$ ")
    assert "--max-kv-cache-capacity 4096" in said.splitlines()[0]


def test_the_command_names_every_size(build: Build) -> None:
    build.onnx()
    words = make_command(RUNTIME, build.source, build.out, replace(SIZES, batch=4))
    assert words[0] == sys.executable
    assert list(words[2:]) == [
        "--onnx-dir", str(build.source), "--engine-dir", str(build.out / "llm"),
        "--max-input-len", "1024", "--max-kv-cache-capacity", "4096", "--max-batch-size", "4",
    ]  # fmt: skip


# --- from a checkpoint ---


@pytest.mark.parametrize("name", ["tensorrt-edgellm-build", "trtedge"])
def test_a_checkpoint_is_built_directly_and_stays_with_the_engine(build: Build, name: str) -> None:
    runtime = build.direct(name)
    build.how()
    build.run(runtime)
    words = make_command(runtime, build.source, build.out, SIZES)
    own = [str(build.bin / name), *(["build"] if name == "trtedge" else [])]
    assert list(words) == [
        *own, "--model-dir", str(build.out / "checkpoint"),
        "--engine-dir", str(build.out / "llm"), "--components", "llm", "--spec-type", "none",
        "--max-input-len", "1024", "--max-kv-cache-capacity", "4096", "--max-batch-size", "1",
    ]  # fmt: skip
    assert (build.out / "checkpoint" / "model.safetensors").read_bytes() == b"weights"
    assert json.loads((build.out / "engine.json").read_text())["has_checkpoint"] is True
    assert build.reports[-1] == TOTAL
    assert len(set(build.reports)) > 4  # its log has another form


@pytest.mark.parametrize("name", ["tensorrt-edgellm-build", "trtedge"])
def test_a_builder_that_lacks_a_flag_is_refused_before_it_works(build: Build, name: str) -> None:
    runtime = build.direct(name, lacks="max_kv_cache_capacity")
    with pytest.raises(BackendError, match=f"s {name} has no --max-kv-cache-capacity") as caught:
        build.run(runtime)
    assert "use the version that edgekit is tested with" in str(caught.value.hint)
    assert not build.log.exists()


def test_a_builder_that_is_not_there_is_said(build: Build) -> None:
    runtime = replace(RUNTIME, python=(str(build.bin / "python"),))
    with pytest.raises(MissingBackendError, match="tensorrt-edgellm-build does not start"):
        build.run(runtime)
    build.onnx()
    with pytest.raises(MissingBackendError, match="interpreter does not start"):
        build.run(runtime)


def test_what_is_no_source_is_refused(build: Build) -> None:
    (build.source / "config.json").unlink()
    with pytest.raises(InputError, match="neither an ONNX folder"):
        build.run(build.direct())


# --- what the builder is given and kept from ---


@pytest.mark.parametrize(
    ("tensorrt", "batch", "guard"),
    [
        ("10.13.3.9", 1, GUARD),
        ("10.16.0", 1, GUARD),
        ("11.0.0.114", 1, GUARD),
        ("", 1, GUARD),
        ("10.12.0", 1, None),
        ("10.16.0", 2, None),
    ],
)
def test_values_of_the_first_layer_are_guarded(
    tensorrt: str, batch: int, guard: str | None
) -> None:
    runtime = replace(RUNTIME, details={"tensorrt": tensorrt})
    sizes = replace(SIZES, batch=batch)
    found = build_environment(runtime, sizes, {"__LUNOWUD": "-something=else", "PATH": "/bin"})
    assert found.get("__LUNOWUD") == guard
    assert found["EDGELLM_LOG_LEVEL"] == "INFO"  # without it there is no progress to read


def test_its_own_cache_is_never_named(build: Build) -> None:
    build.onnx()
    build.run()
    words = build.log.read_text(encoding="utf-8").splitlines()[0]
    assert "cache-dir" not in words
    assert ".cache/tensorrt-edgellm" not in words
    assert build.environment()["__LUNOWUD"] == GUARD


# --- what went wrong ---


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"small": True}, r"other sizes: \(32, 96, 1\) instead of \(1024, 4096, 1\)"),
        ({"loses": "llm.engine"}, "left no whole engine.*llm.engine"),
        ({"loses": "config.json"}, "left no whole engine"),
        ({"loses": "tokenizer.json"}, "no tokenizer.json, without which it reads no token"),
    ],
)
def test_an_engine_that_is_not_what_was_asked_for_is_refused(
    build: Build, how: dict[str, Any], words: str
) -> None:
    build.onnx(**how)
    with pytest.raises(BackendError, match=words):
        build.run()
    assert not (build.out / "engine.json").exists()


def test_a_cache_that_was_dropped_without_a_word_is_found(build: Build) -> None:
    build.onnx(drops_cache=True)
    with pytest.raises(BackendError, match="cache of fp16, fp8 was asked for"):
        build.run(kv_precision="fp8")


def test_a_failure_says_why_and_where_its_log_is(build: Build) -> None:
    build.onnx(fails=True, says=["Failed to allocate: out of memory", "the builder has failed"])
    with pytest.raises(BudgetError, match=r"not enough free memory.*build\.log") as caught:
        build.run()
    assert "3 to 4 times the model's memory" in str(caught.value.hint)


def test_one_that_the_system_killed_is_memory(build: Build) -> None:
    build.onnx(kill=int(signal.SIGKILL))
    with pytest.raises(BudgetError, match="the system ended it"):
        build.run()


def test_ctrl_c_ends_the_builder(build: Build) -> None:
    build.onnx(hang=60)

    def interrupt() -> None:
        while not build.reports or build.reports[-1] < 200:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    waiting = threading.Thread(target=interrupt)
    waiting.start()
    with pytest.raises(KeyboardInterrupt):
        build.run()
    waiting.join(timeout=5)
    left = [
        p for p in psutil.Process().children(recursive=True) if "onnx_build" in str(p.cmdline())
    ]
    assert not left


NATIVE = "[12:03:01.123] [{}] [llmBuilder.cpp:231:build] {}"


@pytest.mark.parametrize(
    ("name", "kind", "line"),
    [
        ("disk-full", StorageError, "OSError: [Errno 28] No space left on device"),
        ("no-permission", StorageError, "PermissionError: [Errno 13] Permission denied: '/o'"),
        ("mixed-gpus", MissingBackendError,
         "NativeDetectionError: Visible CUDA devices must use one architecture; detected 0:sm86"),
        ("no-gpu", MissingBackendError, "NativeDetectionError: No CUDA device is visible."),
        ("tensorrt-missing", MissingBackendError,
         "TensorRTDependencyError: TensorRT Python bindings are required before checkpoint"),
        ("cuda-missing", MissingBackendError,
         "NativeDetectionError: Required system library 'cudart' was not found."),
        ("wrong-platform", MissingBackendError,
         "NativeSelectionError: Expected one exact TensorRT Edge-LLM native payload, found 0"),
        ("damaged-install", MissingBackendError,
         "NativeLoadError: Failed to load native payload jetson-thor: x"),
        ("plugin", BackendError, "FileNotFoundError: plugin library not found: build/lib.so"),
        ("int4-kernels", BackendError,
         "Error: could not find any supported formats ... Int4GroupwiseGemmPluginV2"),
        ("nvmap", BudgetError, "Error: NvMapMemAllocInternalTagged: 1075072515 error 12"),
        ("memory", BudgetError, "Error: Requested amount of GPU memory (1 bytes) could not be"),
        ("other-version", StaleEngineError, "Error: Version tag does not match"),
        ("precision-not-on-gpu", BackendError, "Error: FP8 requires compute capability 8.9"),
        ("sizes", InputError, "LLMBuilderConfig: maxBatchSize must fit a positive int32."),
        ("unknown-flag", BackendError,
         "tensorrt-edgellm-build: error: unrecognized arguments: --x"),
        ("old-export", BackendError,
         "Error: inputs_embeds must be rank-2 [tokens, hidden]. Re-export the model."),
        ("checkpoint", BackendError, "ValueError: quantization 'W8A16' is not supported"),
        ("environment", MissingBackendError, "ModuleNotFoundError: No module named 'numpy'"),
    ],
)  # fmt: skip
def test_a_known_failure_is_an_error_of_ours(
    name: str, kind: type[EdgekitError], line: str
) -> None:
    log = BuildLog()
    log.feed(NATIVE.format("ERROR", line))
    log.feed(NATIVE.format("ERROR", "Failed to build serialized engine"))
    found = find_failure(FAILURES, log.telling)
    assert found is not None
    assert found[0].name == name
    error = explain_failure(1, log, Path("build.log"))
    assert type(error) is kind
    assert error.hint == found[0].hint


def test_every_row_has_a_test() -> None:
    marks = test_a_known_failure_is_an_error_of_ours.pytestmark  # type: ignore[attr-defined]
    tested = {row[0] for row in marks[0].args[1]}
    assert tested == {row.name for row in FAILURES}


def test_an_unknown_failure_keeps_the_vendors_words() -> None:
    log = BuildLog()
    log.feed("terminate called after throwing an instance of 'std::length_error'")
    error = explain_failure(-6, log, Path("build.log"))
    assert str(error) == (
        "Edge-LLM's builder ended by SIGABRT: terminate called after throwing an instance of "
        "'std::length_error'; its log is build.log"
    )


@pytest.mark.parametrize(
    ("line", "split"),
    [
        ("[12:03:01.123] [INFO] [llmBuilder.cpp:231:build] Parsing", ("INFO", "Parsing")),
        ("[12:03:01.123] [ERROR] [TensorRT] IBuilder::build: no", ("ERROR", "IBuilder::build: no")),
        ("2026-11-29 12:03:01,123 INFO experimental.builder.core.builder: [TRT] Total  Weights",
         ("INFO", "Total Weights")),
        ("2026-11-29 12:03:01,123 ERROR experimental.builder: x", ("ERROR", "x")),
        ("  plain text ", ("", "plain text")),
        ("", ("", "")),
    ],
)  # fmt: skip
def test_lines_of_both_builders_are_split(line: str, split: tuple[str, str]) -> None:
    assert split_line(line) == split


def test_stages_go_forward() -> None:
    shares = [stage.done for stage in STAGES]
    assert shares == sorted(shares)
    assert shares[-1] == TOTAL
