"""TensorRT-RTX: NVIDIA's compiler for RTX cards. Two wheels, no toolkit, no GPU to compile.

    graph (edgekit.export.standard) ─► network ─► compiler ─► engine.plan ─► runtime ─► session
                    └─────────────────► twin: the same session on this machine's processor

`network` turns the graph into a network of TensorRT, `compiler` makes the plan, `layout` says what
is inside. `session` owns KV slots over `device` and an executor, which is TensorRT-RTX (`runtime`,
`cuda`) or ONNX Runtime over the graph (`twin`). An engine is bound to the exact version that
compiled it, and to the architectures that it was compiled for.
"""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

from edgekit.backends.base import BackendInfo, Session, Wanted
from edgekit.engine import device_cache
from edgekit.errors import EdgekitError, MissingBackendError, storage_errors
from edgekit.progress import Progress

DISTRIBUTIONS = ("tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu13-libs")
INFO = BackendInfo(
    name="tensorrt-rtx",
    summary="TensorRT for RTX: compiled on any machine, for several cards at once",
    precisions=frozenset({"fp16", "int8", "int4_awq", "fp8"}),
    requires=("tensorrt_rtx_bindings", "numpy"),
    install="'edgekit[rtx]'",
    consumes="standard-graph",
    exposes_logits=True,
    compiles_ahead=True,
    # compiled with 1.7.1.116, a layer in every precision: all multiples of 8 from 16 to 256
    # compile, 8, 12, 20, 264, 272, 288 and 320 do not (sm_86 and 89; 120 at int8, up to 512)
    head_sizes=range(16, 257, 8),
    slot_alignment=256,
    on_gpu=("cuda.bindings",),
)


class TensorRtRtxBackend:
    """Compiles ahead of time, runs on the card, proves itself on a processor."""

    info = INFO

    def version(self) -> str:
        """Version of TensorRT-RTX. Raises `MissingBackendError`."""
        try:
            return metadata.version(DISTRIBUTIONS[0])
        except metadata.PackageNotFoundError:
            raise MissingBackendError(
                "TensorRT-RTX is not installed", hint="pip install 'edgekit[rtx]'"
            ) from None

    def compile(
        self, source: Path, out: Path, wanted: Wanted, *, report: Progress
    ) -> dict[str, Any]:
        """One plan for all of `wanted.capabilities`."""
        from edgekit.backends.tensorrt_rtx.compiler import compile_graph

        with storage_errors(out):
            out.mkdir(parents=True, exist_ok=True)
        layout = compile_graph(source, out, wanted, version=self.version(), report=report)
        return {
            "runtime": f"tensorrt-rtx {layout.version}",
            "capabilities": list(layout.capabilities),
        }

    def open(
        self, engine: Path, *, context_tokens: int, num_slots: int, threads: int | None = None
    ) -> Session:
        """Load the plan on the first GPU here that it holds kernels for."""
        from edgekit.backends.tensorrt_rtx.runtime import open_engine

        return open_engine(
            engine,
            context_tokens=context_tokens,
            num_slots=num_slots,
            cache=device_cache(engine.parent),
        )

    def gpu_uuid(self, engine: Path) -> str | None:
        """As CUDA counts: the fastest first, less those that CUDA_VISIBLE_DEVICES hides."""
        from edgekit.backends.tensorrt_rtx.cuda import find_uuid
        from edgekit.backends.tensorrt_rtx.layout import EngineLayout

        try:
            return find_uuid(EngineLayout.read(engine).capabilities)
        except EdgekitError:  # `open` says it
            return None

    def open_twin(
        self,
        source: Path,
        *,
        context_tokens: int,
        num_slots: int,
        threads: int | None = None,
        keeps_activations: bool = False,
    ) -> Session:
        """The graph on ONNX Runtime's processor kernels, below the same session."""
        from edgekit.backends.tensorrt_rtx.twin import open_twin

        return open_twin(
            source,
            context_tokens=context_tokens,
            num_slots=num_slots,
            threads=threads,
            keeps_activations=keeps_activations,
        )


BACKEND = TensorRtRtxBackend()
