"""TensorRT-LLM: NVIDIA's engines for RTX cards and data-centre GPUs, in a Python of its own.

    checkpoint (edgekit.export) ─► trtllm-build on the GPU ─► engine ─► worker ─► tokens
               └─► reader: the same checkpoint, read as the builder does, on this processor

The checkpoint needs no GPU and is proved by `reader`; it can be carried to the device as a stage.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgekit.backends.base import BackendInfo, Session, StreamingSession, Wanted
from edgekit.errors import BackendError, MissingBackendError
from edgekit.progress import Progress

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
        raise MissingBackendError("TensorRT-LLM is not installed")

    def missing_runtime(self) -> str | None:
        """That no interpreter with TensorRT-LLM is named or found."""
        return "needs TensorRT-LLM in a Python of its own"

    def open_stream(self, engine: Path, *, context_tokens: int, num_slots: int) -> StreamingSession:
        """Load the engine in a worker process."""
        raise MissingBackendError("TensorRT-LLM is not installed")

    def compile(
        self, source: Path, out: Path, wanted: Wanted, *, report: Progress
    ) -> dict[str, Any]:
        """Run `trtllm-build` over the checkpoint."""
        raise MissingBackendError("TensorRT-LLM is not installed")

    def open(
        self, engine: Path, *, context_tokens: int, num_slots: int, threads: int | None = None
    ) -> Session:
        """Raises `BackendError`: its engines give no logits. See `open_stream`."""
        raise BackendError("TensorRT-LLM's engines give tokens, no logits")

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


BACKEND = TensorRtLlmBackend()
