"""Rotary tables against transformers' own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from edgekit.export.rope import inverse_frequencies, rope_tables
from edgekit.families import read_spec

_SHAPE: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 128, "intermediate_size": 96, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 64,
    "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "hidden_act": "silu",
}  # fmt: skip
_ROPES: dict[str, dict[str, Any]] = {
    "none": {"rope_type": "default", "rope_theta": 500000.0},
    "linear": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
    "llama3": {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", _ROPES)
def test_tables_are_those_of_transformers(kind: str) -> None:
    config = {**_SHAPE, "rope_parameters": _ROPES[kind]}
    theirs = LlamaRotaryEmbedding(LlamaConfig(**config))
    cosines, sines = theirs(torch.zeros(1), torch.arange(2048)[None])
    ours = rope_tables(read_spec(config), 2048)
    assert ours[0].shape == ours[1].shape == (2048, 32)
    # both multiply position and frequency in fp32: frequencies one unit apart in the last place
    # (2^-24) turn by 2048 x 2^-24 = 1.2e-4 at the last position
    np.testing.assert_allclose(ours[0], cosines[0, :, :32].numpy(), atol=2.5e-4)
    np.testing.assert_allclose(ours[1], sines[0, :, :32].numpy(), atol=2.5e-4)


def test_position_zero_is_not_turned() -> None:
    cosines, sines = rope_tables(read_spec({**_SHAPE, "rope_parameters": _ROPES["none"]}), 1)
    assert (cosines == 1).all()
    assert (sines == 0).all()


def test_linear_scaling_divides_every_frequency() -> None:
    plain = {**_SHAPE, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
    scaled = {**_SHAPE, "rope_parameters": _ROPES["linear"]}
    np.testing.assert_allclose(
        inverse_frequencies(read_spec(scaled)), inverse_frequencies(read_spec(plain)) / 4
    )


def test_llama3_scaling_keeps_the_fast_pairs_and_slows_the_slow_ones() -> None:
    found = inverse_frequencies(read_spec({**_SHAPE, "rope_parameters": _ROPES["llama3"]}))
    # D = 64: pair i turns 500000^-(i / 32) a token. Pair 0 turns 8192 / 2 pi = 1304 times in the
    # original context, more than 4: kept. The last turns 8192 x 3e-6 / 2 pi times, less than
    # once: divided by 8.
    assert found[0] == 1.0
    assert found[31] == pytest.approx(500000 ** -(31 / 32) / 8)
