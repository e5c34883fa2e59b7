"""A Llama network in torch at fp32, on this processor: what both kinds of checkpoint are read into.

A subclass knows one layout: how its tensors become the weights that the kernels multiply with.
"""

from __future__ import annotations

import json
import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgekit.backends.slots import SlotSession
from edgekit.checkpoint.safetensors import TensorInfo, read_header
from edgekit.checkpoint.tensors import read_tensor
from edgekit.device import read_device
from edgekit.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

    from edgekit.backends.base import Logits

CONFIG_FILE = "config.json"
_CHUNK_TOKENS = 512
_KEPT_PART = 0.5
"""Weights stay in memory as fp32 where they take no more than this part of what is available."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What a network needs to know of itself besides its weights."""

    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    vocab_size: int
    epsilon: float
    rotary_base: float
    rotary_scaling: Mapping[str, Any] | None


class Network(SlotSession):
    """The layers, over weights that a subclass finds. Norms are called "input" and "post", layers
    "qkv", "o" and "down"; "gate" and "up" come together."""

    def __init__(
        self,
        shape: Shape,
        weights: Path,
        *,
        context_tokens: int,
        num_slots: int,
        keeps_activations: bool = False,
    ) -> None:
        """`keeps_activations`: FP8's rounding of activations, and the cache's, are left out."""
        self._shape = shape
        self._tensors = read_header(weights)
        self._keeps_activations = keeps_activations
        super().__init__(
            context_tokens=context_tokens,
            num_slots=num_slots,
            vocab_size=shape.vocab_size,
            chunk_tokens=_CHUNK_TOKENS,
        )
        values = sum(_values(info) for info in self._tensors.values())
        self._keeps_weights = 4 * values < _KEPT_PART * read_device().available_bytes
        self._weights: dict[str, Tensor] = {}
        self._cache: list[dict[str, Tensor]] = self._empty_cache()
        self._frequencies = _frequencies(shape)

    def close(self) -> None:
        """Free the memory. Safe to call twice."""
        self._weights.clear()
        self._cache.clear()

    @abstractmethod
    def _table(self, name: str) -> Tensor:
        """`[V, H]` of "embedding" or "head"."""

    @abstractmethod
    def _norm_weight(self, layer: int | None, name: str) -> Tensor:
        """`[H]` of a norm in a layer; of the last one where there is no layer."""

    @abstractmethod
    def _linear(self, x: Tensor, layer: int, name: str) -> Tensor:
        """`x [T, K]` through "qkv", "o" or "down" -> `[T, N]`."""

    @abstractmethod
    def _gate_up(self, x: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """`x [T, H]` through both layers -> `[T, F]` each."""

    @abstractmethod
    def _stored(self, values: Tensor, layer: int) -> Tensor:
        """K or V after a stay in the cache."""

    def _run(
        self, slot: int, count: int, ids: NDArray[np.int64], before: list[int], wanted: int
    ) -> Logits:
        import torch

        with torch.inference_mode():
            rows = [
                self._forward(slot + i, torch.from_numpy(ids[i]), before[i], wanted)
                for i in range(count)
            ]
        out: Logits = np.stack(rows)
        return out

    def _forward(self, slot: int, ids: Tensor, held: int, wanted: int) -> NDArray[np.float32]:
        import torch

        residual = self._table("embedding")[ids]
        positions = torch.arange(held, held + len(ids))
        angles = positions[:, None] * self._frequencies[None, :]
        turns = torch.cos(angles), torch.sin(angles)
        for layer in range(self._shape.num_layers):
            normed = self._norm(residual, layer, "input")
            residual = residual + self._attention(layer, slot, normed, held, turns)
            gate, up = self._gate_up(self._norm(residual, layer, "post"), layer)
            product = torch.nn.functional.silu(gate) * up
            residual = residual + self._linear(product, layer, "down")
        last = self._norm(residual[len(ids) - wanted :], None, "last")
        logits: NDArray[np.float32] = (last @ self._table("head").T).numpy()
        return logits

    def _attention(
        self, layer: int, slot: int, x: Tensor, held: int, turns: tuple[Tensor, Tensor]
    ) -> Tensor:
        import torch

        shape, end = self._shape, held + len(x)
        heads, kv_heads = shape.num_heads, shape.num_kv_heads
        merged = self._linear(x, layer, "qkv").view(len(x), heads + 2 * kv_heads, shape.head_size)
        q, k, v = merged.split([heads, kv_heads, kv_heads], dim=1)
        q, k = _rotate(q, *turns), _rotate(k, *turns)
        cache = self._cache[layer]
        for kind, new in (("k", k), ("v", v)):
            cache[kind][slot, :, held:end] = self._stored(new, layer).transpose(0, 1)
        mask = torch.ones(len(x), end, dtype=torch.bool).tril(diagonal=held)
        attended = torch.nn.functional.scaled_dot_product_attention(
            q.transpose(0, 1)[None],
            cache["k"][slot : slot + 1, :, :end],
            cache["v"][slot : slot + 1, :, :end],
            attn_mask=mask,
            enable_gqa=True,
        )
        return self._linear(attended[0].transpose(0, 1).reshape(len(x), -1), layer, "o")

    def _norm(self, x: Tensor, layer: int | None, name: str) -> Tensor:
        import torch

        scale = torch.rsqrt(x.pow(2).mean(dim=-1, keepdim=True) + self._shape.epsilon)
        return x * scale * self._norm_weight(layer, name)

    def _kept(self, name: str, tensor: Tensor) -> Tensor:
        """The tensor, which is remembered where there is room."""
        if self._keeps_weights or tensor.dim() < 2:
            self._weights[name] = tensor
        return tensor

    def _raw(self, name: str) -> Tensor:
        import torch

        if name not in self._tensors:
            raise CheckpointError(
                f"the TensorRT-LLM checkpoint has no {name}", hint="make it again: edgekit build"
            )
        return torch.from_numpy(read_tensor(self._tensors[name]))

    def _empty_cache(self) -> list[dict[str, Tensor]]:
        import torch

        kv_heads, size = self._shape.num_kv_heads, self._shape.head_size
        shape = (self.num_slots, kv_heads, self.context_tokens, size)
        return [{kind: torch.zeros(shape) for kind in "kv"} for _ in range(self._shape.num_layers)]


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


def _values(info: TensorInfo) -> int:
    """Weights in a tensor, of packed ones as well."""
    packed = 2 if info.dtype in ("I8", "U8") else 1
    return math.prod(info.shape) * packed


def _frequencies(shape: Shape) -> Tensor:
    """Radians per position, `[D / 2]`; scaled as `RopeEmbeddingUtils` does
    (tensorrt_llm/functional.py), which both backends take."""
    import torch

    size = shape.head_size
    exponents = torch.arange(0, size, 2, dtype=torch.float64) / size
    found = shape.rotary_base**-exponents
    scaling = shape.rotary_scaling
    if scaling is None:
        return found.float()
    kind, factor = scaling.get("type") or scaling.get("rope_type"), float(scaling["factor"])
    if kind == "linear":
        return (found / factor).float()
    if kind != "llama3":
        raise CheckpointError(f"unknown rotary scaling: {kind}")
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    original = float(scaling["original_max_position_embeddings"])
    waves = 2 * math.pi / found
    smooth = (original / waves - low) / (high - low)
    blended = (1 - smooth) * found / factor + smooth * found
    out = torch.where(waves > original / low, found / factor, blended)
    return torch.where(waves < original / high, found, out).float()


def _rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """`x [T, heads, D]`: rope_gpt_neox turns the pairs (i, i + D / 2)."""
    import torch

    first, second = x.chunk(2, dim=-1)
    cos, sin = cosines[:, None], sines[:, None]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
