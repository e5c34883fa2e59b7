"""From a checkpoint to an engine there are two ways on the device; this is the choice.

    onnx     tensorrt-edgellm-export on any processor, then the native builder: the engine holds
             the weights
    direct   tensorrt-edgellm-build from the checkpoint: weights stay there and are read when it is
             opened

The direct one needs no export and no torch, and is what NVIDIA's own server takes. For integer
weights it is not tested (docs/source/user_guide/getting_started/direct-engine-builder.md: only
FP16, FP8 and NVFP4 are) and was seen to compute INT4 AWQ wrongly where the export is right.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

_TESTED = "NVIDIA tests its direct builder with {0}, which needs no export"
_UNTESTED = "its direct builder has no test of {0} layers"
_WRONG = " and computed INT4 AWQ wrongly where the export was right (NVIDIA/TensorRT-Edge-LLM#208)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One of the two, and why."""

    name: Literal["onnx", "direct"]
    why: str


WAYS: Mapping[str, Way] = MappingProxyType(
    {
        "fp16": Way(name="direct", why=_TESTED.format("FP16")),
        "fp8": Way(name="direct", why=_TESTED.format("FP8")),
        "nvfp4": Way(name="direct", why=_TESTED.format("NVFP4")),
        "int8_sq": Way(name="onnx", why=_UNTESTED.format("INT8")),
        "int4_awq": Way(name="onnx", why=_UNTESTED.format("INT4") + _WRONG),
    }
)
"""Precision -> way, for 0.11 and what is known of later ones."""


def choose_way(precision: str) -> Way:
    """How an engine of that precision is made."""
    return WAYS[precision]
