"""Qwen3 (dense): the llama graph with an RMSNorm on every query and key head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgekit.families._decoder import read_decoder
from edgekit.families._fields import read_flag, read_whole
from edgekit.model import ModelSpec


def read_spec(config: Mapping[str, Any]) -> ModelSpec:
    """Read the shape. D is a key of its own: Hq x D differs from H in most sizes."""
    read_whole(config, "head_dim")
    attention_bias = read_flag(config, "attention_bias")
    return read_decoder(
        config, has_qkv_bias=attention_bias, has_o_bias=attention_bias, has_qk_norm=True
    )
