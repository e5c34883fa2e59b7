"""The unified checkpoint read as TensorRT-LLM's PyTorch backend and its kernels read it.

Nothing but the checkpoint's own files is looked at. What the loader does to each tensor is in
`load_weights_fused_qkv_linear` and its neighbours (tensorrt_llm/_torch/modules/linear.py, 1.3): q,
k, v and gate, up are laid one below the other before anything else.

    fp16    all of it in float16
    W8A16   int8 codes [N, K] are turned around, scales [N] become float16
    W4A16   bytes [N / 2, K] are turned around to [K, N / 2]: two neighbouring columns in one, the
            even one low; scales [N, K / g] likewise; o_proj and down_proj multiply their input by
            pre_quant_scale, merged layers by nothing
    FP8     merged layers take the largest scale: weights go through float16 to it and are rounded
            again; input / input_scale in E4M3
    cache   E4M3 of K and V as they are
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.backends.tensorrt_llm.network import (
    CONFIG_FILE,
    Network,
    count_params,
    read_json,
    read_scaling,
    to_e4m3,
    unpack_int4,
)
from edgekit.backends.torch_decoder import Shape
from edgekit.checkpoint.safetensors import read_header
from edgekit.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

QUANT_FILE = "hf_quant_config.json"
WEIGHTS_FILE = "model.safetensors"
_ALGOS = (None, "W8A16", "W4A16_AWQ", "FP8")
_KV_ALGOS = (None, "FP8")
_NORMS = {"input": "input_layernorm", "post": "post_attention_layernorm"}
_MERGED = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "o": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}


class UnifiedReader(Network):
    """The network that the PyTorch backend makes of the checkpoint, in torch at fp32."""

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
        config, quantization = _read_configs(directory)
        self._algo = quantization.get("quant_algo")
        self._group = int(quantization.get("group_size") or 0)
        self._rounds_cache = bool(quantization.get("kv_cache_quant_algo")) and not keeps_activations
        self._is_tied = bool(config["tie_word_embeddings"])
        tensors = read_header(directory / WEIGHTS_FILE)
        super().__init__(
            Shape(
                num_layers=int(config["num_hidden_layers"]),
                num_heads=int(config["num_attention_heads"]),
                num_kv_heads=int(config["num_key_value_heads"]),
                head_size=int(config["head_dim"]),
                vocab_size=int(config["vocab_size"]),
                epsilon=float(config["rms_norm_eps"]),
                rotary_base=float(config["rope_theta"]),
                rotary_scaling=read_scaling(config["rope_scaling"]),
                num_params=count_params(tensors),
            ),
            tensors,
            context_tokens=context_tokens,
            num_slots=num_slots,
            keeps_activations=keeps_activations,
        )

    def _table(self, name: str) -> Tensor:
        is_shared = name == "embedding" or self._is_tied
        return self._half("model.embed_tokens.weight" if is_shared else "lm_head.weight")

    def _norm_weight(self, layer: int | None, name: str) -> Tensor:
        if layer is None:
            return self._half("model.norm.weight")
        return self._half(f"model.layers.{layer}.{_NORMS[name]}.weight")

    def _linear(self, x: Tensor, layer: int, name: str) -> Tensor:
        return self._product(x, layer, name)

    def _gate_up(self, x: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        gate, up = self._product(x, layer, "gate_up").chunk(2, dim=-1)
        return gate, up

    def _stored(self, values: Tensor, layer: int, kind: str) -> Tensor:
        return to_e4m3(values, 1.0) if self._rounds_cache else values

    def _product(self, x: Tensor, layer: int, name: str) -> Tensor:
        """`x [T, K]` through the layers that are merged under `name` -> `[T, sum of N]`."""
        members = [f"model.layers.{layer}.{member}" for member in _MERGED[name]]
        if self._algo == "W4A16_AWQ" and len(members) == 1:
            x = x * self._half(f"{members[0]}.pre_quant_scale")
        if self._algo == "FP8" and not self._keeps_activations:
            x = to_e4m3(x, max(float(self._raw(f"{each}.input_scale")) for each in members))
        return x @ self._merged(f"{layer}.{name}", members)

    def _merged(self, key: str, members: list[str]) -> Tensor:
        """Weights of layers side by side, `[K, sum of N]`."""
        import torch

        if key in self._weights:
            return self._weights[key]
        raw = [self._raw(f"{each}.weight") for each in members]
        if self._algo == "FP8":
            return self._kept(key, self._one_scale(raw, members).T)
        together = torch.cat(raw)
        if self._algo is None:
            return self._kept(key, together.half().float().T)
        scales = torch.cat([self._raw(f"{each}.weight_scale") for each in members]).half()
        if self._algo == "W4A16_AWQ":
            return self._kept(key, unpack_int4(together, scales, self._group))
        return self._kept(key, together.T.float() * scales.float())

    def _one_scale(self, raw: list[Tensor], members: list[str]) -> Tensor:
        """FP8 matrices `[N, K]` below each other, at the largest of their scales."""
        import torch

        codes = [each.view(torch.float8_e4m3fn) for each in raw]
        scales = [self._raw(f"{each}.weight_scale").reshape([]) for each in members]
        if len(members) == 1:
            return codes[0].float() * scales[0]
        largest = torch.stack(scales).max()
        again = [
            (each.half().mul_(scale).div_(largest)).to(torch.float8_e4m3fn)
            for each, scale in zip(codes, scales, strict=True)
        ]
        return torch.cat([each.float() for each in again]) * largest

    def _half(self, name: str) -> Tensor:
        """A tensor that is not quantized, as float16 holds it."""
        if name in self._weights:
            return self._weights[name]
        return self._kept(name, self._raw(name).half().float())


def _read_configs(directory: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """`config.json`, and what `hf_quant_config.json` says of quantization."""
    config, path = read_json(directory / CONFIG_FILE), directory / QUANT_FILE
    quantization = read_json(path)["quantization"] if path.is_file() else {}
    algos = (quantization.get("quant_algo"), quantization.get("kv_cache_quant_algo"))
    if algos[0] not in _ALGOS or algos[1] not in _KV_ALGOS:
        raise CheckpointError(f"unknown quantization in {path}: {algos[0]}, cache {algos[1]}")
    return config, quantization
