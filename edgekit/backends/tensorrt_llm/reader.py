"""A TensorRT-LLM checkpoint read as the builder and its kernels read it, on this processor.

Nothing but `config.json` and `rank0.safetensors` is looked at, so logits that agree with ModelOpt's
simulation prove what is shipped: order of nibbles, layout of scales, merged q, k, v, gate and up,
rotary scaling. What the builder does to each tensor is in `preprocess_perlayer_weights`
(tensorrt_llm/models/modeling_utils.py, 1.2), what the kernels compute in fpA_intB_gemm.

    W4A16_AWQ   int8 [N / 2, K] is turned around: two neighbouring columns of [K, N] in a byte, the
                even one low; scales [N, K / g] likewise; the input is multiplied by
                prequant_scaling_factor first
    W8A16       fp16 weights are rounded here: scale amax / 128 of a channel in fp16, codes clipped
                to -128 .. 127
    FP8         input / activation_scaling_factor in E4M3, weight * weights_scaling_factor
"""

from __future__ import annotations

import json
import math
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
WEIGHTS_FILE = "rank0.safetensors"
_CHUNK_TOKENS = 512
_KEPT_PART = 0.5
"""Weights stay in memory as fp32 where they take no more than this part of what is available."""


class CheckpointReader(SlotSession):
    """The network that `trtllm-build` would make an engine of, in torch at fp32."""

    def __init__(
        self,
        directory: Path,
        *,
        context_tokens: int,
        num_slots: int,
        keeps_activations: bool = False,
    ) -> None:
        """`keeps_activations`: FP8's rounding of activations, and the cache's, are left out.

        Raises `CheckpointError` for a checkpoint that is none of this layout.
        """
        self._config = _read_config(directory)
        self._tensors = read_header(directory / WEIGHTS_FILE)
        self._keeps_activations = keeps_activations
        super().__init__(
            context_tokens=context_tokens,
            num_slots=num_slots,
            vocab_size=int(self._config["vocab_size"]),
            chunk_tokens=_CHUNK_TOKENS,
        )
        quantization = self._config["quantization"]
        self._algo = quantization["quant_algo"]
        self._kv_algo = None if keeps_activations else quantization["kv_cache_quant_algo"]
        values = sum(_values(info) for info in self._tensors.values())
        self._keeps_weights = 4 * values < _KEPT_PART * read_device().available_bytes
        self._weights: dict[str, Tensor] = {}
        self._cache: list[dict[str, Tensor]] = self._empty_cache()
        self._frequencies = _frequencies(self._config)

    def close(self) -> None:
        """Free the memory. Safe to call twice."""
        self._weights.clear()
        self._cache.clear()

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

        residual = self._weight("transformer.vocab_embedding.weight")[ids]
        positions = torch.arange(held, held + len(ids))
        angles = positions[:, None] * self._frequencies[None, :]
        turns = torch.cos(angles), torch.sin(angles)
        for index in range(int(self._config["num_hidden_layers"])):
            name = f"transformer.layers.{index}"
            normed = self._norm(residual, f"{name}.input_layernorm")
            residual = residual + self._attention(index, slot, normed, held, turns)
            normed = self._norm(residual, f"{name}.post_layernorm")
            active = torch.nn.functional.silu(self._linear(normed, f"{name}.mlp.fc"))
            product = active * self._linear(normed, f"{name}.mlp.gate")
            residual = residual + self._linear(product, f"{name}.mlp.proj")
        last = self._norm(residual[len(ids) - wanted :], "transformer.ln_f")
        logits: NDArray[np.float32] = (last @ self._weight("lm_head.weight").T).numpy()
        return logits

    def _attention(
        self, index: int, slot: int, x: Tensor, held: int, turns: tuple[Tensor, Tensor]
    ) -> Tensor:
        import torch

        config, name = self._config, f"transformer.layers.{index}.attention"
        heads, kv_heads = int(config["num_attention_heads"]), int(config["num_key_value_heads"])
        size, end = int(config["head_size"]), held + len(x)
        merged = self._linear(x, f"{name}.qkv").view(len(x), heads + 2 * kv_heads, size)
        q, k, v = merged.split([heads, kv_heads, kv_heads], dim=1)
        q, k = _rotate(q, *turns), _rotate(k, *turns)
        cache = self._cache[index]
        for kind, new in (("k", k), ("v", v)):
            cache[kind][slot, :, held:end] = self._stored(new, name).transpose(0, 1)
        mask = torch.ones(len(x), end, dtype=torch.bool).tril(diagonal=held)
        attended = torch.nn.functional.scaled_dot_product_attention(
            q.transpose(0, 1)[None],
            cache["k"][slot : slot + 1, :, :end],
            cache["v"][slot : slot + 1, :, :end],
            attn_mask=mask,
            enable_gqa=True,
        )
        return self._linear(attended[0].transpose(0, 1).reshape(len(x), -1), f"{name}.dense")

    def _stored(self, values: Tensor, name: str) -> Tensor:
        """K or V after a stay in the cache."""
        import torch

        if self._kv_algo is None:
            return values
        scale = self._weight(f"{name}.kv_cache_scaling_factor")
        if self._kv_algo == "INT8":
            return (values / scale).round().clamp(-128, 127) * scale
        return (values / scale).clamp(-448, 448).to(torch.float8_e4m3fn).float() * scale

    def _linear(self, x: Tensor, name: str) -> Tensor:
        """`x [T, K]` through a layer -> `[T, N]`."""
        import torch

        weight = self._weight(f"{name}.weight")
        if self._algo == "W4A16_AWQ":
            return (x * self._weight(f"{name}.prequant_scaling_factor")) @ weight
        if self._algo == "FP8" and not self._keeps_activations:
            scale = self._weight(f"{name}.activation_scaling_factor")
            x = (x / scale).clamp(-448, 448).to(torch.float8_e4m3fn).float() * scale
        return x @ weight.T

    def _norm(self, x: Tensor, name: str) -> Tensor:
        import torch

        scale = torch.rsqrt(x.pow(2).mean(dim=-1, keepdim=True) + self._config["norm_epsilon"])
        return x * scale * self._weight(f"{name}.weight")

    def _weight(self, name: str) -> Tensor:
        """A tensor as the kernels compute with it, in fp32."""
        if name in self._weights:
            return self._weights[name]
        is_linear = name.endswith(".weight") and (".attention." in name or ".mlp." in name)
        tensor = self._dequantized(name) if is_linear else self._raw(name).float()
        if self._keeps_weights or tensor.dim() < 2:
            self._weights[name] = tensor
        return tensor

    def _dequantized(self, name: str) -> Tensor:
        import torch

        raw = self._raw(name)
        if self._algo == "W4A16_AWQ":
            scales = self._raw(name.replace(".weight", ".weights_scaling_factor"))
            return _int4(raw, scales, int(self._config["quantization"]["group_size"]))
        if self._algo == "W8A16":
            return _rounded_to_int8(raw)
        if self._algo == "FP8":
            scale = self._raw(name.replace(".weight", ".weights_scaling_factor"))
            return raw.view(torch.float8_e4m3fn).float() * scale
        return raw.float()

    def _raw(self, name: str) -> Tensor:
        import torch

        if name not in self._tensors:
            raise CheckpointError(
                f"the TensorRT-LLM checkpoint has no {name}", hint="make it again: edgekit build"
            )
        return torch.from_numpy(read_tensor(self._tensors[name]))

    def _empty_cache(self) -> list[dict[str, Tensor]]:
        import torch

        config = self._config
        shape = (
            self.num_slots,
            int(config["num_key_value_heads"]),
            self.context_tokens,
            int(config["head_size"]),
        )
        return [
            {kind: torch.zeros(shape) for kind in "kv"}
            for _ in range(int(config["num_hidden_layers"]))
        ]


