"""What an engine is bound to here (see `backends.identity`).

TensorRT compiles for one GPU and one version of itself, and Edge-LLM's plugin belongs to the same
build (NVIDIA/TensorRT-Edge-LLM#194). Edge-LLM's own cache knows of neither (`bundle_cache_path` in
`experimental/server/runtime/engine_build.py` of 0.11.0), so edgekit keeps engines in its own
directories, records all of it, and looks before it opens one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

from edgekit.backends import identity
from edgekit.backends.edge_llm.runtime import OPTION, Runtime
from edgekit.device import Device

BINDING = ("gpu", "sm", "tensorrt", "edge_llm", "jetpack", "l4t", "cuda")
"""A difference in one of these keeps the engine from opening. The driver comes with JetPack; on a
card it may be newer, and is named when the engine does not open."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity(identity.Identity):
    """A GPU and the software on it. `None` is what could not be read.

    `cuda` is the newest that the driver runs, on a Jetson JetPack's own; `tensorrt` is of the
    interpreter that has Edge-LLM.
    """

    OWN_LABELS: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"edge_llm": "Edge-LLM", "jetpack": "JetPack", "l4t": "Jetson Linux"}
    )

    edge_llm: str
    jetpack: str | None
    l4t: str | None
    """Release of Jetson Linux."""


def read_identity(runtime: Runtime, device: Device, *, gpu_index: int = 0) -> Identity:
    """What is here; without a GPU or a Jetson their parts are `None`."""
    gpu = next((gpu for gpu in device.gpus if gpu.index == gpu_index), None)
    jetson = device.jetson
    return Identity(
        gpu=gpu.name if gpu else None,
        sm=gpu.sm if gpu else None,
        driver=gpu.driver if gpu else None,
        cuda=gpu.cuda if gpu else None,
        tensorrt=runtime.details.get("tensorrt"),
        edge_llm=runtime.version,
        jetpack=jetson.jetpack if jetson else None,
        l4t=jetson.l4t if jetson else None,
    )


def require_same(recorded: Identity, here: Identity, engine: Path, device: Device) -> None:
    """Raises `StaleEngineError` with all that differs, unless the engine opens here (see
    `backends.identity.require_same`)."""
    identity.require_same(
        recorded,
        here,
        engine,
        # on a card a newer driver runs the engine, and brings a newer CUDA
        binding=set(BINDING) - ({"cuda"} if recorded.l4t is None else set()),
        backend="edge-llm",
        device=device,
        other_software=f"name the interpreter with Edge-LLM {recorded.edge_llm} by `{OPTION}`",
    )
