"""A unified checkpoint read as Edge-LLM and its kernels read it, on this processor.

Nothing but what Edge-LLM loads is looked at, and which way a layer is read follows from the label
in `hf_quant_config.json` as it does there: so logits that agree with ModelOpt's simulation prove
what is shipped. What a kernel does to its input is done here too: `rounding` has the arithmetic.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgekit.backends.edge_llm import rounding
from edgekit.backends.edge_llm.formats import layer_precision
from edgekit.backends.edge_llm.labels import Labels, read_labels
from edgekit.backends.slots import SlotSession
from edgekit.checkpoint import read_checkpoint
from edgekit.checkpoint.tensors import read_tensor
from edgekit.device import read_device
from edgekit.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

    from edgekit.backends.base import Logits
    from edgekit.model import ModelSpec

_CHUNK_TOKENS = 512
_KEPT_PART = 0.5
"""Weights stay in memory as fp32 where they take no more than this part of what is available."""


class CheckpointReader(SlotSession):
    """The network that an engine is built of, in torch at fp32."""

    def __init__(
        self,
        directory: Path,
        *,
        context_tokens: int,
        num_slots: int,
        keeps_activations: bool = False,
    ) -> None:
        """`keeps_activations`: what enters a layer is not rounded, nor what lies in the cache.

        Raises `CheckpointError` for a checkpoint that Edge-LLM would read as something else.
        """
        checkpoint = read_checkpoint(directory)
        self._spec = checkpoint.spec
        self._labels: Labels = read_labels(directory)
        self._tensors = checkpoint.tensors
        self._keeps_activations = keeps_activations
        super().__init__(
            context_tokens=context_tokens,
            num_slots=num_slots,
            vocab_size=self._spec.vocab_size,
            chunk_tokens=_CHUNK_TOKENS,
        )
        room = _KEPT_PART * read_device().available_bytes
        self._keeps_weights = 4 * self._spec.num_params < room
        self._weights: dict[str, Tensor] = {}
        self._cache = self._empty_cache()
        self._frequencies = _frequencies(self._spec)

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

        residual = self._weight("model.embed_tokens.weight")[ids]
        angles = torch.arange(held, held + len(ids))[:, None] * self._frequencies[None, :]
        turns = torch.cos(angles), torch.sin(angles)
        for index in range(self._spec.num_layers):
            name = f"model.layers.{index}"
            normed = self._norm(residual, f"{name}.input_layernorm")
            residual = residual + self._attention(index, slot, normed, held, turns)
            normed = self._norm(residual, f"{name}.post_attention_layernorm")
            active = torch.nn.functional.silu(self._linear(normed, f"{name}.mlp.gate_proj"))
            product = active * self._linear(normed, f"{name}.mlp.up_proj")
            residual = residual + self._linear(product, f"{name}.mlp.down_proj")
        last = self._norm(residual[len(ids) - wanted :], "model.norm")
        head = "lm_head" if "lm_head.weight" in self._tensors else "model.embed_tokens"
        logits: NDArray[np.float32] = (last @ self._weight(f"{head}.weight").T).numpy()
        return logits

    def _attention(
        self, index: int, slot: int, x: Tensor, held: int, turns: tuple[Tensor, Tensor]
    ) -> Tensor:
        import torch

        spec, name, end = self._spec, f"model.layers.{index}.self_attn", held + len(x)
        q, k, v = (
            self._linear(x, f"{name}.{part}_proj").view(len(x), -1, spec.head_dim) for part in "qkv"
        )
        if spec.has_qk_norm:
            q, k = self._norm(q, f"{name}.q_norm"), self._norm(k, f"{name}.k_norm")
        q, k = _rotate(q, *turns), _rotate(k, *turns)
        cache = self._cache[index]
        for kind, new in (("k", k), ("v", v)):
            stored = self._stored(new, f"{name}.{kind}_proj.{kind}_scale")
            cache[kind][slot, :, held:end] = stored.transpose(0, 1)
        attended = torch.nn.functional.scaled_dot_product_attention(
            q.transpose(0, 1)[None],
            cache["k"][slot : slot + 1, :, :end],
            cache["v"][slot : slot + 1, :, :end],
            attn_mask=torch.ones(len(x), end, dtype=torch.bool).tril(diagonal=held),
            enable_gqa=True,
        )
        return self._linear(attended[0].transpose(0, 1).reshape(len(x), -1), f"{name}.o_proj")

    def _stored(self, values: Tensor, scale: str) -> Tensor:
        """K or V after a stay in the cache."""
        if self._labels.kv_precision != "fp8" or self._keeps_activations:
            return values
        return rounding.to_e4m3(values, self._raw(scale).float())

    def _linear(self, x: Tensor, name: str) -> Tensor:
        """`x [T, K]` through a layer -> `[T, N]`."""
        if (scale := f"{name}.pre_quant_scale") in self._tensors:
            x = x * self._weight(scale)
        precision = layer_precision(self._labels.precision, name, x.shape[-1])
        if precision in rounding.ENTERING and not self._keeps_activations:
            x = rounding.ENTERING[precision](x, self._raw(f"{name}.input_scale").float())
        out = x @ self._weight(f"{name}.weight").T
        return out + self._weight(f"{name}.bias") if f"{name}.bias" in self._tensors else out

    def _norm(self, x: Tensor, name: str) -> Tensor:
        import torch

        scale = torch.rsqrt(x.pow(2).mean(dim=-1, keepdim=True) + self._spec.rms_norm_eps)
        return x * scale * self._weight(f"{name}.weight")

    def _weight(self, name: str) -> Tensor:
        """A tensor as the kernels compute with it, in fp32."""
        if name in self._weights:
            return self._weights[name]
        layer, _, part = name.rpartition(".")
        precision = "fp16"
        if part == "weight" and layer.endswith("_proj"):
            # of INT4, whose precision depends on it, the inputs are not packed
            columns = self._tensors[name].shape[-1] if name in self._tensors else 0
            precision = layer_precision(self._labels.precision, layer, columns)
        scales = [self._raw(f"{layer}.{scale}") for scale in rounding.SCALES.get(precision, ())]
        tensor = rounding.STORED[precision](self._raw(name), *scales)
        if self._keeps_weights or tensor.dim() < 2:
            self._weights[name] = tensor
        return tensor

    def _raw(self, name: str) -> Tensor:
        """As it lies in the file; the FP8 kinds as bit patterns."""
        import torch

        if name not in self._tensors:
            raise CheckpointError(f"the checkpoint has no {name}", hint="quantize it again")
        return torch.from_numpy(read_tensor(self._tensors[name]))

    def _empty_cache(self) -> list[dict[str, Tensor]]:
        import torch

        spec = self._spec
        shape = (self.num_slots, spec.num_kv_heads, self.context_tokens, spec.head_dim)
        return [{kind: torch.zeros(shape) for kind in "kv"} for _ in range(spec.num_layers)]


def _frequencies(spec: ModelSpec) -> Tensor:
    """Radians per position, `[D / 2]` (`rope_rotary_cos_sin` of the engine's inputs)."""
    import torch

    exponents = torch.arange(0, spec.head_dim, 2, dtype=torch.float64) / spec.head_dim
    found = spec.rope_theta**-exponents
    scaling = spec.rope_scaling
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
