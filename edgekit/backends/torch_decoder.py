"""A Llama-shaped network in torch at fp32, on this processor: what checkpoints are read into.

A subclass knows one layout: how its tensors become the weights that the kernels multiply with, and
what those do to what enters them. Nothing of that is here, so that each proves its own.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgekit.backends.slots import SlotSession
from edgekit.checkpoint.safetensors import TensorInfo
from edgekit.checkpoint.tensors import read_tensor
from edgekit.device import read_device
from edgekit.errors import CheckpointError
from edgekit.model import RopeScaling

if TYPE_CHECKING:
    from torch import Tensor

    from edgekit.backends.base import Logits

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
    rotary_scaling: RopeScaling | None
    num_params: int


class TorchDecoder(SlotSession):
    """The layers, over weights that a subclass finds. Norms are called "input", "post" and "last",
    layers "o" and "down"; q, k and v come together, and so do gate and up."""

    def __init__(
        self,
        shape: Shape,
        tensors: Mapping[str, TensorInfo],
        *,
        context_tokens: int,
        num_slots: int,
        keeps_activations: bool = False,
    ) -> None:
        """`keeps_activations`: what enters a layer is not rounded, nor what lies in the cache."""
        self._shape = shape
        self._tensors = tensors
        self._keeps_activations = keeps_activations
        super().__init__(
            context_tokens=context_tokens,
            num_slots=num_slots,
            vocab_size=shape.vocab_size,
            chunk_tokens=_CHUNK_TOKENS,
        )
        self._keeps_weights = 4 * shape.num_params < _KEPT_PART * read_device().available_bytes
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
    def _qkv(self, x: Tensor, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        """`x [T, H]` through three layers -> `[T, heads, D]` each, not yet rotated."""

    @abstractmethod
    def _linear(self, x: Tensor, layer: int, name: str) -> Tensor:
        """`x [T, K]` through "o" or "down" -> `[T, N]`."""

    @abstractmethod
    def _gate_up(self, x: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """`x [T, H]` through both layers -> `[T, F]` each."""

    @abstractmethod
    def _stored(self, values: Tensor, layer: int, kind: str) -> Tensor:
        """Values of kind "k" or "v" after a stay in the cache."""

    @abstractmethod
    def _missing(self, name: str) -> CheckpointError:
        """The error for a tensor that is not there."""

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
            normed = self._normed(residual, self._norm_weight(layer, "input"))
            residual = residual + self._attention(layer, slot, normed, held, turns)
            normed = self._normed(residual, self._norm_weight(layer, "post"))
            gate, up = self._gate_up(normed, layer)
            product = torch.nn.functional.silu(gate) * up
            residual = residual + self._linear(product, layer, "down")
        last = self._normed(residual[len(ids) - wanted :], self._norm_weight(None, "last"))
        logits: NDArray[np.float32] = (last @ self._table("head").T).numpy()
        return logits

    def _attention(
        self, layer: int, slot: int, x: Tensor, held: int, turns: tuple[Tensor, Tensor]
    ) -> Tensor:
        import torch

        end = held + len(x)
        q, k, v = self._qkv(x, layer)
        q, k = _rotate(q, *turns), _rotate(k, *turns)
        cache = self._cache[layer]
        for kind, new in (("k", k), ("v", v)):
            cache[kind][slot, :, held:end] = self._stored(new, layer, kind).transpose(0, 1)
        attended = torch.nn.functional.scaled_dot_product_attention(
            q.transpose(0, 1)[None],
            cache["k"][slot : slot + 1, :, :end],
            cache["v"][slot : slot + 1, :, :end],
            attn_mask=torch.ones(len(x), end, dtype=torch.bool).tril(diagonal=held),
            enable_gqa=True,
        )
        return self._linear(attended[0].transpose(0, 1).reshape(len(x), -1), layer, "o")

    def _normed(self, x: Tensor, weight: Tensor) -> Tensor:
        import torch

        return x * torch.rsqrt(x.pow(2).mean(dim=-1, keepdim=True) + self._shape.epsilon) * weight

    def _kept(self, name: str, tensor: Tensor) -> Tensor:
        """The tensor, which is remembered where there is room."""
        if self._keeps_weights or tensor.dim() < 2:
            self._weights[name] = tensor
        return tensor

    def _raw(self, name: str) -> Tensor:
        """As it lies in the file; the FP8 kinds as bit patterns. Raises `CheckpointError`."""
        import torch

        if name not in self._tensors:
            raise self._missing(name)
        return torch.from_numpy(read_tensor(self._tensors[name]))

    def _empty_cache(self) -> list[dict[str, Tensor]]:
        import torch

        kv_heads, size = self._shape.num_kv_heads, self._shape.head_size
        shape = (self.num_slots, kv_heads, self.context_tokens, size)
        return [{kind: torch.zeros(shape) for kind in "kv"} for _ in range(self._shape.num_layers)]


def _frequencies(shape: Shape) -> Tensor:
    """Radians per position, `[D / 2]`: `RopeEmbeddingUtils` of TensorRT-LLM's
    tensorrt_llm/functional.py, `rope_rotary_cos_sin` of Edge-LLM's inputs."""
    import torch

    size = shape.head_size
    exponents = torch.arange(0, size, 2, dtype=torch.float64) / size
    found = shape.rotary_base**-exponents
    scaling = shape.rotary_scaling
    if scaling is None:
        return found.float()
    if scaling.kind == "linear":
        return (found / scaling.factor).float()
    turns = scaling.original_context_tokens * found / (2 * math.pi)
    span = scaling.high_freq_factor - scaling.low_freq_factor
    kept = ((turns - scaling.low_freq_factor) / span).clamp(0, 1)
    return (found * (kept + (1 - kept) / scaling.factor)).float()


def _rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """`x [T, heads, D]`: the pairs are (i, i + D / 2)."""
    import torch

    first, second = x.chunk(2, dim=-1)
    cos, sin = cosines[:, None], sines[:, None]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
