"""Edge-LLM's own ONNX export, run in its interpreter and checked by reading what it wrote.

It ends with success where it went wrong, so its exit code proves nothing: `graph` does. The graph
belongs to the version that wrote it; `onnx/edgekit.json` says which.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from edgekit.backends.build_failure import how_it_ended
from edgekit.backends.build_log import BuildLog, Stage
from edgekit.backends.build_process import run_logged
from edgekit.backends.edge_llm.builder import require_flags
from edgekit.backends.edge_llm.command import export_command
from edgekit.backends.edge_llm.environment import child_environment
from edgekit.backends.edge_llm.graph import require_graph
from edgekit.backends.edge_llm.preflight import require_loadable
from edgekit.backends.edge_llm.runtime import VERSION, Runtime
from edgekit.backends.environment import paste
from edgekit.checkpoint.read import read_json
from edgekit.device import read_device
from edgekit.errors import BackendError, BudgetError, EngineError, MissingBackendError
from edgekit.families import read_spec
from edgekit.progress import Progress
from edgekit.scratch import write_beside
from edgekit.units import MIB, format_bytes

ONNX_DIR = "onnx"
GRAPH_DIR = "llm"
"""Below `ONNX_DIR`: `model.onnx`, its data, config and tokenizer."""
LOG_FILE = "export.log"
RAM_FACTOR = 2.1
"""Peak of the export, in multiples of the checkpoint: 6.25 GB for 3.0 GB, 0.11.0 on x86-64."""
_RAM_FIXED_BYTES = 500 * MIB
"""A model of nothing: 485 MB."""
_NOTE_FILE = "edgekit.json"
_NOTHING = re.compile(r"export failed$|full stack trace above|direct cause of the following")
"""Errors that say no more than that there was one."""
_STAGES = (
    Stage(says="Obtain model graph", done=300),
    Stage(says="Run decompositions", done=500),
    Stage(says="Translate the graph", done=600),
    Stage(says="embedding.safetensors", done=950),
)


def export_onnx(
    runtime: Runtime,
    checkpoint: Path,
    out: Path,
    *,
    precision: str,
    kv_precision: str,
    log_file: Path,
    report: Progress,
    environ: Mapping[str, str] = os.environ,
) -> Path:
    """Export `checkpoint` into the directory `out`, made anew; the folder of the graph.

    Nothing stays at `out` unless the graph is as it should be. Raises `CheckpointError` for what
    would be exported wrongly, `BudgetError`, `MissingBackendError`, `BackendError`.
    """
    require_loadable(checkpoint, precision=precision, kv_precision=kv_precision)
    require_export(runtime, checkpoint)
    command = export_command(runtime, checkpoint=checkpoint, out=out, precision=precision)
    environment = child_environment(environ, is_own=runtime.is_own)
    if runtime.version != VERSION:
        require_flags(command, environment)
    log = BuildLog(_STAGES, split=_split, empty=_NOTHING)
    # what is there may be linked to a stage: never written over
    shutil.rmtree(out, ignore_errors=True)
    log_file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with log_file.open("wb") as file:
            file.write(f"$ {paste(command)}\n".encode(errors="replace"))
            file.flush()
            code = run_logged(command, log, file, report=report, environment=environment)
        if code != 0:
            raise BackendError(
                f"Edge-LLM's export ended {how_it_ended(code)}: {log.last_error}",
                hint=f"its log is {log_file}",
            )
        spec = read_spec(read_json(checkpoint / "config.json"))
        require_graph(out / GRAPH_DIR, spec, precision=precision, kv_precision=kv_precision)
        note = {"edgellm": runtime.version, "precision": precision, "kv_precision": kv_precision}
        write_beside(out / _NOTE_FILE, json.dumps(note, indent=2, sort_keys=True) + "\n")
    except OSError as exc:
        shutil.rmtree(out, ignore_errors=True)
        raise MissingBackendError(f"Edge-LLM's export does not start: {exc}") from exc
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)
        raise
    return out / GRAPH_DIR


def require_export(runtime: Runtime, checkpoint: Path) -> None:
    """Raises `MissingBackendError` without the packages, `BudgetError` without the memory."""
    if not runtime.can_export:
        raise MissingBackendError(
            f"Edge-LLM's export needs torch, transformers and onnx in {runtime.python[0]}",
            hint=f"{runtime.python[0]} -m pip install "
            f"'tensorrt-edgellm[export]=={runtime.version}'",
        )
    needed = export_bytes(checkpoint)
    available = read_device().available_bytes
    if needed > available:
        raise BudgetError(
            f"Edge-LLM's export needs {format_bytes(needed)} of memory, "
            f"{format_bytes(available)} is available",
            hint="let the device do it: `edgekit compile` of a stage without `onnx` exports there",
        )


def export_bytes(checkpoint: Path) -> int:
    """Peak memory of the export of a checkpoint."""
    size = sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))
    return int(size * RAM_FACTOR) + _RAM_FIXED_BYTES


def exported_by(out: Path) -> str | None:
    """The version of Edge-LLM that exported `out`; `None` where there is no finished export.

    Raises `EngineError` for one that cannot be read.
    """
    if not (out / _NOTE_FILE).is_file():
        return None
    try:
        return str(json.loads((out / _NOTE_FILE).read_text(encoding="utf-8"))["edgellm"])
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise EngineError(
            f"unreadable {out / _NOTE_FILE}: {exc}", hint="make the stage again"
        ) from exc


def _split(line: str) -> tuple[str, str]:
    """`"12:44:11  ERROR     tensorrt_edgellm.scripts.export: [LLM] …"` -> level and text."""
    parts = line.strip().split(None, 2)
    if len(parts) == 3 and parts[1] in ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"):
        return parts[1], parts[2]
    return "", line.strip()
