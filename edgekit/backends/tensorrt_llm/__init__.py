"""TensorRT-LLM: NVIDIA's engines for RTX cards and data-centre GPUs, in a Python of its own.

    checkpoint (edgekit.export) ─► trtllm-build on the GPU ─► engine ─► worker ─► tokens
               └─► reader: the same checkpoint, read as the builder does, on this processor

The checkpoint needs no GPU and is proved by `reader`; it can be carried to the device as a stage.
There `runtime` finds TensorRT-LLM (an interpreter or an image), `builder` runs its compiler with a
`command` that leaves nothing to defaults, and `session` speaks to a `worker` process in that
interpreter. `identity` says what an engine is bound to.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.backends.base import (
    BackendInfo,
    ScoringSession,
    Session,
    StreamingSession,
    Wanted,
)
from edgekit.errors import BackendError, EdgekitError, MissingBackendError
from edgekit.progress import Progress

if TYPE_CHECKING:
    from edgekit.backends.tensorrt_llm.runtime import Runtime

INFO = BackendInfo(
    name="tensorrt-llm",
    summary="TensorRT-LLM 1.2: compiled on the GPU that it runs on, in its own Python",
    precisions=frozenset({"fp16", "int8", "int4_awq", "fp8"}),
    requires=("numpy",),
    install="'edgekit[build]'",
    consumes="tensorrt-llm-checkpoint",
    exposes_logits=False,
    has_stage=True,
    families=frozenset({"llama"}),
    width_multiple=64,
    groups=(64, 128),
)


class TensorRtLlmBackend:
    """Proves the checkpoint on a processor, drives the builder and its engine on the card."""

    info = INFO

    def version(self) -> str:
        """Version of TensorRT-LLM in its interpreter. Raises `MissingBackendError`."""
        return _runtime_with_engines().version

    def missing_runtime(self) -> str | None:
        """That no interpreter with TensorRT-LLM is named or found."""
        from edgekit.backends.tensorrt_llm.runtime import OPTION, VARIABLE

        if os.environ.get(VARIABLE) or find_spec("tensorrt_llm") is not None:
            return None
        return f"needs TensorRT-LLM in a Python of its own, named by `{OPTION}` or {VARIABLE}"

    def advice(self) -> list[str]:
        """Which TensorRT-LLM is named or found, its notes, or why it is of no use."""
        from edgekit.backends.tensorrt_llm.runtime import find_runtime

        if self.missing_runtime() is not None:
            return []
        try:
            runtime = find_runtime(None)
        except EdgekitError as exc:
            return [f"tensorrt-llm: {exc}"]
        where = runtime.details.get("image", runtime.python[0])
        return [f"TensorRT-LLM {runtime.version} is in {where}", *runtime.notes]

    def commands(self, wanted: Wanted, source: Path, engine: Path) -> list[str]:
        """What `compile` runs, to be read or pasted; starts nothing that compiles."""
        from edgekit.backends.tensorrt_llm.builder import make_command
        from edgekit.backends.tensorrt_llm.command import paste
        from edgekit.backends.tensorrt_llm.environment import cleared, settings
        from edgekit.backends.tensorrt_llm.runtime import VARIABLE, Runtime

        try:
            runtime = _runtime_with_engines()
        except MissingBackendError:
            runtime = Runtime(kind="interpreter", python=(_PLACEHOLDER,), version="", details={})
        command = make_command(
            runtime,
            checkpoint=source,
            out=engine,
            sizes=_sizes(wanted),
            precision=wanted.precision,
            kv_precision=wanted.kv_precision,
        )
        line = paste(
            command, settings=settings(), cleared=tuple(cleared(os.environ, is_own=runtime.is_own))
        )
        return [line.replace(_PLACEHOLDER, f'"${VARIABLE}"')]

    def compile(
        self, source: Path, out: Path, wanted: Wanted, *, report: Progress
    ) -> dict[str, Any]:
        """Run `trtllm-build` over the checkpoint, on the first GPU here that it is for."""
        from edgekit.backends.tensorrt_llm.compiler import compile_checkpoint

        identity = compile_checkpoint(
            _runtime_with_engines(), source, out, wanted, _sizes(wanted), report=report
        )
        return identity.to_dict()

    def open(
        self, engine: Path, *, context_tokens: int, num_slots: int, threads: int | None = None
    ) -> Session:
        """Raises `BackendError`: its engines give no logits. See `open_stream`."""
        raise BackendError(
            "TensorRT-LLM's engines give tokens, no logits",
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
        from edgekit.backends.tensorrt_llm.compiler import open_engine
        from edgekit.backends.tensorrt_llm.runtime import find_runtime

        return open_engine(
            find_runtime(None),  # a version without engines is one that differs, and is told so
            engine,
            context_tokens=context_tokens,
            num_slots=num_slots,
            stop_ids=stop_ids,
        )

    def open_scores(self, engine: Path, *, context_tokens: int) -> ScoringSession:
        """Load the engine so that it gives the logits of what it samples. As `open_stream`."""
        from edgekit.backends.tensorrt_llm.compiler import open_engine
        from edgekit.backends.tensorrt_llm.runtime import find_runtime

        return open_engine(
            find_runtime(None), engine, context_tokens=context_tokens, num_slots=1, to_score=True
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
        from edgekit.backends.tensorrt_llm.reader import CheckpointReader

        return CheckpointReader(
            source,
            context_tokens=context_tokens,
            num_slots=num_slots,
            keeps_activations=keeps_activations,
        )


_PLACEHOLDER = "EDGEKIT-TRTLLM-PYTHON"


def _runtime_with_engines() -> Runtime:
    from edgekit.backends.tensorrt_llm.runtime import VERSION, find_runtime

    runtime = find_runtime(None)
    if not runtime.makes_engines:
        raise MissingBackendError(
            f"TensorRT-LLM {runtime.version} builds and runs no engines any more",
            hint=f"name an interpreter with TensorRT-LLM {VERSION}, or use "
            "`--backend tensorrt-rtx`",
        )
    return runtime


def _sizes(wanted: Wanted) -> Any:
    from edgekit.backends.tensorrt_llm.command import make_sizes
    from edgekit.footprint import FOOTPRINTS

    return make_sizes(
        context_tokens=wanted.context_tokens,
        batch=wanted.batch,
        chunk_tokens=FOOTPRINTS[INFO.name].chunk_tokens,
        precision=wanted.precision,
        kv_precision=wanted.kv_precision,
    )


BACKEND = TensorRtLlmBackend()
