"""Rotary embedding tables."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from edgekit.model import ModelSpec


def inverse_frequencies(spec: ModelSpec) -> NDArray[np.float64]:
    """Angle per position of each pair of dimensions, `[D / 2]`, radians.

    Su et al. 2021 (arXiv:2104.09864), section 3.2.2; pairs are (i, i + D/2) as in Hugging Face.
    `llama3` scaling: long wavelengths are divided by `factor`, short ones kept, those between
    are blended linearly in the number of turns within the original context (Llama 3.1's
    reference code; transformers `_compute_llama3_parameters`).
    """
    exponents = np.arange(0, spec.head_dim, 2, dtype=np.float64) / spec.head_dim
    frequencies = spec.rope_theta**-exponents
    scaling = spec.rope_scaling
    if scaling is None:
        return frequencies
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    turns = scaling.original_context_tokens * frequencies / (2 * math.pi)
    span = scaling.high_freq_factor - scaling.low_freq_factor
    kept = np.clip((turns - scaling.low_freq_factor) / span, 0.0, 1.0)
    return frequencies * (kept + (1 - kept) / scaling.factor)


def rope_tables(
    spec: ModelSpec, context_tokens: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Cosine and sine, each `[context_tokens, D / 2]`, float32."""
    # transformers keeps frequencies and angles in float32: rounding as it does keeps parity
    frequencies = inverse_frequencies(spec).astype(np.float32)
    angles = np.arange(context_tokens, dtype=np.float32)[:, None] * frequencies[None, :]
    return np.cos(angles), np.sin(angles)
