"""What an engine is bound to here (see `backends.identity`).

TensorRT compiles for one GPU, and an engine opens only with the version of TensorRT-LLM that built
it. Its own `config.json` has that version and nothing else, so edgekit records the rest. A
checkpoint for the PyTorch backend would load elsewhere, too; what was proved of it was with the
kernels of one version on one generation of GPUs.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

from edgekit.backends import identity
from edgekit.backends.tensorrt_llm.runtime import OPTION, Runtime
from edgekit.device import Device


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity(identity.Identity):
    """A GPU and the software on it. `None` is what could not be read.

    `cuda` is of TensorRT-LLM's environment, not the newest that the driver runs.
    """

    OWN_LABELS: ClassVar[Mapping[str, str]] = MappingProxyType({"tensorrt_llm": "TensorRT-LLM"})

    tensorrt_llm: str


def read_identity(runtime: Runtime, device: Device, *, gpu_index: int = 0) -> Identity:
    """What is here; without a GPU its part is `None`."""
    gpu = next((gpu for gpu in device.gpus if gpu.index == gpu_index), None)
    return Identity(
        gpu=gpu.name if gpu else None,
        sm=gpu.sm if gpu else None,
        driver=gpu.driver if gpu else None,
        cuda=runtime.details.get("cuda"),
        tensorrt=runtime.details.get("tensorrt"),
        tensorrt_llm=runtime.version,
    )


def require_same(
    recorded: Identity,
    here: Identity,
    engine: Path,
    *,
    binding: Collection[str],
    backend: str,
    device: Device,
) -> None:
    """Raises `StaleEngineError` with all that differs, unless the engine opens here (see
    `backends.identity.require_same`). `backend` is the one that the version here is for."""
    identity.require_same(
        recorded,
        here,
        engine,
        binding=binding,
        backend=backend,
        device=device,
        other_software=f"name TensorRT-LLM {recorded.tensorrt_llm} with `{OPTION}`",
    )
