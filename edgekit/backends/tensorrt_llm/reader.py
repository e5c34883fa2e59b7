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

WEIGHTS_FILE = "rank0.safetensors"
_NORMS = {"input": "input_layernorm", "post": "post_layernorm"}
_LAYERS = {"qkv": "attention.qkv", "o": "attention.dense", "down": "mlp.proj"}
_TABLES = {"embedding": "transformer.vocab_embedding.weight", "head": "lm_head.weight"}


class CheckpointReader(Network):
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
        config = _read_config(directory)
        quantization = config["quantization"]
        self._algo = quantization["quant_algo"]
        self._group = int(quantization["group_size"])
        self._kv_algo = None if keeps_activations else quantization["kv_cache_quant_algo"]
        tensors = read_header(directory / WEIGHTS_FILE)
        super().__init__(
            Shape(
                num_layers=int(config["num_hidden_layers"]),
                num_heads=int(config["num_attention_heads"]),
                num_kv_heads=int(config["num_key_value_heads"]),
                head_size=int(config["head_size"]),
                vocab_size=int(config["vocab_size"]),
                epsilon=float(config["norm_epsilon"]),
                rotary_base=float(config["rotary_base"]),
                rotary_scaling=read_scaling(config["rotary_scaling"]),
                num_params=count_params(tensors),
            ),
            tensors,
            context_tokens=context_tokens,
            num_slots=num_slots,
            keeps_activations=keeps_activations,
        )

    def _table(self, name: str) -> Tensor:
        return self._weight(_TABLES[name])

    def _norm_weight(self, layer: int | None, name: str) -> Tensor:
        if layer is None:
            return self._weight("transformer.ln_f.weight")
        return self._weight(f"transformer.layers.{layer}.{_NORMS[name]}.weight")

    def _linear(self, x: Tensor, layer: int, name: str) -> Tensor:
        return self._product(x, f"transformer.layers.{layer}.{_LAYERS[name]}")

    def _gate_up(self, x: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        name = f"transformer.layers.{layer}.mlp"
        return self._product(x, f"{name}.fc"), self._product(x, f"{name}.gate")

    def _stored(self, values: Tensor, layer: int, kind: str) -> Tensor:
        if self._kv_algo is None:
            return values
        name = f"transformer.layers.{layer}.attention.kv_cache_scaling_factor"
        scale = self._weight(name)
        if self._kv_algo == "INT8":
            return (values / scale).round().clamp(-128, 127) * scale
        return to_e4m3(values, scale)

    def _product(self, x: Tensor, name: str) -> Tensor:
        """`x [T, K]` through a layer -> `[T, N]`."""
        weight = self._weight(f"{name}.weight")
        if self._algo == "W4A16_AWQ":
            return (x * self._weight(f"{name}.prequant_scaling_factor")) @ weight
        if self._algo == "FP8" and not self._keeps_activations:
            x = to_e4m3(x, self._weight(f"{name}.activation_scaling_factor"))
        return x @ weight.T

    def _weight(self, name: str) -> Tensor:
        """A tensor as the kernels compute with it, in fp32."""
        if name in self._weights:
            return self._weights[name]
        is_linear = name.endswith(".weight") and (".attention." in name or ".mlp." in name)
        return self._kept(name, self._dequantized(name) if is_linear else self._raw(name).float())

    def _dequantized(self, name: str) -> Tensor:
        import torch

        raw = self._raw(name)
        if self._algo == "W4A16_AWQ":
            scales = self._raw(name.replace(".weight", ".weights_scaling_factor"))
            return unpack_int4(raw, scales, self._group)
        if self._algo == "W8A16":
            return _rounded_to_int8(raw)
        if self._algo == "FP8":
            scale = self._raw(name.replace(".weight", ".weights_scaling_factor"))
            return raw.view(torch.float8_e4m3fn).float() * scale
        return raw.float()


def _read_config(directory: Path) -> dict[str, Any]:
    config = read_json(directory / CONFIG_FILE)
    known = (None, "W8A16", "W4A16_AWQ", "FP8")
    if config.get("quantization", {}).get("quant_algo") not in known:
        raise CheckpointError(f"unknown quant_algo in {directory / CONFIG_FILE}")
    return config


def _rounded_to_int8(weight: Tensor) -> Tensor:
    """fp16 `[N, K]` after the builder rounded it: one scale for each output channel."""
    import torch

    wide = weight.float()
    scales = wide.abs().amax(dim=1, keepdim=True) / 128
    # std::round goes away from zero; where a channel is empty its codes do not matter
    exact = wide / torch.where(scales == 0, torch.ones_like(scales), scales)
    codes = (exact.sign() * (exact.abs() + 0.5).floor()).clamp(-128, 127)
    return codes * scales.half().float()
