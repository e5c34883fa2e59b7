"""Known models: one TOML file each, with geometry and text conventions.

name = "Llama-3.1-Nemotron-Nano-8B-v1"
hub_id = "nvidia/Llama-3.1-Nemotron-Nano-8B-v1"
[spec]                    # the fields of `ModelSpec`
[reasoning]               # absent: the model has one mode
on = "detailed thinking on"
off = "detailed thinking off"
open_tag = "<think>"
close_tag = "</think>"
[reasoning.sampling_on]   # the model card's own

A model that is known for its plan only says so with `why_not_built`. Where the blocks of a model
differ, `spec.blocks` lists them as runs of like ones: see `BlockSpec`.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from edgekit.errors import InputError
from edgekit.model import ModelSpec

DEFAULT_MODEL = "Llama-3.1-Nemotron-Nano-8B-v1"
_NAME = re.compile(r"(?:\w[\w.-]*/)?(?P<name>\w[\w.-]*)(?:@.+)?")
"""A name, or a hub id of any owner. A path is neither: it starts with `.`, `/` or `~`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Convention:
    """How one model is told to think or not, and how it marks what it thought."""

    on: str
    """System text that turns thinking on."""
    off: str
    open_tag: str
    close_tag: str
    sampling_on: Mapping[str, float]
    sampling_off: Mapping[str, float]

    def system_text(self, mode: Literal["on", "off"]) -> str:
        """The system prompt for a mode."""
        return self.on if mode == "on" else self.off


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownModel:
    """What edgekit knows of a model without having its checkpoint."""

    name: str
    hub_id: str
    spec: ModelSpec
    convention: Convention | None
    source: str
    """Where the figures come from."""
    why_not_built: str | None = None
    """Why it can be planned but not built; `None`: it can be built."""


def list_models() -> dict[str, Path]:
    """Name -> file of every known model."""
    return {path.stem: path for path in sorted(Path(__file__).parent.glob("*.toml"))}


def find_model(name: str) -> KnownModel:
    """A known model by its name or hub id. Raises `InputError`."""
    match, found = _NAME.fullmatch(name), list_models()
    # hub ids of some models write the dot of a version as `_`
    key = match["name"].replace("_", ".") if match else ""
    if key not in found:
        hint = f"known are {', '.join(found)}; or name a checkpoint directory or GGUF file"
        lower = {model.lower(): model for model in found}
        if close := get_close_matches(key.lower(), lower, n=1):
            hint = f"did you mean `--model {lower[close[0]]}`? {hint}"
        raise InputError(f"unknown model: {name}", hint=hint)
    return _read(found[key])


def find_convention(name: str) -> Convention | None:
    """The reasoning convention of a model; `None` when it has one mode or is not known."""
    try:
        return find_model(name).convention
    except InputError:
        return None


def _read(path: Path) -> KnownModel:
    data = tomllib.loads(path.read_text(encoding="utf-8"))
    reasoning: dict[str, Any] | None = data.get("reasoning")
    return KnownModel(
        name=data["name"],
        hub_id=data["hub_id"],
        spec=ModelSpec.from_dict(data["spec"]),
        convention=Convention(**reasoning) if reasoning else None,
        source=data["source"],
        why_not_built=data.get("why_not_built"),
    )
