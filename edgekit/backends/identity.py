"""What an engine is bound to: the manifest's `device`, compared with what is here.

A backend adds the fields of its own package to `Identity` and says which of them bind an engine.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Self

from edgekit.backends import list_backends
from edgekit.device import Device
from edgekit.errors import EngineError, InputError, StaleEngineError
from edgekit.footprint import FOOTPRINTS
from edgekit.matching import profile_here
from edgekit.models import buildable_name
from edgekit.profile import DEFAULT_PROFILE, Profile, find_profile, load_profiles

_LABELS = {
    "gpu": "GPU",
    "sm": "compute capability",
    "driver": "driver",
    "cuda": "CUDA",
    "tensorrt": "TensorRT",
}
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

    OWN_LABELS: ClassVar[Mapping[str, str]]
    """What messages call the fields of the backend, its package's version first, which is always
    known."""

    gpu: str | None
    sm: int | None
    """Compute capability, major * 10 + minor."""
    driver: str | None
    cuda: str | None
    tensorrt: str | None

    @classmethod
    def package(cls) -> str:
        """The field with the version of the backend's package."""
        return next(iter(cls.OWN_LABELS))

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
            and not (value is None and name != cls.package())
        ]
        if wrong:
            raise EngineError(
                f"the manifest does not say what the engine was built on: {', '.join(wrong)}",
                hint="build it again with `edgekit build`",
            )
        return cls(**values)


def require_same(
    recorded: Identity,
    here: Identity,
    engine: Path,
    *,
    binding: Collection[str],
    backend: str,
    other_software: str,
    device: Device,
) -> None:
    """Raises `StaleEngineError` with all that differs, unless the engine opens on `device`.

    A difference in one of `binding` keeps it from opening, and so does a GPU that is not here; the
    others are named when it does not open. `engine` is its directory or the backend's below it; the
    manifest there says how to rebuild, with `backend`, or for another GPU that is here.
    `other_software` is the other way out where only versions differ, which another interpreter may
    have as they were.
    """
    found = dict(differences(recorded, here))
    is_lost = recorded.gpu is not None and here.gpu is None
    stale = set(found) & {*binding, *(("gpu",) if is_lost else ())}
    if not stale:
        return
    labels = {**_LABELS, **recorded.OWN_LABELS}
    told = "; ".join(f"{labels[name]} {then}, here {now}" for name, (then, now) in found.items())
    is_other_device = not {"gpu", "sm"}.isdisjoint(found)
    command = rebuild_command(engine, backend, _profile_of(device) if is_other_device else None)
    hint = f"build it again here: `{command}`"
    if is_lost:
        hint = f"open it where that GPU is, or build for this machine: `{command}`"
    if stale <= {"tensorrt", recorded.package()}:
        hint += f", or {other_software}"
    raise StaleEngineError(f"this engine was built elsewhere and does not open: {told}", hint=hint)


def differences(recorded: Identity, here: Identity) -> Iterator[tuple[str, tuple[str, str]]]:
    """Field, what was recorded, what is here. What was not recorded, or cannot be read here, is no
    difference; a GPU that is not here is one."""
    for field in fields(recorded):
        then, now = getattr(recorded, field.name), getattr(here, field.name)
        is_lost = now is None and field.name == "gpu"
        if then is not None and then != now and (now is not None or is_lost):
            prefix = "sm_" if field.name == "sm" else ""
            yield field.name, (f"{prefix}{then}", "none" if is_lost else f"{prefix}{now}")


def _profile_of(device: Device) -> Profile:
    """What `edgekit build` takes without `--profile`."""
    profiles, _ = load_profiles()
    with suppress(InputError):  # nothing has kernels for its GPU
        if (found := profile_here(device, profiles)) is not None:
            return found
    return find_profile(DEFAULT_PROFILE)


def rebuild_command(engine: Path, backend: str, here: Profile | None = None) -> str:
    """The `edgekit build` that made the engine, as far as its manifest says, with that backend.

    `here` is another device than it was built for, this machine: what that one has not is left out,
    and its context is not taken over. The same holds for what the backend has not.
    """
    words = ["edgekit", "build"]
    for directory in (engine, engine.parent):
        try:
            data = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(data, dict):
            plan = data.get("plan")
            speculation = plan.get("speculation") if isinstance(plan, dict) else None
            said = {option: str(data[key]) for key, option in _OPTIONS if data.get(key)}
            said |= {"--speculation": str(speculation or "none"), "--backend": backend}
            for option, value in said.items():
                if _is_possible(option, value, backend, here):
                    words += [option, buildable_name(value) if option == "--model" else value]
            break
    return shlex.join(words)


def _is_possible(option: str, value: str, backend: str, here: Profile | None) -> bool:
    has_backend = here is None or backend in here.backends
    if option == "--speculation":
        known = {info.name: info.speculation for info in list_backends()}
        return has_backend and value in known.get(backend, ())
    if option == "--kv" and not (has_backend and value in FOOTPRINTS[backend].kv_precisions):
        return False
    if here is None:
        return True
    able = {"--precision": here.precisions, "--kv": here.kv, "--backend": here.backends}
    return option in ("--model", "--batch") or value in able.get(option, ())
