"""The log of `trtllm-build`: how far it is, its last errors, and what they mean."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.backends.build_failure import find_failure
from edgekit.backends.build_log import TOTAL, Lines
from edgekit.backends.tensorrt_llm.failures import (
    FAILURES,
    explain_failure,
)
from edgekit.backends.tensorrt_llm.log import STAGES, BuildLog, split_line
from edgekit.errors import (
    BackendError,
    BudgetError,
    EdgekitError,
    MissingBackendError,
    StaleEngineError,
    StorageError,
)

# lines of real builds: NVIDIA/TensorRT-LLM#2894 and the README of its examples
BUILD = """[TensorRT-LLM] TensorRT-LLM version: 1.2.1
[08/27/2025-08:22:20] [TRT-LLM] [I] Starting TensorRT LLM init.
[08/27/2025-08:22:20] [TRT-LLM] [I] TensorRT LLM inited.
[08/27/2025-08:22:21] [TRT-LLM] [W] padding removal and fMHA are both enabled, max_input_len is not
[08/27/2025-08:22:21] [TRT] [I] [MemUsageChange] Init CUDA: CPU +0, GPU +0, now: CPU 7471, GPU 436
[08/27/2025-08:22:22] [TRT] [I] [MemUsageChange] Init builder kernel library: CPU +2236, GPU +428
[08/27/2025-08:22:22] [TRT-LLM] [W] Invalid timing cache, using freshly created one
[08/27/2025-08:22:22] [TRT-LLM] [I] Set nccl_plugin to None.
[08/27/2025-08:22:22] [TRT-LLM] [I] Total time of constructing network from module object 2.7 s
[08/27/2025-08:22:22] [TRT-LLM] [I] Total optimization profiles added: 1
[08/27/2025-08:22:22] [TRT-LLM] [I] Total time to initialize the weights in network: 00:00:00
[08/27/2025-08:22:22] [TRT-LLM] [I] Build TensorRT engine Unnamed Network 0
[08/27/2025-08:22:22] [TRT] [I] Global timing cache in use. Profiling results will be stored.
[08/27/2025-08:22:28] [TRT] [I] Detected 17 inputs and 1 output network tensors.
[08/27/2025-08:22:30] [TRT] [I] Total Weights Memory: 326085504 bytes
[08/27/2025-08:22:30] [TRT] [I] Engine generation completed in 5.37531 seconds.
[08/27/2025-08:22:30] [TRT-LLM] [I] Total time of building Unnamed Network 0: 00:00:08
[08/27/2025-08:22:30] [TRT-LLM] [I] Timing cache serialized to model.cache
[08/27/2025-08:22:30] [TRT-LLM] [I] Build phase peak memory: 6978.95 MB, children: 12049.21 MB
[08/27/2025-08:22:31] [TRT-LLM] [I] Serializing engine to /engine/rank0.engine...
[08/27/2025-08:22:31] [TRT-LLM] [I] Engine serialized. Total time: 00:00:00
[08/27/2025-08:22:31] [TRT-LLM] [I] Total time of building all engines: 00:00:11
"""
LOG = Path("build.log")


def log_of(text: str) -> BuildLog:
    log = BuildLog()
    for line in text.splitlines():
        log.feed(line)
    return log


def test_every_stage_of_a_real_build_is_seen() -> None:
    log, seen = BuildLog(), []
    for line in BUILD.splitlines():
        log.feed(line)
        seen.append(log.done)
    assert seen == sorted(seen)
    assert seen[-1] == TOTAL
    # two spellings of the first stage, of which a version has one
    assert set(seen) >= {stage.done for stage in STAGES}
    assert log.errors == ()
    assert log.last_error == "Total time of building all engines: 00:00:11"


def test_a_version_line_that_names_the_program_is_no_error() -> None:
    assert split_line("[TensorRT-LLM] TensorRT-LLM version: 1.2.1")[0] == ""
    assert split_line("[TensorRT-LLM][ERROR] no") == ("ERROR", "no")
    assert split_line("[01/02/2026-03:04:05] [TRT] [E] 2:  [x]  y ") == ("E", "2: [x] y")


@given(st.lists(st.binary(max_size=200)))
def test_lines_do_not_depend_on_how_they_come(parts: list[bytes]) -> None:
    whole, cut = Lines(), Lines()
    together = whole.feed(b"".join(parts), final=True)
    apart = [line for part in parts for line in cut.feed(part)]
    apart += cut.feed(b"", final=True)
    assert apart == together


def test_a_carriage_return_ends_a_line() -> None:
    assert Lines().feed(b"10 %\r20 %\r\nerr\xff\n", final=True) == ["10 %", "20 %", "err\ufffd"]


def test_a_line_without_an_end_is_cut_once() -> None:
    lines = Lines()
    given = [line for _ in range(100) for line in lines.feed(b"x" * 1000)]
    given += lines.feed(b"xx\n[TRT] [E] after\n")
    assert len(given) == 2
    assert given[0].startswith("xxxx")
    assert given[1] == "[TRT] [E] after"


noise = st.one_of(
    st.text(max_size=80),
    st.sampled_from(BUILD.splitlines()),
    st.binary(max_size=80).map(lambda data: data.decode(errors="replace")),
)


@given(st.lists(noise, max_size=40), st.lists(st.sampled_from(BUILD.splitlines()), max_size=200))
def test_the_last_error_is_never_lost(before: list[str], after: list[str]) -> None:
    log = BuildLog()
    for line in before:
        log.feed(line)
    log.feed("[08/27/2025-08:22:28] [TRT] [E] IBuilder: the cause")
    for line in after:
        log.feed(line)
    log.feed("AssertionError: Engine building failed, please check the error log.")
    assert log.last_error == "IBuilder: the cause"
    assert 0 <= log.done <= TOTAL


@given(st.lists(noise), st.integers(min_value=-64, max_value=255))
def test_any_log_is_explained(lines: list[str], returncode: int) -> None:
    log = BuildLog()
    for line in lines:
        log.feed(line)
    error = explain_failure(returncode, log, LOG)
    assert str(LOG) in str(error)
    assert error.hint


@pytest.mark.parametrize(
    ("name", "kind", "line"),
    [
        ("gpu-memory", BudgetError,
         "[TRT] [E] 2: [virtualMemoryBuffer.cpp::resizePhysical::140] Error Code 2: OutOfMemory "
         "(no further information)"),
        ("gpu-memory", BudgetError,
         "[TRT] [E] [defaultAllocator.cpp::allocate::31] Error Code 1: Cuda Runtime "
         "(out of memory)"),
        ("gpu-memory", BudgetError,
         "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 112.00 MiB."),
        ("host-memory", BudgetError, "MemoryError: Unable to allocate 7.8 GiB"),
        ("host-memory", BudgetError, "OSError: [Errno 12] Cannot allocate memory"),
        ("host-memory", BudgetError, "terminate called after throwing 'std::bad_alloc'"),
        ("disk-full", StorageError, "OSError: [Errno 28] No space left on device"),
        ("no-permission", StorageError, "PermissionError: [Errno 13] Permission denied: '/e'"),
        ("no-gpu", MissingBackendError, "ValueError: max_workers must be greater than 0"),
        ("no-gpu", MissingBackendError, "RuntimeError: No CUDA GPUs are available"),
        ("no-gpu", MissingBackendError,
         "ImportError: libcuda.so.1: cannot open shared object file: No such file or directory"),
        ("no-gpu", MissingBackendError,
         "docker: Error response from daemon: could not select device driver"),
        ("old-driver", MissingBackendError,
         "RuntimeError: CUDA driver version is insufficient for CUDA runtime version"),
        ("unsupported-sm", MissingBackendError,
         "what():  [TensorRT-LLM][ERROR] Assertion failed: Unsupported architecture "
         "(/src/fmhaRunner.cpp:89)"),
        ("unsupported-sm", MissingBackendError,
         "RuntimeError: CUDA error: no kernel image is available for execution on the device"),
        ("unsupported-sm", MissingBackendError, "[TRT] [E] Target GPU SM 110 is not supported"),
        ("precision-not-on-gpu", BackendError,
         "RuntimeError: INT8/INT4 quantization is not supported on SM>=100."),
        ("other-gpu", StaleEngineError,
         "[TRT] [E] The engine plan file is generated on an incompatible device, expecting "
         "compute 8.9 got compute 8.6, please rebuild."),
        ("other-version", StaleEngineError,
         "[TRT] [E] IRuntime: Error Code 1: Serialization (Serialization assertion "
         "stdVersionRead == kSERIALIZATION_VERSION failed.Version tag does not match."),
        ("plugin", BackendError,
         "[TRT] [E] 9: GPTAttention: could not find any supported formats consistent with "
         "input/output data types"),
        ("plugin", BackendError, "AssertionError: Unsupported dtype: float8"),
        ("checkpoint", BackendError,
         "RuntimeError: Required but not provided tensors:{'lm_head.weight'}"),
        ("checkpoint", BackendError,
         "RuntimeError: Provided tensor names are different from those expected by the engine."),
        ("checkpoint", BackendError, "KeyError: 'architecture'"),
        ("checkpoint", BackendError,
         "TypeError: LLaMAConfig.__init__() got an unexpected keyword argument 'rotary'"),
        ("unknown-flag", BackendError, "build.py: error: unrecognized arguments: --reduce_fusion"),
        ("mpi", MissingBackendError,
         "ImportError: libmpi.so.40: cannot open shared object file: No such file or directory"),
        ("environment", MissingBackendError, "ModuleNotFoundError: No module named 'tensorrt'"),
        ("environment", MissingBackendError,
         "ImportError: libth_common.so: undefined symbol: _ZN3c105Error"),
    ],
)  # fmt: skip
def test_a_known_failure_is_an_error_of_ours(
    name: str, kind: type[EdgekitError], line: str
) -> None:
    log = log_of(
        f"{BUILD}[08/27/2025-08:22:28] {line}\nTraceback (most recent call last):\n"
        "AssertionError: Engine building failed, please check the error log."
    )
    found = find_failure(FAILURES, log.telling)
    assert found is not None
    assert found[0].name == name
    error = explain_failure(1, log, LOG)
    assert type(error) is kind
    assert error.hint == found[0].hint


def test_every_row_has_a_test() -> None:
    marks = test_a_known_failure_is_an_error_of_ours.pytestmark  # type: ignore[attr-defined]
    tried = {case[0] for mark in marks if mark.name == "parametrize" for case in mark.args[1]}
    assert {row.name for row in FAILURES} - tried == {"container"}


def test_the_later_cause_wins() -> None:
    # memory that one kernel did not get, then a full disk
    log = log_of(
        "[TRT] [E] Error Code 1: Cuda Runtime (out of memory)\n"
        "OSError: [Errno 28] No space left on device"
    )
    assert isinstance(explain_failure(1, log, LOG), StorageError)


def test_a_build_that_was_killed_had_no_memory() -> None:
    log = log_of("[TRT] [E] Error Code 1: Cuda Runtime (out of memory)")
    for returncode in (-9, 137):
        error = explain_failure(returncode, log, LOG)
        assert isinstance(error, BudgetError)
        assert "RAM" in str(error)


def test_an_unknown_failure_is_told_in_its_own_words() -> None:
    log = log_of(f"{BUILD}[TRT] [E] 10: Could not find any implementation for node X\n")
    error = explain_failure(1, log, LOG)
    assert type(error) is BackendError
    assert "exit code 1: 10: Could not find any implementation for node X" in str(error)
    assert "by SIGSEGV" in str(explain_failure(-11, BuildLog(), LOG))
