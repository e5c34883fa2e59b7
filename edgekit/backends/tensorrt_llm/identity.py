"""What an engine is bound to: the manifest's `device`, compared with what is here.

TensorRT compiles for one GPU, and an engine opens only with the version of TensorRT-LLM that built
it. Its own `config.json` has that version and nothing else, so edgekit records the rest. A
checkpoint for the PyTorch backend would load elsewhere, too; what was proved of it was with the
kernels of one version on one generation of GPUs.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from edgekit.backends.tensorrt_llm.runtime import OPTION, Runtime
from edgekit.device import Device
from edgekit.errors import EngineError, StaleEngineError

_LABELS: Mapping[str, str] = MappingProxyType(
    {
        "gpu": "GPU",
        "sm": "compute capability",
        "driver": "driver",
        "cuda": "CUDA",
        "tensorrt": "TensorRT",
        "tensorrt_llm": "TensorRT-LLM",
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
    """Of TensorRT-LLM's environment, not the newest that the driver runs."""
    tensorrt: str | None
    tensorrt_llm: str

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
            and not (value is None and name != "tensorrt_llm")
        ]
        if wrong:
            raise EngineError(
                f"the manifest does not say what the engine was built on: {', '.join(wrong)}",
                hint="build it again with `edgekit build`",
            )
        return cls(**values)


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
    recorded: Identity, here: Identity, engine: Path, *, binding: Collection[str], backend: str
) -> None:
    """Raises `StaleEngineError` with all that differs, unless the engine opens here.

    A difference in one of `binding` keeps it from opening, and so does a GPU that is not here.
    Driver and CUDA may be newer; they are named when the engine does not open. `engine` is its
    directory or the backend's below it; the manifest there says how to rebuild, with the `backend`
    that the version here is for.
    """
    found = dict(differences(recorded, here))
    is_lost = recorded.gpu is not None and here.gpu is None
    if not is_lost and not any(name in binding for name in found):
        return
    told = "; ".join(f"{_LABELS[name]} {then}, here {now}" for name, (then, now) in found.items())
    hint = f"build it again here: `{rebuild_command(engine, backend)}`"
    if not is_lost and set(found) & set(binding) <= {"tensorrt", "tensorrt_llm"}:
        hint += f", or name TensorRT-LLM {recorded.tensorrt_llm} with `{OPTION}`"
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


def rebuild_command(engine: Path, backend: str) -> str:
    """The `edgekit build` that made the engine, as far as its manifest says, with that backend."""
    words = ["edgekit", "build"]
    for directory in (engine, engine.parent):
        try:
            data = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(data, dict):
            said = [(option, data[key]) for key, option in _OPTIONS if data.get(key)]
            words += [word for option, value in said for word in (option, str(value))]
            words += ["--backend", backend]
            break
    return shlex.join(words)
