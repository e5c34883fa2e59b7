"""ONNX Runtime: the backend that runs wherever edgekit installs.

It takes the decoder graph that `export` wrote, proves at compile time that it loads and runs here,
and opens it on the best execution provider of the machine. Which providers there are, which graph
each one runs and in which type its KV cache is, stands in `providers.PROVIDERS`.
"""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

from edgekit.backends.base import BackendInfo, Session, Wanted
from edgekit.backends.onnxruntime.providers import PROVIDERS
from edgekit.errors import MissingBackendError, storage_errors
from edgekit.progress import Progress

INFO = BackendInfo(
    name="onnxruntime",
    summary="ONNX Runtime on the CPU, or on an NVIDIA GPU through its CUDA provider",
    precisions=frozenset({"fp16", "int8", "int8_sq", "int4_awq"}),
    requires=("onnxruntime", "numpy"),
    install="onnxruntime numpy",
    consumes="decoder-graph",
    gpu_package="onnxruntime-gpu",
    exposes_logits=True,
    has_stage=True,
    has_zero_points=True,
)
_DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu")


class OnnxRuntimeBackend:
    """Compiles by checking, runs by I/O binding."""

    info = INFO

    def version(self) -> str:
        """Version of ONNX Runtime. Raises `MissingBackendError`."""
        for name in _DISTRIBUTIONS:
            try:
                return metadata.version(name)
            except metadata.PackageNotFoundError:
                continue
        raise MissingBackendError("onnxruntime is not installed", hint="pip install onnxruntime")

    def compile(
        self, source: Path, out: Path, wanted: Wanted, *, report: Progress
    ) -> dict[str, Any]:
        """Move the graph into the engine and run one token through it on this machine.

        The provider that was used and its tensor type are returned for the manifest.
        """
        from edgekit.backends.onnxruntime.session import open_session

        with storage_errors(out):
            out.mkdir(parents=True, exist_ok=True)
            for path in sorted(source.iterdir()):
                path.rename(out / path.name)
        report("compile", 0, 1)
        session = open_session(out, context_tokens=8, num_slots=1, threads=None)
        try:
            session.prefill(0, [0])
        finally:
            session.close()
        report("compile", 1, 1)
        return {"execution_provider": session.provider, "runtime": f"onnxruntime {self.version()}"}

    def leave_out_prompts(self, engine: Path) -> None:
        """Without its graph of their own; its weights stay in the data file, unread."""
        for row in PROVIDERS:
            if row.prompt_graph:
                (engine / row.prompt_graph).unlink(missing_ok=True)

    def open(
        self, engine: Path, *, context_tokens: int, num_slots: int, threads: int | None = None
    ) -> Session:
        """Load the graph on the first provider of the table that works here."""
        from edgekit.backends.onnxruntime.session import open_session

        return open_session(
            engine, context_tokens=context_tokens, num_slots=num_slots, threads=threads
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
        """The graph on the CPU provider."""
        from edgekit.backends.onnxruntime.session import open_session

        return open_session(
            source,
            context_tokens=context_tokens,
            num_slots=num_slots,
            threads=threads,
            provider="CPUExecutionProvider",
        )


BACKEND = OnnxRuntimeBackend()
