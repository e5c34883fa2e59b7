"""Profiles: what one target device is and what an engine may use of it.

A profile is a TOML file whose name is the profile's name. Search order: an explicit path, the
directories of `EDGEKIT_PROFILE_PATH`, the profiles that ship with edgekit. Keys are checked:
an unknown one is an error, so a typing mistake never silently changes an engine.

    name = "cpu"
    summary = "…"
    backends = ["onnxruntime"]          # first choice first
    precisions = ["int4_awq", "fp16"]   # what `auto` tries, in this order
    reserved_bytes = 536_870_912        # left to the rest of the system
    kv_bits = 32
    [storage.int4_awq]                  # one table per precision: see `Storage`
    group_size = 32
    ...
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from edgekit.errors import ProfileError
from edgekit.precision import PRECISIONS

DEFAULT_PROFILE = "cpu"
_Row = TypeVar("_Row")


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """How one precision lies in memory on one device. Bits are per stored value."""

    linear_bits: int
    """Of the linear layers' weights as the kernels read them (fp16 runs as fp32 on a CPU: 32)."""
    group_size: int | None = None
    """Weights per scale along the input axis; `None`: one scale per output channel."""
    small_model_params: int = 0
    """Models with fewer parameters get `small_model_group_size`: few weights forgive less."""
    small_model_group_size: int | None = None
    scale_bits: int = 16
    head_bits: int = 16
    """Of lm_head; where the head is tied, the embedding is the same tensor."""
    is_head_calibrated: bool = False
    """The head is quantized with the linear layers: same bits, same groups, same search. A tied
    head then parts from the embedding, which keeps its own bits. Otherwise it is rounded."""
    head_group_size: int | None = None
    """Of the rounded tables."""
    embedding_bits: int = 16
    int8_activations: bool = False
    """W8A8: activations are quantized too, while the engine runs."""


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
    kv_bits: int = 16
    reserved_bytes: int = 0
    """Left to the operating system and other programs."""
    memory_bytes: int | None = None
    """`None`: what this machine has, read when needed."""
    bandwidth_bytes_per_s: int | None = None
    """`None`: unknown until measured."""
    default_context_tokens: int = 4096
    """What `--context auto` asks for when the model and the budget allow it."""

    def storage_for(self, precision: str, num_params: int) -> Storage:
        """How a model of that size is stored: the row with its group size settled."""
        row = self.storage[precision]
        is_small = num_params < row.small_model_params
        group = row.small_model_group_size if is_small else row.group_size
        return replace(row, group_size=group, small_model_params=0, small_model_group_size=None)

    def __post_init__(self) -> None:
        for precision in (*self.precisions, *self.storage):
            if precision not in PRECISIONS:
                raise ProfileError(
                    f"profile `{self.name}` names an unknown precision: {precision}",
                    hint=f"known are {', '.join(PRECISIONS)}",
                )
        for precision in self.precisions:
            if precision not in self.storage:
                raise ProfileError(f"profile `{self.name}` lacks the table [storage.{precision}]")
        if not self.backends or not self.precisions:
            raise ProfileError(f"profile `{self.name}` needs at least one backend and precision")
        if self.default_context_tokens < 1:
            raise ProfileError(f"profile `{self.name}` needs `default_context_tokens` of 1 or more")


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


def find_profile(name: str) -> Profile:
    """The profile of that name, or in that file. Raises `ProfileError`."""
    if name.endswith(".toml"):
        return read_profile(Path(name))
    found = list_profiles()
    if name not in found:
        raise ProfileError(
            f"unknown profile: {name}",
            hint=f"known are {', '.join(found) or 'none'}; or name a .toml file",
        )
    return read_profile(found[name])


def read_profile(path: Path) -> Profile:
    """Read and check one file. Raises `ProfileError`."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise ProfileError(f"cannot read profile {path}: {exc}") from exc
    storage = data.get("storage", {})
    if not isinstance(storage, dict) or not all(isinstance(v, dict) for v in storage.values()):
        raise ProfileError(f"`storage` in {path} must hold one table per precision")
    rows = {
        name: _checked(Storage, row, where=f"[storage.{name}] of {path}")
        for name, row in storage.items()
    }
    profile = _checked(Profile, {**data, "storage": MappingProxyType(rows)}, where=str(path))
    if profile.name != path.stem:
        raise ProfileError(f"{path} names itself `{profile.name}`, its file says `{path.stem}`")
    return profile


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


_RULES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "str": (lambda value: isinstance(value, str), "text"),
    "bool": (lambda value: isinstance(value, bool), "true or false"),
    "int": (_is_whole, "a whole number >= 0"),
    "int | None": (_is_whole, "a whole number >= 0"),
    "tuple[str, ...]": (
        lambda value: isinstance(value, list) and all(isinstance(item, str) for item in value),
        "a list of names",
    ),
}
"""A field's type -> what its value in a file must be, and how to say so."""


def _checked(kind: type[_Row], data: dict[str, Any], *, where: str) -> _Row:
    known = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]  # only dataclasses come here
    if unknown := sorted(set(data) - set(known)):
        raise ProfileError(
            f"unknown key in {where}: {', '.join(unknown)}",
            hint=f"known keys are {', '.join(sorted(known))}",
        )
    for key, value in data.items():
        is_right, said = _RULES.get(str(known[key].type), (lambda _: True, ""))
        if not is_right(value):
            raise ProfileError(f"`{key}` in {where} must be {said}: {value!r}")
    try:
        return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in data.items()})
    except TypeError as exc:
        missing = str(exc).partition("argument")[2].lstrip("s: ") or str(exc)
        raise ProfileError(f"{where} lacks {missing}") from exc