def _read_config(directory: Path) -> dict[str, Any]:
    try:
        config = json.loads((directory / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise CheckpointError(f"not a TensorRT-LLM checkpoint: {directory}: {exc}") from exc
    known = (None, "W8A16", "W4A16_AWQ", "FP8")
    if config.get("quantization", {}).get("quant_algo") not in known:
        raise CheckpointError(f"unknown quant_algo in {directory / CONFIG_FILE}")
    found: dict[str, Any] = config
    return found


def _values(info: TensorInfo) -> int:
    """Weights in a tensor, of packed ones as well."""
    packed = 2 if info.dtype == "I8" else 1
    return math.prod(info.shape) * packed


def _frequencies(config: dict[str, Any]) -> Tensor:
    """Radians per position, `[D / 2]`; `rotary_scaling` as `RopeEmbeddingUtils` applies it
    (tensorrt_llm/functional.py)."""
    import torch

    size = int(config["head_size"])
    exponents = torch.arange(0, size, 2, dtype=torch.float64) / size
    found = float(config["rotary_base"]) ** -exponents
    scaling = config["rotary_scaling"]
    if scaling is None:
        return found.float()
    kind, factor = scaling["type"], float(scaling["factor"])
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


def _int4(packed: Tensor, scales: Tensor, group: int) -> Tensor:
    """int8 `[N / 2, K]` and scales `[N, K / g]` -> weights `[K, N]`."""
    import torch

    turned = packed.T.contiguous().view(torch.uint8)
    codes = torch.stack([turned & 0x0F, turned >> 4], dim=-1).flatten(1).to(torch.int8)
    codes = torch.where(codes > 7, codes - 16, codes)
    return codes.float() * scales.T.float().repeat_interleave(group, dim=0)


def _rounded_to_int8(weight: Tensor) -> Tensor:
    """fp16 `[N, K]` after the builder rounded it: one scale for each output channel."""
    import torch

    wide = weight.float()
    scales = wide.abs().amax(dim=1, keepdim=True) / 128
    # std::round goes away from zero; where a channel is empty its codes do not matter
    exact = wide / torch.where(scales == 0, torch.ones_like(scales), scales)
    codes = (exact.sign() * (exact.abs() + 0.5).floor()).clamp(-128, 127)
    return codes * scales.half().float()
