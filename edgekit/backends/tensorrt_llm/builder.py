"""Runs `trtllm-build`: watches its log, reports how far it is, and says why it failed."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from edgekit.backends.build_log import TOTAL
from edgekit.backends.build_process import GRACE_S, STEP, run_logged
from edgekit.backends.environment import paste
from edgekit.backends.tensorrt_llm.command import BuildSizes, build_command
from edgekit.backends.tensorrt_llm.container import Mount
from edgekit.backends.tensorrt_llm.environment import child_environment, settings
from edgekit.backends.tensorrt_llm.failures import explain_failure
from edgekit.backends.tensorrt_llm.log import BuildLog
from edgekit.backends.tensorrt_llm.runtime import Runtime
from edgekit.backends.tensorrt_llm.timing import keep, readable
from edgekit.errors import BackendError, InputError, MissingBackendError, storage_errors
from edgekit.progress import Progress

CONFIG_FILE, ENGINE_FILE = "config.json", "rank0.engine"
CHECKPOINT_FILES = (CONFIG_FILE, "rank0.safetensors")
LOG_FILE = "trtllm-build.log"
TIMING_FILE = "timing.cache"
"""Written into the engine's directory, where there is room, and taken out again."""


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
    grace_s: float = GRACE_S,
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
    log = BuildLog()
    try:
        status = run_logged(
            command, log, file, report=report, environment=environment,
            stop_words=runtime.stop_words(_name_of(command)), grace_s=grace_s,
        )  # fmt: skip
    except OSError as exc:
        raise MissingBackendError(
            f"TensorRT-LLM's interpreter does not start: {exc}",
            hint="`edgekit doctor` says what is on this machine",
        ) from exc
    return status, log


def _name_of(command: Sequence[str]) -> str:
    """Of the container that the command starts; empty without one."""
    words = list(command)
    place = words.index("--name") + 1 if "--name" in words else len(words)
    return words[place] if place < len(words) else ""
