"""Running `trtllm-build`: real processes that print, fail, die and hang as it does."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgekit.backends import build_process
from edgekit.backends.build_log import TOTAL
from edgekit.backends.tensorrt_llm import builder
from edgekit.backends.tensorrt_llm.builder import BuiltEngine, build_engine, make_command
from edgekit.backends.tensorrt_llm.command import make_sizes
from edgekit.backends.tensorrt_llm.runtime import Runtime
from edgekit.backends.tensorrt_llm.timing import keep, timing_cache
from edgekit.errors import (
    BackendError,
    BudgetError,
    InputError,
    MissingBackendError,
    StorageError,
)

HEAD = """
import json, os, signal, subprocess, sys, time
from pathlib import Path
words = sys.argv[1:]
assert words[:2] == ["-m", "tensorrt_llm.commands.build"], words
out = Path(words[words.index("--output_dir") + 1])
def say(text):
    print("[08/27/2025-08:22:20] " + text, flush=True)
def write():
    (out / "config.json").write_text(json.dumps({"version": "1.2.1", "pretrained_config": {}}))
    (out / "rank0.engine").write_bytes(b"engine")
    Path(words[words.index("--output_timing_cache") + 1]).write_bytes(b"timings")
"""
GOOD = """
say("[TRT-LLM] [I] TensorRT LLM inited.")
say("[TRT] [I] Detected 17 inputs and 1 output network tensors.")
say("[TRT] [I] Engine generation completed in 5.37531 seconds.")
write()
say("[TRT-LLM] [I] Total time of building all engines: 00:00:11")
"""


class Build:
    """One build with a made-up interpreter."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.checkpoint = directory / "checkpoint"
        self.checkpoint.mkdir()
        for name in builder.CHECKPOINT_FILES:
            (self.checkpoint / name).write_text("{}")
        self.out = directory / "engine"
        self.log = directory / builder.LOG_FILE
        self.cache = directory / "cache" / "a.timing"
        self.reports: list[int] = []

    def run(self, body: str, **options: Any) -> BuiltEngine:
        python = self.directory / "python"
        python.write_text(f"#!{sys.executable}\n{HEAD}\n{body}\n")
        python.chmod(0o755)
        runtime = Runtime(kind="interpreter", python=(str(python),), version="1.2.1", details={})
        return self.start(runtime, **options)

    def start(self, runtime: Runtime, **options: Any) -> BuiltEngine:
        sizes = make_sizes(context_tokens=512, batch=1, chunk_tokens=256, in_parts=True)
        command = make_command(
            runtime, checkpoint=self.checkpoint, out=self.out, sizes=sizes,
            precision="fp16", kv_precision="fp16", timing_cache=self.cache,
        )  # fmt: skip
        return build_engine(
            runtime, command, checkpoint=self.checkpoint, out=self.out, log_file=self.log,
            report=self.report, timing_cache=self.cache, **options,
        )  # fmt: skip

    def report(self, step: str, done: int, total: int) -> None:
        assert (step, total) == (build_process.STEP, TOTAL)
        self.reports.append(done)


@pytest.fixture
def build(tmp_path: Path) -> Build:
    return Build(tmp_path)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_process, "_POLL_S", 0.05)
    monkeypatch.setattr(build_process, "_DRAIN_S", 0.3)


@pytest.fixture(autouse=True)
def limit() -> Iterator[None]:
    """No test waits forever for a process that does not end."""

    def give_up(number: int, frame: object) -> None:
        raise TimeoutError("a build did not end")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def test_a_build_that_succeeds_is_read(build: Build) -> None:
    built = build.run(GOOD)
    assert built.version == "1.2.1"
    assert built.engine_bytes == 6
    assert build.reports[0] == 0
    assert build.reports[-1] == TOTAL
    assert build.reports == sorted(build.reports)
    assert {60, 330, 740} <= set(build.reports)
    assert sorted(path.name for path in build.out.iterdir()) == ["config.json", "rank0.engine"]
    assert build.cache.read_bytes() == b"timings"
    log = build.log.read_text()
    assert log.startswith("$ ")
    assert "--max_num_tokens 256" in log
    assert "Engine generation completed" in log


