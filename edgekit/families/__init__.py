"""Model families. To add one: a file here named after its Hugging Face `model_type`.

A family file gives `read_spec(config)`; what all families share (typed access to `config.json`,
rotary embedding, tensor names) is in the modules that start with an underscore.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from edgekit.errors import CheckpointError
from edgekit.families._tensors import expected_tensors
from edgekit.model import ModelSpec

__all__ = ["expected_tensors", "list_families", "read_spec"]

_SAME_AS = {"mistral": "llama"}
"""Families that differ from another in name only. Mistral adds nothing to the llama graph but a
sliding window, and one that is in use is refused for every family."""


def list_families() -> list[str]:
    """Every `model_type` that `read_spec` reads, sorted."""
    files = {module.name for module in iter_modules(__path__) if not module.name.startswith("_")}
    return sorted(files | set(_SAME_AS))


def read_spec(config: Mapping[str, Any]) -> ModelSpec:
    """Turn a parsed `config.json` into a `ModelSpec`.

    Raises `CheckpointError` for anything that edgekit would compute differently from the
    model's authors: an unknown family, activation or rotary scaling, code of its own.
    """
    if config.get("auto_map") or config.get("trust_remote_code"):
        raise CheckpointError(
            "the checkpoint needs Python code of its own (`auto_map` in config.json)",
            hint="edgekit never runs code from a checkpoint; "
            f"families it knows are {', '.join(list_families())}",
        )
    model_type = config.get("model_type")
    if model_type is None:
        raise CheckpointError("config.json lacks a key: model_type")
    if model_type not in list_families():
        raise CheckpointError(
            f"unsupported model family: {model_type}",
            hint=f"supported are {', '.join(list_families())}",
        )
    spec: ModelSpec = import_module(f"{__name__}.{_SAME_AS.get(model_type, model_type)}").read_spec(
        config
    )
    return spec
