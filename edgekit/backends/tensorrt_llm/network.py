"""What both kinds of TensorRT-LLM's checkpoint have in common as they are read."""

from __future__ import annotations

import json
import math
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.backends.torch_decoder import TorchDecoder
from edgekit.checkpoint.safetensors import TensorInfo
from edgekit.errors import CheckpointError
from edgekit.model import RopeScaling

if TYPE_CHECKING:
    from torch import Tensor

CONFIG_FILE = "config.json"


class Network(TorchDecoder):
    """The layers of a checkpoint whose kernels have q, k and v as one layer, "qkv"."""

    @abstractmethod
    def _linear(self, x: Tensor, layer: int, name: str) -> Tensor:
        """`x [T, K]` through "qkv", "o" or "down" -> `[T, N]`."""

    def _qkv(self, x: Tensor, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        heads, kv_heads = self._shape.num_heads, self._shape.num_kv_heads
        merged = self._linear(x, layer, "qkv").unflatten(-1, (-1, self._shape.head_size))
        q, k, v = merged.split([heads, kv_heads, kv_heads], dim=1)
        return q, k, v

    def _missing(self, name: str) -> CheckpointError:
        return CheckpointError(
            f"the TensorRT-LLM checkpoint has no {name}", hint="make it again: edgekit build"
        )


def read_json(path: Path) -> dict[str, Any]:
    """Raises `CheckpointError`."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise CheckpointError(f"not a TensorRT-LLM checkpoint: {path.parent}: {exc}") from exc
    if not isinstance(found, dict):
        raise CheckpointError(f"not a TensorRT-LLM checkpoint: {path} has no fields")
    return found


def to_e4m3(values: Tensor, scale: Tensor | float) -> Tensor:
    """Divided by the scale, rounded to E4M3 within its range, and back."""
    import torch

    return (values / scale).clamp(-448, 448).to(torch.float8_e4m3fn).float() * scale


def unpack_int4(packed: Tensor, scales: Tensor, group: int) -> Tensor:
    """Bytes `[N / 2, K]` and scales `[N, K / g]` -> weights `[K, N]`: turned around, two
    neighbouring columns share a byte, the even one its low half."""
    import torch

    turned = packed.T.contiguous().view(torch.uint8)
    codes = torch.stack([turned & 0x0F, turned >> 4], dim=-1).flatten(1).to(torch.int8)
    codes = torch.where(codes > 7, codes - 16, codes)
    return codes.float() * scales.T.float().repeat_interleave(group, dim=0)


def count_params(tensors: Mapping[str, TensorInfo]) -> int:
    """Weights in all tensors, as if integers were packed in pairs: of those it may be twice as
    many."""
    return sum(
        math.prod(info.shape) * (2 if info.dtype in ("I8", "U8") else 1)
        for info in tensors.values()
    )


def read_scaling(said: Mapping[str, Any] | None) -> RopeScaling | None:
    """A configuration's rotary scaling. Raises `CheckpointError`."""
    if said is None:
        return None
    kind, factor = said.get("type") or said.get("rope_type"), float(said["factor"])
    if kind == "linear":
        return RopeScaling(kind="linear", factor=factor)
    if kind != "llama3":
        raise CheckpointError(f"unknown rotary scaling: {kind}")
    return RopeScaling(
        kind="llama3",
        factor=factor,
        low_freq_factor=float(said["low_freq_factor"]),
        high_freq_factor=float(said["high_freq_factor"]),
        original_context_tokens=int(said["original_max_position_embeddings"]),
    )
