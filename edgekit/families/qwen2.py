"""Qwen2 and Qwen2.5: the llama graph with a bias on q, k and v."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgekit.families._decoder import read_decoder
from edgekit.model import ModelSpec


def read_spec(config: Mapping[str, Any]) -> ModelSpec:
    """Read the shape. The bias is part of the family, not a key of the config."""
    return read_decoder(config, has_qkv_bias=True)
