"""From a stage to an engine, on the device; and the part of it that any machine can do.

source/
├── config.json, model.safetensors, …    the checkpoint
└── onnx/llm/                            its export, where one was made on the way
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from edgekit.backends.base import Wanted
from edgekit.backends.edge_llm.builder import build_engine, build_environment, make_command
from edgekit.backends.edge_llm.command import Sizes, export_command, make_sizes
from edgekit.backends.edge_llm.environment import cleared, settings
from edgekit.backends.edge_llm.exporter import (
    GRAPH_DIR,
    LOG_FILE,
    ONNX_DIR,
    export_onnx,
    exported_by,
    require_export,
)
from edgekit.backends.edge_llm.payload import find_row, read_machine, rows_of
from edgekit.backends.edge_llm.preflight import require_loadable
from edgekit.backends.edge_llm.runtime import VERSION, Runtime, default_environment
from edgekit.backends.edge_llm.way import choose_way
from edgekit.backends.environment import paste
from edgekit.device import read_device
from edgekit.errors import BudgetError, MissingBackendError
from edgekit.progress import Progress

_LOG = logging.getLogger(__name__)


def compile_checkpoint(
    runtime: Runtime, source: Path, out: Path, wanted: Wanted, *, report: Progress
) -> dict[str, Any]:
    """Make the engine's directory `out` of a stage's `source`; returns what it is bound to.

    Everything that can be refused is, before anything is built. Raises `CheckpointError`,
    `MissingBackendError`, `BudgetError`, `BackendError`, and what `builder.build_engine` raises.
    """
    require_loadable(source, precision=wanted.precision, kv_precision=wanted.kv_precision)
    require_native(runtime)
    way = choose_way(wanted.precision)
    _LOG.info("%s: %s", way.name, way.why)
    folder = source
    if way.name == "onnx":
        folder = _exported(runtime, source, wanted, report=report)
    return build_engine(
        runtime,
        folder,
        out,
        sizes_of(wanted),
        precision=wanted.precision,
        kv_precision=wanted.kv_precision,
        report=report,
    )


def require_native(runtime: Runtime) -> None:
    """Raises `MissingBackendError` where the wheel has no libraries for this machine. What was
    built from sources was built for it."""
    if rows := rows_of(runtime.details):
        find_row(read_machine(read_device(), runtime.details), rows)


def prepare_source(
    runtime: Runtime | None, source: Path, wanted: Wanted, *, report: Progress
) -> None:
    """Export a stage's checkpoint where the engine is built that way and this machine can do it;
    where it cannot, the device does it, and the log says why."""
    if choose_way(wanted.precision).name != "onnx":
        return
    if runtime is None:
        _LOG.info("no Edge-LLM here: the device exports the checkpoint to ONNX by itself")
        return
    try:
        require_export(runtime, source)
    except (MissingBackendError, BudgetError) as exc:
        _LOG.warning("the device will export the checkpoint to ONNX by itself: %s", exc)
        return
    _export(runtime, source, wanted, report=report)


def _exported(runtime: Runtime, source: Path, wanted: Wanted, *, report: Progress) -> Path:
    """The folder of the graph: what came with the stage, if this version wrote it, or a new one."""
    version = exported_by(source / ONNX_DIR)
    if version == runtime.version:
        return source / ONNX_DIR / GRAPH_DIR
    if version is not None:
        _LOG.info("the stage's graph is of Edge-LLM %s; exporting again", version)
    return _export(runtime, source, wanted, report=report)


def _export(runtime: Runtime, source: Path, wanted: Wanted, *, report: Progress) -> Path:
    return export_onnx(
        runtime,
        source,
        source / ONNX_DIR,
        precision=wanted.precision,
        kv_precision=wanted.kv_precision,
        log_file=cache_directory() / LOG_FILE,
        report=report,
    )


def sizes_of(wanted: Wanted) -> Sizes:
    """The sizes of an engine for that."""
    return make_sizes(context_tokens=wanted.context_tokens, batch=wanted.batch)


def cache_directory() -> Path:
    """What edgekit keeps for a user of this machine."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "edgekit" / "edge-llm"


def describe_export(runtime: Runtime | None, wanted: Wanted, source: Path) -> list[str]:
    """What exports a stage's checkpoint, to be read or pasted; starts nothing. Empty where the
    builder needs no export."""
    if choose_way(wanted.precision).name != "onnx":
        return []
    runtime = runtime or _to_come()
    command = export_command(
        runtime, checkpoint=source, out=source / ONNX_DIR, precision=wanted.precision
    )
    kept_back = tuple(cleared(os.environ, is_own=runtime.is_own))
    return [paste(command, settings=settings(), cleared=kept_back)]


def describe_build(
    runtime: Runtime | None, wanted: Wanted, source: Path, engine: Path
) -> list[str]:
    """What makes an engine of a stage, to be read or pasted; starts nothing."""
    runtime = runtime or _to_come()
    way, sizes = choose_way(wanted.precision), sizes_of(wanted)
    folder = source / ONNX_DIR / GRAPH_DIR if way.name == "onnx" else source
    build = make_command(runtime, folder, engine, sizes, from_onnx=way.name == "onnx")
    kept_back = tuple(cleared(os.environ, is_own=runtime.is_own))
    return [
        f"# Edge-LLM {runtime.version}, {way.name}: {way.why}",
        paste(build, settings=build_environment(runtime, sizes, {}), cleared=kept_back),
    ]


def _to_come() -> Runtime:
    """As `edgekit doctor --install edge-llm` would make it."""
    python = str(default_environment() / "bin" / "python")
    return Runtime(python=(python,), version=VERSION, has_trtedge=False, details={})
