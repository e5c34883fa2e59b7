"""What an engine is bound to: the manifest's `device`, compared with what is here.

TensorRT compiles for one GPU and one version of itself, and Edge-LLM's plugin belongs to the same
build (NVIDIA/TensorRT-Edge-LLM#194). Edge-LLM's own cache knows of neither (`bundle_cache_path` in
`experimental/server/runtime/engine_build.py` of 0.11.0), so edgekit keeps engines in its own
directories, records all of it, and looks before it opens one.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from edgekit.backends.edge_llm.runtime import OPTION, Runtime
from edgekit.device import Device
from edgekit.errors import EngineError, StaleEngineError

BINDING = ("gpu", "sm", "tensorrt", "edge_llm", "jetpack", "l4t", "cuda")
"""A difference in one of these keeps the engine from opening. The driver comes with JetPack; on a
card it may be newer, and is named when the engine does not open."""
_SOFTWARE = {"tensorrt", "edge_llm"}
"""What another interpreter may have as it was."""
_LABELS: Mapping[str, str] = MappingProxyType(
    {
        "gpu": "GPU",
        "sm": "compute capability",
        "driver": "driver",
        "cuda": "CUDA",
        "tensorrt": "TensorRT",
        "edge_llm": "Edge-LLM",
        "jetpack": "JetPack",
        "l4t": "Jetson Linux",
    }
)
_OPTIONS = (
    ("model", "--model"),
    ("profile", "--profile"),
    ("precision", "--precision"),
    ("kv_precision", "--kv"),
    ("context_tokens", "--context"),
    ("batch", "--batch"),
)
"""Key of the manifest, option of `edgekit build`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """A GPU and the software on it. `None` is what could not be read."""

    gpu: str | None
    sm: int | None
    """Compute capability, major * 10 + minor."""
    driver: str | None
    cuda: str | None
    """The newest that the driver runs: on a Jetson, JetPack's own."""
    tensorrt: str | None
    """Of the interpreter that has Edge-LLM."""
    edge_llm: str
    jetpack: str | None
    l4t: str | None
    """Release of Jetson Linux."""

    def to_dict(self) -> dict[str, Any]:
        """What the manifest records under `device`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read the manifest's `device`, which has other keys besides. Raises `EngineError`."""
        values: dict[str, Any] = {field.name: data.get(field.name) for field in fields(cls)}
        wrong = [
            name
            for name, value in values.items()
            if type(value) is not (int if name == "sm" else str)
            and not (value is None and name != "edge_llm")
        ]
        if wrong:
            raise EngineError(
                f"the manifest does not say what the engine was built on: {', '.join(wrong)}",
                hint="build it again with `edgekit build`",
            )
        return cls(**values)

    def key(self) -> str:
        """Digest of all of it: what a build with the same inputs would be made again for."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()


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


def require_same(recorded: Identity, here: Identity, engine: Path) -> None:
    """Raises `StaleEngineError` with all that differs, unless the engine opens here.

    `engine` is its directory or the backend's below it; the manifest there says how to rebuild.
    """
    found = dict(differences(recorded, here))
    binding = {
        name
        for name in set(found) & set(BINDING)
        # on a card a newer driver runs the engine, and brings a newer CUDA
        if name != "cuda" or recorded.l4t is not None
    }
    if not binding:
        return
    told = "; ".join(f"{_LABELS[name]} {then}, here {now}" for name, (then, now) in found.items())
    hint = f"build it again here: `{rebuild_command(engine)}`"
    if binding <= _SOFTWARE:
        hint += f", or name the interpreter with Edge-LLM {recorded.edge_llm} by `{OPTION}`"
    raise StaleEngineError(f"this engine was built elsewhere and does not open: {told}", hint=hint)


def differences(recorded: Identity, here: Identity) -> Iterator[tuple[str, tuple[str, str]]]:
    """Field, what was recorded, what is here. What was not recorded, or cannot be read here, is no
    difference; a GPU that is not here is one."""
    for field in fields(Identity):
        then, now = getattr(recorded, field.name), getattr(here, field.name)
        is_lost = now is None and field.name == "gpu"
        if then is not None and then != now and (now is not None or is_lost):
            prefix = "sm_" if field.name == "sm" else ""
            yield field.name, (f"{prefix}{then}", "none" if is_lost else f"{prefix}{now}")


def rebuild_command(engine: Path) -> str:
    """The `edgekit build` that made the engine, as far as its manifest says."""
    words = ["edgekit", "build"]
    for directory in (engine, engine.parent):
        try:
            data = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(data, dict):
            said = [(option, data[key]) for key, option in _OPTIONS if data.get(key)]
            words += [word for option, value in said for word in (option, str(value))]
            words += ["--backend", "edge-llm"]
            break
    return shlex.join(words)
