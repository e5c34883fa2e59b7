"""Execution providers: one row each. A machine uses the first row that it has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from edgekit.errors import MissingBackendError


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """How one execution provider runs a decoder."""

    name: str
    """ONNX Runtime's name."""
    graph: str
    """The model file it takes, within the engine's backend directory."""
    device: Literal["cpu", "cuda"]
    """Where KV cache and other bound buffers lie."""
    kv_dtype: Literal["float32", "float16"]
    """GroupQueryAttention computes in this type there."""
    options: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    prompt_graph: str = ""
    """The model file for tokens whose logits nobody wants, where an engine has one."""
    captures_decode: bool = False
    """Decode steps are recorded once and replayed (CUDA graphs): they have fixed shapes and
    addresses, prefill has not."""


PROVIDERS: tuple[Provider, ...] = (
    Provider(
        name="CUDAExecutionProvider",
        graph="model_fp16.onnx",
        device="cuda",
        kv_dtype="float16",
        options=MappingProxyType(
            {"arena_extend_strategy": "kSameAsRequested", "enable_cuda_graph": "1"}
        ),
        captures_decode=True,
    ),
    Provider(
        name="CPUExecutionProvider",
        graph="model.onnx",
        device="cpu",
        kv_dtype="float32",
        prompt_graph="prompt.onnx",
    ),
)


def choose_provider(engine: Path, name: str | None = None) -> Provider:
    """The first provider that this ONNX Runtime has and for which the engine holds a graph.

    With `name`, that one or nothing: a GPU that was asked for is never silently a CPU.
    Raises `MissingBackendError`.
    """
    import onnxruntime as ort

    available = _usable(ort)
    rows = [row for row in PROVIDERS if name in (None, row.name)]
    for row in rows:
        if row.name in available and (engine / row.graph).is_file():
            return row
    raise MissingBackendError(
        f"no execution provider here can run {engine}: this ONNX Runtime has "
        + ", ".join(available),
        hint="`pip install onnxruntime`, or `onnxruntime-gpu` for NVIDIA GPUs",
    )


def _usable(ort: Any) -> list[str]:
    """Providers that are built in and have a device: a CUDA build on a machine without a GPU
    still lists its CUDA provider, and would fall back to the CPU with a warning."""
    names: list[str] = ort.get_available_providers()
    if "CUDAExecutionProvider" in names and not _has_nvidia_gpu():
        names = [n for n in names if n != "CUDAExecutionProvider"]
    return names


def _has_nvidia_gpu() -> bool:
    return Path("/proc/driver/nvidia/version").exists() or Path("/dev/nvidia0").exists()
