"""Runs `trtllm-build`: watches its log, reports how far it is, and says why it failed.

The process leads a group of its own, so that Ctrl-C ends it with all that it started. It may be
silent for as long as it likes: tuning kernels takes minutes without a word.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO

from edgekit.backends.tensorrt_llm.command import BuildSizes, build_command, paste
from edgekit.backends.tensorrt_llm.container import Mount
from edgekit.backends.tensorrt_llm.environment import child_environment, settings
from edgekit.backends.tensorrt_llm.failures import explain_failure
from edgekit.backends.tensorrt_llm.log import TOTAL, BuildLog, Lines
from edgekit.backends.tensorrt_llm.runtime import Runtime
from edgekit.backends.tensorrt_llm.timing import keep, readable
from edgekit.errors import BackendError, InputError, MissingBackendError, storage_errors
from edgekit.progress import Progress

CONFIG_FILE, ENGINE_FILE = "config.json", "rank0.engine"
CHECKPOINT_FILES = (CONFIG_FILE, "rank0.safetensors")
LOG_FILE = "trtllm-build.log"
TIMING_FILE = "timing.cache"
"""Written into the engine's directory, where there is room, and taken out again."""
STEP = "compile"
_POLL_S = 0.5
_GRACE_S = 10.0
"""Between the request to end and the end by force."""
_DRAIN_S = 2.0
"""For the rest of the log, when the process is gone and something it started still holds it."""
_CHUNK = 65536


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltEngine:
    """What `trtllm-build` left in its directory."""

    version: str
    """Of the TensorRT-LLM that wrote it, from its `config.json`."""
    engine_bytes: int
    seconds: float


def make_command(
    runtime: Runtime,
    *,
    checkpoint: Path,
    out: Path,
    sizes: BuildSizes,
    precision: str,
    kv_precision: str,
    timing_cache: Path | None = None,
    gpu_index: int | None = None,
    gathers_logits: bool = False,
) -> tuple[str, ...]:
    """The whole command for a runtime; a container sees checkpoint, engine and timing cache."""
    known = readable(timing_cache) if timing_cache is not None else None
    mounts = [Mount(path=checkpoint), Mount(path=out, is_writable=True)]
    mounts += [Mount(path=known)] if known is not None else []
    python = runtime.words(
        mounts=mounts, settings=settings(gpu_index=gpu_index), name=f"edgekit-build-{os.getpid()}"
    )
    return build_command(
        python,
        checkpoint=checkpoint.absolute(),
        engine=out.absolute(),
        sizes=sizes,
        precision=precision,
        kv_precision=kv_precision,
        timing_cache_in=known.absolute() if known is not None else None,
        timing_cache_out=out.absolute() / TIMING_FILE,
        gathers_logits=gathers_logits,
    )


def build_engine(
    runtime: Runtime,
    command: Sequence[str],
    *,
    checkpoint: Path,
    out: Path,
    log_file: Path,
    report: Progress,
    environ: Mapping[str, str] = os.environ,
    gpu_index: int | None = None,
    timing_cache: Path | None = None,
    grace_s: float = _GRACE_S,
) -> BuiltEngine:
    """Run `command` (see `build_command`), which reads `checkpoint` and writes into `out`.

    The whole log goes to `log_file`, which lies outside of `out`. `timing_cache` is where the one
    that the command wrote is kept. Raises `InputError` for what is no checkpoint,
    `BackendError`, `MissingBackendError`, `BudgetError`, `StaleEngineError`, `StorageError`; on
    Ctrl-C the build is ended first.
    """
    require_checkpoint(checkpoint)
    started = time.monotonic()
    environment = _environment(runtime, environ, gpu_index)
    written = out / TIMING_FILE
    try:
        with storage_errors(log_file):
            out.mkdir(parents=True, exist_ok=True)
            log_file.parent.mkdir(parents=True, exist_ok=True)
            with log_file.open("wb") as file:
                file.write(f"$ {paste(command)}\n".encode(errors="replace"))
                file.flush()
                returncode, log = _run(runtime, command, file, report, environment, grace_s)
        if returncode != 0:
            raise explain_failure(returncode, log, log_file)
        version, size = read_engine(out, log_file)
        if timing_cache is not None:
            keep(written, timing_cache)
    finally:
        with suppress(OSError):
            written.unlink(missing_ok=True)
    report(STEP, TOTAL, TOTAL)
    return BuiltEngine(version=version, engine_bytes=size, seconds=time.monotonic() - started)


