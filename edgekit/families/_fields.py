"""Typed access to a parsed `config.json`: a value of the right type and range, or an error."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from edgekit.errors import CheckpointError

_LARGEST_SIZE = 2**31
"""Sizes above this are damage, not a model."""


def read_value(config: Mapping[str, Any], key: str, default: Any) -> Any:
    """The value of `key`; absent or null gives `default`, or raises `CheckpointError`."""
    value = config.get(key)
    if value is None:
        value = default
    if value is None:
        raise CheckpointError(f"config.json lacks a key: {key}")
    return value


def read_whole(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """A positive whole number; an absent or null key gives `default`, or raises without one."""
    value = read_value(config, key, default)
    if not isinstance(value, int) or isinstance(value, bool):
        raise CheckpointError(f"{key} in config.json must be a whole number: {value!r}")
    if not 0 < value < _LARGEST_SIZE:
        raise CheckpointError(f"{key} in config.json is out of range: {value}")
    return value


def read_number(config: Mapping[str, Any], key: str, default: float | None = None) -> float:
    """A positive finite number; an absent or null key gives `default`, or raises without one."""
    value = read_value(config, key, default)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise CheckpointError(f"{key} in config.json must be a number: {value!r}")
    if not 0 < value <= sys.float_info.max:
        raise CheckpointError(f"{key} in config.json is out of range: {value}")
    return float(value)


def read_flag(config: Mapping[str, Any], key: str, *, default: bool = False) -> bool:
    """A boolean; an absent or null key gives `default`."""
    value = read_value(config, key, default)
    if not isinstance(value, bool):
        raise CheckpointError(f"{key} in config.json must be true or false: {value!r}")
    return value
