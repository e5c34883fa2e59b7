"""What this machine is, what of edgekit runs on it, and what is missing.

Looks at names and versions of installed packages and imports none of them.
"""

from __future__ import annotations

import platform
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from edgekit import __version__
from edgekit.backends import (
    list_backends,
    missing_packages,
    missing_runtime,
    runtime_advice,
    runtime_install,
    runtime_option,
)
from edgekit.choice import why_jetpack, why_not_here
from edgekit.device import Device
from edgekit.engine import MANIFEST_FORMAT
from edgekit.errors import EdgekitError, MissingBackendError
from edgekit.profile import DEFAULT_PROFILE, Profile, find_profile
from edgekit.target import find_target

_PACKAGES = (
    "edgekit",
    "onnxruntime",
    "onnxruntime-gpu",
    "nvidia-ml-py",
    "nvidia-modelopt",
    "torch",
    "transformers",
    "onnx",
    "tensorrt-rtx-cu13-bindings",
    "cuda-bindings",
)
_BUILD_PACKAGES = ("nvidia-modelopt", "torch", "transformers", "onnx")
_FULL_POWER = "sudo nvpmodel -m 0 && sudo jetson_clocks"


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendState:
    """Whether one backend can build and run here for one profile."""

    name: str
    profile: str
    reason: str | None
    """Why not; `None`: it can."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """Everything `edgekit doctor` says."""

    device: Device
    profile: str
    """What `--profile` means here when it is left out."""
    profile_summary: str
    backends: tuple[BackendState, ...]
    versions: Mapping[str, str | None]
    """Of installed packages; `None`: not installed."""
    install: tuple[str, ...]
    """Commands that add what is missing and of use here."""
    advice: tuple[str, ...]
    store: Path
    free_bytes: int | None
    """On the disk of the store."""

    @property
    def can_run(self) -> bool:
        """Some backend is real here."""
        return any(state.reason is None for state in self.backends)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "edgekit_version": __version__,
            "manifest_format": MANIFEST_FORMAT,
            "device": self.device.to_dict(),
            "profile": self.profile,
            "profile_summary": self.profile_summary,
            "can_run": self.can_run,
            "backends": [{**asdict(s), "is_real": s.reason is None} for s in self.backends],
            "versions": dict(self.versions),
            "install": list(self.install),
            "advice": list(self.advice),
            "store": {"path": str(self.store), "free_bytes": self.free_bytes},
        }


def diagnose(device: Device, store: Path) -> Diagnosis:
    """Look at everything. Raises nothing but for a damaged profile."""
    versions = {name: _version(name) for name in _PACKAGES}
    trouble: tuple[str, ...] = ()
    try:
        profile = find_target(None, device)
    except EdgekitError as exc:
        profile, trouble = find_profile(DEFAULT_PROFILE), (str(exc),)
    return Diagnosis(
        device=device,
        profile=profile.name,
        profile_summary=profile.summary,
        backends=tuple(_states(profile, device)),
        versions=versions,
        install=tuple(_commands(profile, versions)),
        advice=(*trouble, *_advice(profile, device, versions), *runtime_advice()),
        store=store,
        free_bytes=_free_bytes(store),
    )


def require_backend(diagnosis: Diagnosis) -> None:
    """Raises `MissingBackendError` when nothing can run on this machine."""
    if not diagnosis.can_run:
        raise MissingBackendError(
            "no backend of edgekit can run on this machine",
            hint=diagnosis.install[0] if diagnosis.install else "pip install onnxruntime",
        )


def _states(profile: Profile, device: Device) -> list[BackendState]:
    """The profile's backends, first choice first, then every other one on the processor."""
    cpu = find_profile(DEFAULT_PROFILE)
    states = [
        BackendState(name=name, profile=profile.name, reason=_why_not(name, profile, device))
        for name in profile.backends
    ]
    if profile.name != cpu.name:
        states += [
            BackendState(name=name, profile=cpu.name, reason=_why_not(name, cpu, device))
            for name in cpu.backends
        ]
    named = {state.name for state in states}
    states += [
        BackendState(name=name, profile=profile.name, reason=_why_not(name, profile, device))
        for name in (info.name for info in list_backends())
        if name not in named
    ]
    return states


def _why_not(name: str, profile: Profile, device: Device) -> str | None:
    reason = why_not_here(name, profile, device)
    if reason is None and name not in profile.backends:
        if any(info.name == name and info.compiles_ahead for info in list_backends()):
            return "compiles here for RTX cards, as with `--profile rtx-4090`; runs on the card"
        return f"not for `{profile.name}`"
    return reason


def _commands(profile: Profile, versions: Mapping[str, str | None]) -> list[str]:
    commands = []
    is_card = profile.sm is not None and "onnxruntime" in profile.backends
    if is_card and platform.machine().lower() in ("x86_64", "amd64"):
        if versions["onnxruntime-gpu"] is None:
            commands.append(
                "pip uninstall -y onnxruntime && "
                f"pip install '{_requirement('onnxruntime', 'onnxruntime-gpu[cuda,cudnn]')}'"
            )
    elif missing_packages("onnxruntime"):
        commands.append(f"pip install '{_requirement('onnxruntime', 'onnxruntime')}'")
    if "tensorrt-rtx" in profile.backends and missing_packages("tensorrt-rtx"):
        commands.append("pip install 'edgekit[rtx]'  # TensorRT-RTX")
    lacking = (name for name in profile.backends if runtime_install(name))
    if (name := next(lacking, None)) is not None and missing_runtime(name):
        told = runtime_option(name)
        commands.append(runtime_install(name) + (f"  # then `{told}`" if told else ""))
    if any(versions[name] is None for name in _BUILD_PACKAGES):
        commands.append("pip install 'edgekit[build]'  # to quantize and compile here")
    if versions["nvidia-ml-py"] is None:
        commands.append("pip install nvidia-ml-py  # to see NVIDIA GPUs")
    return commands


def _requirement(name: str, wanted: str) -> str:
    """`wanted` in the versions of `name` that edgekit itself asks for."""
    for line in _requirements():
        if (found := re.match(r"[\w.-]+", line)) and found[0] == name:
            return wanted + line[found.end() :].partition(";")[0].strip()
    return wanted


def _requirements() -> list[str]:
    try:
        return metadata.requires("edgekit") or []
    except metadata.PackageNotFoundError:  # run from a clone
        return []


def _advice(profile: Profile, device: Device, versions: Mapping[str, str | None]) -> list[str]:
    advice = []
    if device.gpu_problem is not None:
        advice.append(device.gpu_problem)
    if versions["onnxruntime"] is not None and versions["onnxruntime-gpu"] is not None:
        advice.append(
            "onnxruntime and onnxruntime-gpu overwrite each other's files: keep one of them"
        )
    jetson = device.jetson
    if jetson is None:
        return advice
    if (old := why_jetpack(profile, device)) is not None:
        advice.append(old)
    is_slow = jetson.power_mode is not None and not jetson.power_mode.startswith("MAXN")
    if is_slow or jetson.clocks_locked is False:
        state = jetson.power_mode or "an unknown power mode"
        clocks = ", clocks not locked" if jetson.clocks_locked is False else ""
        advice.append(f"not at full speed ({state}{clocks}): `{_FULL_POWER}`")
    return advice


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _free_bytes(store: Path) -> int | None:
    """On the disk where `store` is or would be."""
    absolute = store.absolute()
    for directory in (absolute, *absolute.parents):
        try:
            return shutil.disk_usage(directory).free
        except OSError:
            continue
    return None
