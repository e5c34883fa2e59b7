"""Profiles: what one target device is and what an engine may use of it.

A profile is a TOML file whose name is the profile's name. Search order: an explicit path, the
directories of `EDGEKIT_PROFILE_PATH`, the profiles that ship with edgekit. To add a device, add a
file; `sources` says for every figure where it comes from.

    name = "board"
    summary = "…"
    backends = ["onnxruntime"]          # first choice first
    precisions = ["int4_awq", "fp16"]   # what `auto` tries, in this order
    memory_bytes = 8_589_934_592        # what programs see; left out: read on the device
    reserved_bytes = 268_435_456        # left to the rest of the system
    desktop_bytes = 697_932_185         # taken by a desktop where there is one
    [refused]                           # what this device cannot do, and why
    fp8 = "no FP8 arithmetic before sm_89"
    [kv.fp16]                           # first choice first: see `KvStorage`
    bits = 16
    [storage.int4_awq]                  # one table per precision: see `Storage`
    linear_bits = 4
    [sources]
    memory_bytes = "https://…"
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Any

from edgekit.errors import InputError, ProfileError
from edgekit.precision import PRECISIONS, find_precision
from edgekit.schema import FieldError, TomlFile, require_positive
from edgekit.storage import ZERO_POINT_PRECISION
from edgekit.storage import Storage as Storage

DEFAULT_PROFILE = "cpu"
_BACKEND = "backend."
"""What keys of `refused` begin with that name a backend."""
KV_BITS: Mapping[str, int] = MappingProxyType({"fp32": 32, "fp16": 16, "fp8": 8, "int8": 8})
"""Bits of every precision that a KV cache may have."""


def _nothing() -> Mapping[str, str]:
    return MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class KvStorage:
    """One precision of the KV cache on one device."""

    bits: int
    not_with: tuple[str, ...] = ()
    """Weight precisions that cannot be combined with it there."""
    reason: str = ""
    """Why not."""

    def __post_init__(self) -> None:
        require_positive(self, "bits")
        _require_known("not_with", self.not_with, PRECISIONS)


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerMode:
    """One `nvpmodel` mode of a Jetson."""

    name: str
    id: int
    watts: int | None = None
    """`None`: no cap."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """One target device."""

    name: str
    summary: str
    backends: tuple[str, ...]
    """First choice first."""
    precisions: tuple[str, ...]
    """In the order in which `auto` tries them."""
    storage: Mapping[str, Storage]
    """One row per entry of `precisions`."""
    kv: Mapping[str, KvStorage] = field(default_factory=dict)
    """Precisions of the KV cache, first choice first; empty: what the backend has."""
    refused: Mapping[str, str] = field(default_factory=_nothing)
    """Precision of weights (or `kv.` and one of the cache, or `backend.` and a backend) -> why this
    device cannot have it."""
    aliases: Mapping[str, str] = field(default_factory=_nothing)
    """A precision's name -> the one that it means here."""
    sm: int | None = None
    """CUDA compute capability, major * 10 + minor: 86 for 8.6. `None`: not an NVIDIA GPU."""
    gpu_names: tuple[str, ...] = ()
    """What the driver calls the GPU."""
    board_names: tuple[str, ...] = ()
    """What a Jetson's device tree calls the board."""
    is_memory_unified: bool = False
    """CPU and GPU share one memory."""
    memory_bytes: int | None = None
    """What programs see of it; `None`: what this machine has, read when needed."""
    reserved_bytes: int = 0
    """Left to the operating system and other programs."""
    desktop_bytes: int = 0
    """Taken from the device's memory where a desktop runs on it."""
    bandwidth_bytes_per_s: int | None = None
    """Peak of the memory; `None`: unknown until measured."""
    default_context_tokens: int = 4096
    """What a build takes when no context is named and the model and the budget allow it."""
    min_jetpack: str | None = None
    """The first JetPack whose runtime works."""
    power_modes: tuple[PowerMode, ...] = ()
    sources: Mapping[str, str] = field(default_factory=_nothing)
    """Figure -> where it comes from."""

    def storage_for(self, precision: str, num_params: int, *, batch: int = 1) -> Storage:
        """How a model of that size is stored: the row with its group size settled.

        Prompts have weights of their own in an engine of one conversation alone: among several an
        answer must not depend on which slot held its beginning, and by which weights it came there.
        """
        row = self.storage[precision]
        is_small = num_params < row.small_model_params
        group = row.small_model_group_size if is_small else row.group_size
        prompt_bits = row.small_model_prompt_bits if is_small else row.prompt_bits
        if batch > 1:
            prompt_bits = None
        return replace(
            row,
            group_size=group,
            has_zero_points=row.small_model_zero_points if is_small else row.has_zero_points,
            prompt_bits=prompt_bits,
            small_model_params=0,
            small_model_group_size=None,
            small_model_zero_points=False,
            small_model_prompt_bits=None,
        )

    def require_precision(self, name: str) -> str:
        """The precision that `name` means here. Raises `InputError` with the reason."""
        name = find_precision(self.aliases.get(name, name)).name
        if name in self.precisions:
            return name
        reason = self.refused.get(name, f"the profile `{self.name}` has no {name}")
        if name in self.refused:
            reason = f"{name} is not possible on `{self.name}`: {reason}"
        bits = PRECISIONS[name].weight_bits
        nearest = min(self.precisions, key=lambda own: abs(PRECISIONS[own].weight_bits - bits))
        has = ", ".join(self.precisions)
        raise InputError(reason, hint=f"use `--precision {nearest}`; it has {has}")

    def require_kv(self, name: str, precision: str) -> str:
        """The KV precision that `name` (or `auto`) means with `precision` weights.

        Raises `InputError` with the reason.
        """
        able = [kv for kv, row in self.kv.items() if precision not in row.not_with]
        if name == "auto":
            return able[0]
        if name in able:
            return name
        if name in self.kv:
            row = self.kv[name]
            reason = f"an {name} KV cache is not possible with {precision} weights: {row.reason}"
        else:
            why = self.refused.get(f"kv.{name}", "its backends have no such cache")
            reason = f"an {name} KV cache is not possible on `{self.name}`: {why}"
        raise InputError(reason, hint=f"use `--kv {able[0]}`")

    def why_not_backend(self, name: str) -> str | None:
        """Why that backend is not for the device; `None`: nothing is said of it."""
        return self.refused.get(f"{_BACKEND}{name}")

    def __post_init__(self) -> None:
        for key, names in (
            ("precisions", self.precisions),
            ("storage", self.storage),
            ("aliases", self.aliases.values()),
        ):
            _require_known(key, names, PRECISIONS)
        _require_known("kv", self.kv, KV_BITS)
        refused = [key for key in self.refused if not key.startswith(_BACKEND)]
        _require_known("refused", refused, (*PRECISIONS, *(f"kv.{kv}" for kv in KV_BITS)))
        for precision in self.precisions:
            if precision not in self.storage:
                raise FieldError("precisions", f"the table [storage.{precision}] is missing")
            if self.kv and all(precision in row.not_with for row in self.kv.values()):
                raise FieldError("kv", f"there is no KV cache for {precision}")
        for precision, row in self.storage.items():
            has_zero_points = row.has_zero_points or row.small_model_zero_points
            if has_zero_points and precision != ZERO_POINT_PRECISION:
                raise FieldError(
                    "storage", f"zero points are for {ZERO_POINT_PRECISION}, not for {precision}"
                )
        for key in ("backends", "precisions"):
            names = getattr(self, key)
            if not names or len(set(names)) < len(names):
                raise FieldError(key, f"`{key}` must name at least one, and none twice")
        require_positive(self, "default_context_tokens", "memory_bytes", "bandwidth_bytes_per_s")


