"""Rotary embedding settings, in the two forms that `config.json` has had."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgekit.errors import CheckpointError
from edgekit.families._fields import read_number, read_whole
from edgekit.model import RopeScaling

_DEFAULT_THETA = 10_000.0
"""What `transformers` takes where a config says nothing, as those of Llama 1 and 2 do."""


def read_rope(config: Mapping[str, Any]) -> tuple[float, RopeScaling | None]:
    """Theta and scaling.

    `transformers` 5 writes `rope_parameters: {rope_type, rope_theta, ...}`; before, there were
    `rope_theta` and `rope_scaling: {type or rope_type, ...}`. Raises `CheckpointError` for a
    scaling other than none, linear and llama3, and for rotation of only a part of each head.
    """
    parameters = _mapping(config, "rope_parameters")
    scaling = _mapping(config, "rope_scaling")
    if "rope_type" in parameters:
        scaling = parameters
    if any(isinstance(value, Mapping) for value in parameters.values()):
        raise CheckpointError("unsupported rotary embedding: one per layer type")
    for source in (parameters, config):
        if read_number(source, "partial_rotary_factor", 1.0) != 1.0:
            raise CheckpointError("unsupported rotary embedding: it turns a part of each head")
    theta = read_number(config, "rope_theta", _DEFAULT_THETA)
    return read_number(parameters, "rope_theta", theta), _read_scaling(scaling)


def _read_scaling(scaling: Mapping[str, Any]) -> RopeScaling | None:
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind == "default":
        return None
    if kind == "linear":
        return RopeScaling(kind="linear", factor=read_number(scaling, "factor"))
    if kind == "llama3":
        return _read_llama3(scaling)
    raise CheckpointError(
        f"unsupported rotary scaling: {kind}", hint="supported are default, linear and llama3"
    )


def _read_llama3(scaling: Mapping[str, Any]) -> RopeScaling:
    low = read_number(scaling, "low_freq_factor")
    high = read_number(scaling, "high_freq_factor")
    if low >= high:
        raise CheckpointError(f"low_freq_factor {low} must be below high_freq_factor {high}")
    return RopeScaling(
        kind="llama3",
        factor=read_number(scaling, "factor"),
        low_freq_factor=low,
        high_freq_factor=high,
        original_context_tokens=read_whole(scaling, "original_max_position_embeddings"),
    )


def _mapping(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = config.get(key) or {}
    if not isinstance(value, Mapping):
        raise CheckpointError(f"{key} in config.json must be an object: {value!r}")
    return value
