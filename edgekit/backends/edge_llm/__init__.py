"""TensorRT Edge-LLM: NVIDIA's engines for Jetson Thor and Orin, in a Python of its own.

    checkpoint (edgekit.export.edge_llm) ─┬─► ONNX (exporter, any CPU) ─► builder ─┬─► engine,
               └─► reader: the same,      └─► builder, directly ───────────────────┘   on the
                   as Edge-LLM reads it, on this processor                             device

The checkpoint needs no GPU: `preflight` finds from headers what Edge-LLM would silently do wrong,
`reader` proves the numbers, and it can be carried to the device as a stage. `way` chooses between
the two paths, `exporter` runs Edge-LLM's own export and `graph` reads what came out. `runtime`
finds Edge-LLM, `payload` says which of its native libraries a device gets, `installer` sets it up.
`compiler` puts it together; `builder`, `session` and `identity` are what happens on the device.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.backends.base import BackendInfo, ScoringSession, Session, StreamingSession, Wanted
from edgekit.errors import BackendError, EdgekitError, MissingBackendError
from edgekit.progress import Progress

if TYPE_CHECKING:
    from edgekit.backends.edge_llm.runtime import Runtime
    from edgekit.backends.installation import Installation
    from edgekit.device import Device

INFO = BackendInfo(
    name="edge-llm",
    summary="TensorRT Edge-LLM 0.11: compiled on the Jetson that it runs on, in its own Python",
    precisions=frozenset({"fp16", "int8_sq", "int4_awq", "fp8", "nvfp4"}),
    requires=("numpy",),
    install="'edgekit[build]'",
    consumes="edge-llm-checkpoint",
    exposes_logits=False,
    has_stage=True,
    # of its supported models, those whose tensors `reader` proves
    families=frozenset({"llama", "qwen2", "qwen3"}),
    takes_biases=True,
    width_multiple=64,
    merges_layers=False,
    groups=(128,),
    keeps_input_scales=frozenset({"int4_awq"}),
)


class EdgeLlmBackend:
    """Proves the checkpoint on a processor, drives Edge-LLM's builder and engine on the device."""

    info = INFO

    def version(self) -> str:
        """Version of Edge-LLM in its interpreter. Raises `MissingBackendError`."""
        from edgekit.backends.edge_llm.runtime import find_runtime

        return find_runtime(None).version

    def missing_runtime(self) -> str | None:
        """That no interpreter with Edge-LLM is named or found."""
        from edgekit.backends.edge_llm.runtime import OPTION, VARIABLE, is_named

        if is_named():
            return None
        return (
            "needs Edge-LLM in a Python of its own: `edgekit doctor --install edge-llm`, or name "
            f"one by `{OPTION}` or {VARIABLE}"
        )

    def advice(self) -> list[str]:
        """Which Edge-LLM is named or found, and what it can do here, or why it is of no use; on a
        Jetson without one, what one could do."""
        from edgekit.backends.edge_llm.compiler import require_native

        if self.missing_runtime() is not None:
            return _foretell()
        try:
            runtime = _runtime()
        except EdgekitError as exc:
            return [f"edge-llm: {exc}"]
        told = [f"Edge-LLM {runtime.version} is in {runtime.python[0]}"]
        try:
            require_native(runtime)
        except MissingBackendError as exc:
            told.append(f"it exports checkpoints here and runs no engine: {exc}")
        return told

    def commands(self, wanted: Wanted, source: Path, engine: Path) -> list[str]:
        """What its builder is started by, to be read or pasted; starts nothing that compiles."""
        from edgekit.backends.edge_llm.compiler import describe_build

        return describe_build(_found(), wanted, source, engine)

    def prepare_commands(self, wanted: Wanted, source: Path) -> list[str]:
        """The same of its export; empty where engines of that precision need none."""
        from edgekit.backends.edge_llm.compiler import describe_export

        return describe_export(_found(), wanted, source)

    def prepare(self, source: Path, wanted: Wanted, *, report: Progress) -> None:
        """Export a stage to ONNX where engines of that precision are built so."""
        from edgekit.backends.edge_llm.compiler import prepare_source

        prepare_source(_found(), source, wanted, report=report)

    def compile(
        self, source: Path, out: Path, wanted: Wanted, *, report: Progress
    ) -> dict[str, Any]:
        """Run Edge-LLM's builder over a stage, on the device."""
        from edgekit.backends.edge_llm.compiler import compile_checkpoint

        return compile_checkpoint(_runtime(), source, out, wanted, report=report)

    def require_here(self, recorded: Mapping[str, Any], engine: Path) -> None:
        """Raises `StaleEngineError` for an engine of another device or version."""
        from edgekit.backends.edge_llm.identity import Identity, read_identity, require_same
        from edgekit.device import read_device, run_tool

        device = read_device(run=run_tool)
        here = read_identity(_runtime(), device)
        require_same(Identity.from_dict(recorded), here, engine, device)

    def plan_install(self, device: Device) -> Installation:
        """The environment that `doctor --install` makes here. Raises `MissingBackendError`."""
        from edgekit.backends.edge_llm.installer import plan_installation

        return plan_installation(device)

    def install(self, plan: Installation) -> str:
        """Make it; what is there then, in words. Raises `BackendError`."""
        from edgekit.backends.edge_llm.environment import child_environment
        from edgekit.backends.edge_llm.installer import finish_installation
        from edgekit.backends.installation import run_installation

        if not plan.is_done:
            run_installation(plan, child_environment(os.environ, is_own=False))
        runtime = finish_installation(plan)
        return f"Edge-LLM {runtime.version} is in {runtime.python[0]}"

    def open(
        self, engine: Path, *, context_tokens: int, num_slots: int, threads: int | None = None
    ) -> Session:
        """Raises `BackendError`: its engines give no logits. See `open_stream`."""
        raise BackendError(
            "Edge-LLM's engines give tokens, no logits",
            hint="build the engine for another `--backend`",
        )

    def open_stream(
        self,
        engine: Path,
        *,
        context_tokens: int,
        num_slots: int,
        stop_ids: Collection[int] = (),
    ) -> StreamingSession:
        """Load the engine in a worker process. Raises `StaleEngineError` for one built elsewhere,
        `BudgetError`, `BackendError`."""
        from edgekit.backends.edge_llm.session import open_session

        return open_session(
            _runtime(),
            engine,
            context_tokens=context_tokens,
            num_slots=num_slots,
            stop_ids=stop_ids,
        )

    def open_scores(self, engine: Path, *, context_tokens: int) -> ScoringSession:
        """Load the engine so that it tells what it finds likely. As `open_stream`."""
        from edgekit.backends.edge_llm.session import open_session

        return open_session(
            _runtime(), engine, context_tokens=context_tokens, num_slots=1, to_score=True
        )

    def open_twin(
        self,
        source: Path,
        *,
        context_tokens: int,
        num_slots: int,
        threads: int | None = None,
        keeps_activations: bool = False,
    ) -> Session:
        """The checkpoint on this machine's processor, through torch."""
        from edgekit.backends.edge_llm.reader import CheckpointReader

        return CheckpointReader(
            source,
            context_tokens=context_tokens,
            num_slots=num_slots,
            keeps_activations=keeps_activations,
        )


def _foretell() -> list[str]:
    """Whether its wheel has libraries for this Jetson, before it is downloaded."""
    from edgekit.backends.edge_llm.installer import plan_installation
    from edgekit.backends.edge_llm.runtime import VERSION
    from edgekit.device import read_device

    device = read_device()
    if device.jetson is None:
        return []
    try:
        notes = plan_installation(device).notes
    except MissingBackendError as exc:
        notes = (str(exc),)
    return [f"Edge-LLM {VERSION}, once installed: {note}" for note in notes]


def _runtime() -> Runtime:
    from edgekit.backends.edge_llm.runtime import find_runtime

    return find_runtime(None)


def _found() -> Runtime | None:
    """The runtime, if there is one."""
    from edgekit.backends.edge_llm.runtime import is_named

    return _runtime() if is_named() else None


BACKEND = EdgeLlmBackend()