def require_checkpoint(checkpoint: Path) -> None:
    """Raises `InputError` unless the directory holds a checkpoint of TensorRT-LLM."""
    for name in CHECKPOINT_FILES:
        if not (checkpoint / name).is_file():
            raise InputError(
                f"not a TensorRT-LLM checkpoint, {name} is missing: {checkpoint}",
                hint="make it with `edgekit build --stage checkpoint`",
            )


def read_engine(out: Path, log_file: Path) -> tuple[str, int]:
    """Version and size of the engine in `out`. Raises `BackendError` unless it is all there."""
    try:
        version = json.loads((out / CONFIG_FILE).read_text(encoding="utf-8"))["version"]
        size = (out / ENGINE_FILE).stat().st_size
        if not isinstance(version, str) or not version or not size:
            raise ValueError(f"version {version!r}, {ENGINE_FILE} of {size} bytes")
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise BackendError(
            f"trtllm-build ended well and left no engine: {exc}; its log is {log_file}",
            hint=f"less {log_file}",
        ) from exc
    return version, size


def _environment(
    runtime: Runtime, environ: Mapping[str, str], gpu_index: int | None
) -> dict[str, str]:
    """A container's tool is started as it is; what is inside got its variables from the command."""
    if runtime.kind == "container":
        return dict(environ)
    return child_environment(environ, is_own=runtime.is_own, gpu_index=gpu_index)


def _run(
    runtime: Runtime,
    command: Sequence[str],
    file: BinaryIO,
    report: Progress,
    environment: Mapping[str, str],
    grace_s: float,
) -> tuple[int, BuildLog]:
    try:
        process = subprocess.Popen(
            list(command), env=dict(environment), cwd=Path(file.name).parent,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
    except OSError as exc:
        raise MissingBackendError(
            f"TensorRT-LLM's interpreter does not start: {exc}",
            hint="`edgekit doctor` says what is on this machine",
        ) from exc
    try:
        log = _follow(process, file, report)
    except BaseException:
        _stop(process, runtime.stop_words(_name_of(command)), environment, grace_s)
        raise
    return process.returncode, log


def _follow(process: subprocess.Popen[bytes], file: BinaryIO, report: Progress) -> BuildLog:
    """Read to the end of the log, or to the end of the process."""
    assert process.stdout is not None
    chunks: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    # a thread, so that Ctrl-C and the end of the process are seen while nothing is printed
    threading.Thread(
        target=_read, args=(process.stdout, chunks.put), name="trtllm-build", daemon=True
    ).start()
    log, lines = BuildLog(), Lines()
    silent_until: float | None = None

    def tell() -> None:
        report(STEP, min(log.done, TOTAL - 1), TOTAL)

    while True:
        tell()
        try:
            data = chunks.get(timeout=_POLL_S)
        except queue.Empty:
            if process.poll() is None:
                continue
            now = time.monotonic()
            silent_until = now + _DRAIN_S if silent_until is None else silent_until
            if now < silent_until:
                continue
            # something that it started holds the log open: it is of no use any more
            _signal_group(process.pid, signal.SIGKILL)
            data = b""
        file.write(data)
        file.flush()
        for line in lines.feed(data, final=not data):
            before = log.done
            log.feed(line)
            if log.done > before:
                tell()
        if not data:
            break
    process.wait()
    return log


def _read(stream: IO[bytes], put: Callable[[bytes], None]) -> None:
    with stream:
        while True:
            try:
                data = os.read(stream.fileno(), _CHUNK)
            except OSError:
                data = b""
            put(data)
            if not data:
                return


def _stop(
    process: subprocess.Popen[bytes],
    stop_words: Sequence[str],
    environment: Mapping[str, str],
    grace_s: float,
) -> None:
    """End the whole group: asked first, forced after a while or at a second Ctrl-C."""
    try:
        _signal_group(process.pid, signal.SIGTERM)
        process.wait(grace_s)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        pass
    finally:
        _signal_group(process.pid, signal.SIGKILL)
        process.wait()
        if stop_words:
            # the tool is gone, its container may not be
            with suppress(OSError, subprocess.SubprocessError):
                subprocess.run(
                    list(stop_words), env=dict(environment), stdin=subprocess.DEVNULL,
                    capture_output=True, timeout=_GRACE_S, check=False,
                )  # fmt: skip


def _signal_group(group: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _name_of(command: Sequence[str]) -> str:
    """Of the container that the command starts; empty without one."""
    words = list(command)
    place = words.index("--name") + 1 if "--name" in words else len(words)
    return words[place] if place < len(words) else ""