def test_the_next_build_begins_with_what_was_measured(build: Build) -> None:
    build.run(GOOD)
    assert "--input_timing_cache" not in build.log.read_text()
    body = 'i = words.index("--input_timing_cache")\nassert Path(words[i + 1]).read_bytes()\n'
    build.run(body + GOOD)
    assert "--input_timing_cache" in build.log.read_text()


def test_the_process_gets_the_variables_that_it_should(build: Build) -> None:
    body = """
assert "PYTHONPATH" not in os.environ and "TLLM_LOG_LEVEL" not in os.environ, os.environ
assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"
assert os.getpgid(0) == os.getpid()
assert sys.stdin.read() == ""
"""
    environ = {**os.environ, "PYTHONPATH": "/x", "TLLM_LOG_LEVEL": "error"}
    build.run(body + GOOD, environ=environ, gpu_index=1)


def test_noise_does_not_hide_the_error(build: Build) -> None:
    body = """
os.write(1, b"\\xff\\xfe\\x00" * 5000)
os.write(1, b"\\r 10 %\\r 20 %\\n")
os.write(2, b"[TRT] [E] Error Code 2: Out\\xc3")
os.write(2, b"\\xa4 the cause\\n")
for i in range(3000):
    print("chatter", i)
print("Traceback (most recent call last):")
print("AssertionError: Engine building failed, please check the error log.")
sys.exit(1)
"""
    with pytest.raises(BackendError, match="Outä the cause") as caught:
        build.run(body)
    assert str(build.log) in str(caught.value)
    assert b"\xff\xfe\x00" in build.log.read_bytes()
    assert not build.cache.exists()


