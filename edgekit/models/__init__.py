"""Known models: one TOML file each, with geometry and text conventions.

name = "Llama-3.1-Nemotron-Nano-8B-v1"
hub_id = "nvidia/Llama-3.1-Nemotron-Nano-8B-v1"
convention = "nemotron-v1"   # of `models/conventions/`; absent: the model has one mode
[spec]                       # the fields of `ModelSpec`

A model that is known for its plan only says so with `why_not_built`. Where the blocks of a model
differ, `spec.blocks` lists them as runs of like ones: see `BlockSpec`.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from edgekit.errors import InputError
from edgekit.model import ModelSpec
from edgekit.models.convention import Convention, detect_convention, list_conventions

DEFAULT_MODEL = "Llama-3.1-Nemotron-Nano-8B-v1"
_NAME = re.compile(r"(?:\w[\w.-]*/)?(?P<name>\w[\w.-]*)(?:@.+)?")
"""A name, or a hub id of any owner. A path is neither: it starts with `.`, `/` or `~`."""


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


def buildable_name(name: str) -> str:
    """What `--model` of a build takes: for a known model, whose name is enough for plans alone, its
    hub id; anything else as it is."""
    return find_model(name).hub_id if name in list_models() else name


def find_convention(name: str, template: str = "") -> tuple[Convention, str] | None:
    """How a model is told to think, and where that is known from, for a sentence to the user.

    A model with a file of its own is as that file says; any other is recognized by its name or
    the text of its chat template. None: it has one mode as far as can be told.
    """
    try:
        known = find_model(name).convention
    except InputError:
        return detect_convention(name, template)
    return None if known is None else (known, "its own file")


def _read(path: Path) -> KnownModel:
    data = tomllib.loads(path.read_text(encoding="utf-8"))
    convention = data.get("convention")
    return KnownModel(
        name=data["name"],
        hub_id=data["hub_id"],
        spec=ModelSpec.from_dict(data["spec"]),
        convention=list_conventions()[convention] if convention else None,
        source=data["source"],
        why_not_built=data.get("why_not_built"),
    )
