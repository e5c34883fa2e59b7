"""Llama 1 to 3.3, SmolLM, TinyLlama, Nemotron Nano: anything with `model_type` llama."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgekit.families._decoder import read_decoder
from edgekit.families._fields import read_flag
from edgekit.model import ModelSpec


def read_spec(config: Mapping[str, Any]) -> ModelSpec:
    """Read the shape. `attention_bias` puts a bias on all four attention projections."""
    attention_bias = read_flag(config, "attention_bias")
    return read_decoder(
        config,
        has_qkv_bias=attention_bias,
        has_o_bias=attention_bias,
        has_mlp_bias=read_flag(config, "mlp_bias"),
    )
