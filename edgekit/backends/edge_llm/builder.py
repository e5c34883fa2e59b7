"""Makes an engine on the device: from an ONNX folder, or from a checkpoint without one.

    source/model.onnx …           native builder (`onnx_build.py`): the engine holds the weights
    source/config.json, weights   direct builder: weights stay in the checkpoint, which the engine's
                                  directory therefore contains

Neither is given its own cache: Edge-LLM names engines after checkpoint and sizes alone, so that one
of another GPU, TensorRT or chat template would be taken for this one's.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from edgekit.backends.build_log import TOTAL
from edgekit.backends.build_process import GRACE_S, STEP, run_logged
from edgekit.backends.edge_llm.command import Sizes
from edgekit.backends.edge_llm.environment import child_environment
from edgekit.backends.edge_llm.failures import explain_failure
from edgekit.backends.edge_llm.identity import read_identity
from edgekit.backends.edge_llm.layout import (
    CHECKPOINT_DIRECTORY,
    ENGINE_DIRECTORY,
    EngineLayout,
)
from edgekit.backends.edge_llm.log import BuildLog
from edgekit.backends.edge_llm.runtime import INSTALL, Runtime
from edgekit.backends.interpreter import release_of
from edgekit.device import Device, read_device, run_tool
from edgekit.errors import BackendError, InputError, MissingBackendError, storage_errors
from edgekit.progress import Progress
from edgekit.scratch import link_or_copy

ONNX_BUILD = Path(__file__).with_name("onnx_build.py")
ENGINE_FILE, CONFIG_FILE, TOKENIZER_FILE = "llm.engine", "config.json", "tokenizer.json"
LOG_FILE = "edge-llm-build.log"
GUARD = "-peep:fc_h_fusion=off"
"""Without it TensorRT from 10.13 corrupts the values of the first layer in engines for one
conversation (NVIDIA/TensorRT-Edge-LLM#151). Edge-LLM sets it from 0.11.0 on, and keeps it."""
_GUARDED_FROM = (10, 13)
_HELP_S = 120.0


def is_onnx(source: Path) -> bool:
    """Whether the folder is Edge-LLM's ONNX export; else it is a checkpoint."""
    return (source / "model.onnx").is_file()


def make_command(
    runtime: Runtime, source: Path, out: Path, sizes: Sizes, *, from_onnx: bool | None = None
) -> tuple[str, ...]:
    """What is run to build the engine in `out` from `source`, every size written out.

    `from_onnx` says which of the two `source` is going to be where it is not there yet.
    """
    lengths = (
        "--max-input-len", str(sizes.max_input_tokens),
        "--max-kv-cache-capacity", str(sizes.kv_capacity_tokens),
        "--max-batch-size", str(sizes.batch),
    )  # fmt: skip
    engine = ("--engine-dir", str(out.absolute() / ENGINE_DIRECTORY))
    if is_onnx(source) if from_onnx is None else from_onnx:
        onnx = ("--onnx-dir", str(source.absolute()))
        return (*runtime.python, str(ONNX_BUILD), *onnx, *engine, *lengths)
    checkpoint = ("--model-dir", str(out.absolute() / CHECKPOINT_DIRECTORY))
    only = ("--components", "llm", "--spec-type", "none")
    return (*_direct_words(runtime), *checkpoint, *engine, *only, *lengths)


def build_engine(
    runtime: Runtime,
    source: Path,
    out: Path,
    sizes: Sizes,
    *,
    precision: str,
    kv_precision: str,
    report: Progress,
    environ: Mapping[str, str] = os.environ,
    device: Device | None = None,
    log_file: Path | None = None,
    grace_s: float = GRACE_S,
) -> dict[str, Any]:
    """Build `source` into `out`; returns what the engine is bound to, for the manifest.

    The whole log goes to `log_file`, below the user's cache directory if none is named. Raises
    `InputError` for what is neither of the two sources, `BackendError`, `MissingBackendError`,
    `BudgetError`, `StaleEngineError`, `StorageError`; on Ctrl-C the build is ended first.
    """
    device = device or read_device(run=run_tool)
    log_file = log_file or _log_file(environ)
    environment = build_environment(runtime, sizes, environ)
    with storage_errors(out):
        (out / ENGINE_DIRECTORY).mkdir(parents=True, exist_ok=True)
        if not is_onnx(source):
            _take_checkpoint(source, out / CHECKPOINT_DIRECTORY)
    command = make_command(runtime, source, out, sizes)
    if not is_onnx(source):
        require_flags(command, environment)
    log = BuildLog()
    with storage_errors(log_file):
        log_file.parent.mkdir(parents=True, exist_ok=True)
        with log_file.open("wb") as file:
            status = _run(command, log, file, report, environment, grace_s)
    if status != 0:
        raise explain_failure(status, log, log_file)
    config = read_config(out / ENGINE_DIRECTORY, sizes, kv_precision, log_file)
    identity = read_identity(runtime, device)
    EngineLayout(
        precision=precision,
        kv_precision=kv_precision,
        vocab_size=int(config["vocab_size"]),
        max_input_tokens=sizes.max_input_tokens,
        kv_capacity_tokens=sizes.kv_capacity_tokens,
        batch=sizes.batch,
        has_checkpoint=not is_onnx(source),
        identity=identity,
    ).write(out)
    report(STEP, TOTAL, TOTAL)
    return identity.to_dict()


def build_environment(runtime: Runtime, sizes: Sizes, environ: Mapping[str, str]) -> dict[str, str]:
    """All variables of the builder."""
    return {
        **child_environment(environ, is_own=runtime.is_own),
        **build_settings(runtime, sizes),
    }


def build_settings(runtime: Runtime, sizes: Sizes) -> dict[str, str]:
    """What is set besides: its log speaks, TensorRT's known fault is guarded against."""
    told = {"EDGELLM_LOG_LEVEL": "INFO"}
    version = release_of(runtime.details.get("tensorrt", ""))
    if sizes.batch == 1 and (version is None or version[:2] >= _GUARDED_FROM):
        told["__LUNOWUD"] = GUARD
    return told


def require_flags(command: Sequence[str], environment: Mapping[str, str]) -> None:
    """Ask a program of Edge-LLM's which flags it knows: they change with versions.

    Raises `MissingBackendError` where it does not start, `BackendError` naming a flag it lacks.
    """
    flags = [word for word in command if word.startswith("--")]
    words = [*(command[: command.index(flags[0])] if flags else command), "--help"]
    try:
        done = subprocess.run(
            words, env=dict(environment), stdin=subprocess.DEVNULL, capture_output=True,
            timeout=_HELP_S, check=False,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError) as exc:
        raise MissingBackendError(f"{words[0]} does not start: {exc}", hint=INSTALL) from exc
    said = (done.stdout + done.stderr).decode(errors="replace")
    if done.returncode != 0:
        lines = said.strip().splitlines()
        raise BackendError(
            f"{words[0]} does not say which flags it has: {lines[-1] if lines else 'nothing'}",
            hint=INSTALL,
        )
    known = set(said.replace(",", " ").replace("=", " ").replace("[", " ").split())
    if lacking := [flag for flag in flags if flag not in known]:
        raise BackendError(
            f"this Edge-LLM's {Path(words[0]).name} has no {', '.join(lacking)}",
            hint=f"use the version that edgekit is tested with: {INSTALL}",
        )


def read_config(directory: Path, sizes: Sizes, kv_precision: str, log_file: Path) -> dict[str, Any]:
    """The engine's own `config.json`. Raises `BackendError` unless the engine is all there and is
    what was asked for: Edge-LLM drops an FP8 cache without a word beside some weights."""
    try:
        config: dict[str, Any] = json.loads((directory / CONFIG_FILE).read_text(encoding="utf-8"))
        size = (directory / ENGINE_FILE).stat().st_size
        built = config["builder_config"]
        found = tuple(
            int(built[name])
            for name in ("max_input_len", "max_kv_cache_capacity", "max_batch_size")
        )
        if not size or int(config["vocab_size"]) < 1:
            raise ValueError(f"{ENGINE_FILE} has {size} bytes")
        if not (directory / TOKENIZER_FILE).is_file():
            raise ValueError(f"no {TOKENIZER_FILE}, without which it reads no token of a prompt")
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise BackendError(
            f"Edge-LLM's builder ended well and left no whole engine: {exc}; its log is {log_file}",
            hint=f"less {log_file}",
        ) from exc
    asked = (sizes.max_input_tokens, sizes.kv_capacity_tokens, sizes.batch)
    if found != asked:
        raise BackendError(
            f"Edge-LLM built an engine of other sizes: {found} instead of {asked} (input, cache, "
            f"conversations); its log is {log_file}"
        )
    cache = str(config.get("kv_cache_dtype", kv_precision))
    if cache != kv_precision:
        raise BackendError(
            f"Edge-LLM built an engine with a cache of {cache}, {kv_precision} was asked for",
            hint=f"build with `--kv {cache}`",
        )
    return config


def _direct_words(runtime: Runtime) -> tuple[str, ...]:
    """What starts the builder that needs no ONNX; it lies beside its interpreter."""
    beside = Path(runtime.python[0])
    if runtime.has_trtedge:
        return (str(beside.with_name("trtedge")), "build")
    return (str(beside.with_name("tensorrt-edgellm-build")),)


def _take_checkpoint(source: Path, place: Path) -> None:
    """The files of a checkpoint at `place`, without a copy where that can be."""
    if not (source / CONFIG_FILE).is_file():
        raise InputError(
            f"neither an ONNX folder of Edge-LLM nor a checkpoint: {source}",
            hint="make it with `edgekit build --stage checkpoint`",
        )
    place.mkdir(exist_ok=True)
    for file in sorted(source.iterdir()):
        if file.is_file():
            link_or_copy(file, place / file.name)


def _run(
    command: Sequence[str],
    log: BuildLog,
    file: Any,
    report: Progress,
    environment: Mapping[str, str],
    grace_s: float,
) -> int:
    file.write(f"$ {' '.join(command)}\n".encode(errors="replace"))
    file.flush()
    try:
        return run_logged(
            command, log, file, report=report, environment=environment, grace_s=grace_s
        )
    except OSError as exc:
        raise MissingBackendError(
            f"Edge-LLM's interpreter does not start: {exc}", hint=INSTALL
        ) from exc


def _log_file(environ: Mapping[str, str]) -> Path:
    """Outlives a failed build."""
    base = environ.get("XDG_CACHE_HOME")
    if not base:
        with suppress(RuntimeError):  # no home
            base = str(Path.home() / ".cache")
    return Path(base or "/tmp") / "edgekit" / "edge-llm" / LOG_FILE
