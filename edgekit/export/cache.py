"""Scales of a quantized KV cache, from what calibration met in it."""

from __future__ import annotations

import json

from edgekit.checkpoint import Checkpoint
from edgekit.errors import CheckpointError
from edgekit.reference import CACHE_RANGES_FILE

_STEPS = {"INT8": 127.0, "FP8": 448.0}
"""The largest value that the cache's type holds."""
_LEAST = {"INT8": 0.0, "FP8": 1.0}
"""ModelOpt's own floor for E4M3 (`get_kv_cache_scaling_factor`): calibration sees little of what a
cache will hold, and a float format loses nothing by room at the top."""


def cache_scales(checkpoint: Checkpoint, kv_algo: str) -> list[tuple[float, float]]:
    """For each layer the scales of K and of V. Raises `CheckpointError`."""
    path = checkpoint.path / CACHE_RANGES_FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        scales = [
            (_scale(key, kv_algo), _scale(value, kv_algo))
            for key, value in zip(found["key"], found["value"], strict=True)
        ]
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise CheckpointError(
            f"the range of the cache's values is not known: {path}",
            hint="quantize again with this version's `edgekit quantize`",
        ) from exc
    every = [scale for pair in scales for scale in pair]
    if len(scales) != checkpoint.spec.num_layers or not all(0 < s < 1e6 for s in every):
        raise CheckpointError(f"{path} is not of this model")
    return scales


def _scale(largest: float, kv_algo: str) -> float:
    return max(float(largest) / _STEPS[kv_algo], _LEAST[kv_algo])