def _require_known(key: str, names: Iterable[str], known: Iterable[str]) -> None:
    known = list(known)
    for name in names:
        if name not in known:
            raise FieldError(
                key,
                f"`{key}` names something unknown: {name}",
                hint=f"known are {', '.join(known)}",
            )


def _directories() -> list[Path]:
    own = [Path(p) for p in os.environ.get("EDGEKIT_PROFILE_PATH", "").split(os.pathsep) if p]
    package = Path(__file__).parent
    # in a wheel the profiles lie inside the package, in a clone beside it
    shipped = package / "profiles"
    return [*own, shipped if shipped.is_dir() else package.parent / "profiles"]


def list_profiles() -> dict[str, Path]:
    """Name -> file of every profile that can be found; the first found wins."""
    found: dict[str, Path] = {}
    for directory in _directories():
        for path in sorted(directory.glob("*.toml")):
            found.setdefault(path.stem, path)
    return found


def load_profiles() -> tuple[list[Profile], list[ProfileError]]:
    """Every profile that can be found and read, and what is wrong with the others."""
    profiles, problems = [], []
    for path in list_profiles().values():
        try:
            profiles.append(read_profile(path))
        except ProfileError as exc:
            problems.append(exc)
    return profiles, problems


def find_profile(name: str) -> Profile:
    """The profile of that name, or in that file. Raises `ProfileError`."""
    if name.endswith(".toml"):
        return read_profile(Path(name))
    found = list_profiles()
    if name not in found:
        close = get_close_matches(name.lower().replace("_", "-"), found, n=1)
        hint = f"known are {', '.join(found) or 'none'}; or name a .toml file"
        if close:
            hint = f"did you mean `--profile {close[0]}`? {hint}"
        raise ProfileError(f"unknown profile: {name}", hint=hint)
    return read_profile(found[name])


def read_profile(path: Path) -> Profile:
    """Read and check one file. Raises `ProfileError` with the line and key that is wrong."""
    file = TomlFile(path)
    data = dict(file.data)
    for table, kind in (("storage", Storage), ("kv", KvStorage)):
        if table in data:
            data[table] = _tables(file, table, data[table], kind)
    modes = data.get("power_modes", [])
    if not isinstance(modes, list) or not all(isinstance(mode, dict) for mode in modes):
        raise ProfileError(f"{file.at('', 'power_modes')}: write [[power_modes]] for each mode")
    data["power_modes"] = [
        file.row(PowerMode, mode, table=f"power_modes.{place}") for place, mode in enumerate(modes)
    ]
    profile = file.row(Profile, data)
    if profile.name != path.stem:
        raise ProfileError(
            f"{file.at('', 'name')}: names itself `{profile.name}`, its file says `{path.stem}`"
        )
    return profile


def _tables(file: TomlFile, table: str, data: Any, kind: type[Any]) -> Mapping[str, Any]:
    if not isinstance(data, dict) or not all(isinstance(row, dict) for row in data.values()):
        raise ProfileError(f"{file.at('', table)}: `{table}` must hold one table per precision")
    rows = {name: file.row(kind, row, table=f"{table}.{name}") for name, row in data.items()}
    return MappingProxyType(rows)