@pytest.mark.parametrize(
    ("body", "kind", "expected"),
    [
        ('sys.exit("torch.OutOfMemoryError: CUDA out of memory")', BudgetError, "GPU"),
        ("os.kill(os.getpid(), signal.SIGKILL)", BudgetError, "RAM"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", BackendError, "by SIGSEGV"),
        ('sys.exit("OSError: [Errno 28] No space left on device")', StorageError, "disk is full"),
        ("sys.exit(\"ModuleNotFoundError: No module named 'x'\")", MissingBackendError, "mixed up"),
        ("sys.exit(3)", BackendError, "exit code 3: it does not say why"),
        ("", BackendError, "left no engine"),
        ('write(); (out / "rank0.engine").write_bytes(b"")', BackendError, "of 0 bytes"),
        ('write(); (out / "config.json").write_text("[]")', BackendError, "left no engine"),
        ('write(); (out / "config.json").write_text("{}")', BackendError, "left no engine"),
    ],
)
def test_a_build_that_fails_says_why(
    build: Build, body: str, kind: type[Exception], expected: str
) -> None:
    with pytest.raises(kind, match=expected) as caught:
        build.run(body)
    assert type(caught.value) is kind
    assert str(build.log) in str(caught.value)
    assert not (build.out / builder.TIMING_FILE).exists()


def test_a_process_that_is_left_behind_does_not_keep_the_build(build: Build) -> None:
    body = 'child = subprocess.Popen(["sleep", "100"])\nsay(f"child {child.pid}")\n'
    started = time.monotonic()
    build.run(body + GOOD)
    assert time.monotonic() - started < 10
    child = int(build.log.read_text().split("child ")[1].split()[0])
    wait_for(lambda: not is_alive(child))


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def interrupt_when(path: Path) -> threading.Thread:
    """Ctrl-C for this process, once a build has printed its children's numbers."""

    def press() -> None:
        wait_for(lambda: path.is_file() and "ready" in path.read_text(errors="replace"))
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    return thread


@pytest.mark.parametrize("obeys", [True, False], ids=["obeys", "ignores"])
def test_ctrl_c_ends_the_whole_group(build: Build, obeys: bool) -> None:
    ignore = "" if obeys else "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    body = f"""
{ignore}child = subprocess.Popen(["sleep", "100"])
say(f"pids {{os.getpid()}} {{child.pid}} ready")
while True:
    time.sleep(1)
"""
    thread = interrupt_when(build.log)
    with pytest.raises(KeyboardInterrupt):
        build.run(body, grace_s=0.5)
    thread.join()
    pids = [int(word) for word in build.log.read_text().split("pids ")[1].split()[:2]]
    wait_for(lambda: not any(is_alive(pid) for pid in pids))
    assert not build.cache.exists()


def test_a_silent_build_is_waited_for(build: Build) -> None:
    build.run("time.sleep(1)\n" + GOOD)
    assert build.reports.count(0) > 5


def test_a_container_is_ended_by_its_name(build: Build, tmp_path: Path) -> None:
    docker = tmp_path / "docker"
    docker.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n[ "$1" = rm ] || {{ echo ready; sleep 100; }}\n'
    )
    docker.chmod(0o755)
    runtime = Runtime(
        kind="container", python=(str(docker), "run", "--rm", "image", "python3"),
        version="1.2.1", details={},
    )  # fmt: skip
    thread = interrupt_when(build.log)
    with pytest.raises(KeyboardInterrupt):
        build.start(runtime, grace_s=0.5)
    thread.join()
    run, end = (tmp_path / "calls").read_text().splitlines()
    name = f"edgekit-build-{os.getpid()}"
    assert f"--name {name} --mount type=bind,source={build.checkpoint},target=" in run
    assert "-e PYTHONUNBUFFERED=1" in run
    assert "image python3 -m tensorrt_llm.commands.build --checkpoint_dir" in run
    assert end == f"rm --force {name}"


def test_an_interpreter_that_is_gone_is_missing(build: Build, tmp_path: Path) -> None:
    runtime = Runtime(
        kind="interpreter", python=(str(tmp_path / "gone"),), version="1.2.1", details={}
    )
    with pytest.raises(MissingBackendError, match="does not start"):
        build.start(runtime)


def test_a_directory_that_is_no_checkpoint_is_refused(build: Build) -> None:
    (build.checkpoint / "rank0.safetensors").unlink()
    with pytest.raises(InputError, match=r"rank0\.safetensors is missing"):
        build.run(GOOD)
    assert not build.log.exists()


def test_a_log_that_cannot_be_written_is_a_storage_error(build: Build) -> None:
    build.log = build.checkpoint / "config.json" / "log"
    with pytest.raises(StorageError):
        build.run(GOOD)


def test_the_timing_cache_is_named_after_gpu_and_versions(tmp_path: Path) -> None:
    versions = {"tensorrt": "10.14.1.48", "tensorrt-llm": "1.2.1+cu130"}
    path = timing_cache(tmp_path, "NVIDIA GeForce RTX 3070 / Ti", 86, versions)
    assert path.parent == tmp_path
    assert path.name == (
        "nvidia-geforce-rtx-3070-ti_sm86_tensorrt-10.14.1.48_tensorrt-llm-1.2.1+cu130.timing"
    )
    assert path != timing_cache(tmp_path, "NVIDIA GeForce RTX 3070", 86, versions)


def test_a_timing_cache_that_cannot_be_kept_is_no_failure(tmp_path: Path) -> None:
    written = tmp_path / "written"
    written.write_bytes(b"x")
    (tmp_path / "file").write_text("")
    keep(written, tmp_path / "file" / "cache")
    keep(tmp_path / "none", tmp_path / "kept")
    assert not (tmp_path / "kept").exists()
    keep(written, tmp_path / "kept")
    assert (tmp_path / "kept").read_bytes() == b"x"
