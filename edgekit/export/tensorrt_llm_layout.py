"""What is in a TensorRT-LLM checkpoint, for `trtllm-build` of TensorRT-LLM 1.2.

Names, types and shapes are what `PretrainedModel.load` asks for after `preprocess_weights` has been
over them (tensorrt_llm/models/modeling_utils.py); N, K are a layer's output and input width:

    transformer.vocab_embedding.weight                F16  [V, H]
    transformer.layers.<i>.input_layernorm.weight     F16  [H]
    transformer.layers.<i>.attention.qkv.*            q, k, v side by side
    transformer.layers.<i>.attention.dense.*          o_proj
    transformer.layers.<i>.post_layernorm.weight      F16  [H]
    transformer.layers.<i>.mlp.fc.*                   gate_proj, which goes through silu
    transformer.layers.<i>.mlp.gate.*                 up_proj
    transformer.layers.<i>.mlp.proj.*                 down_proj
    transformer.ln_f.weight                           F16  [H]
    lm_head.weight                                    F16  [V, H], also of a tied model: the builder
                                                      finds out that both are equal and shares them

    fp16       weight F16 [N, K]
    int8       weight F16 [N, K]: the builder rounds it (W8A16) and packs it for the GPU it is on
    int4_awq   weight I8 [N / 2, K], weights_scaling_factor F16 [N, K / group],
               prequant_scaling_factor F16 [K]
    fp8        weight F8_E4M3 [N, K], weights_scaling_factor and activation_scaling_factor F32 [1]

A quantized cache adds transformer.layers.<i>.attention.kv_cache_scaling_factor F32 [1], for K
behind its rotation and V alike: what one step of int8 or E4M3 stands for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgekit import __version__
from edgekit.model import ModelSpec

QUANT_ALGOS: Mapping[str, str | None] = {
    "fp16": None,
    "int8": "W8A16",
    "int4_awq": "W4A16_AWQ",
    "fp8": "FP8",
}
"""Precision -> `quant_algo` (tensorrt_llm/quantization/mode.py)."""
KV_ALGOS: Mapping[str, str | None] = {"fp16": None, "int8": "INT8", "fp8": "FP8"}
"""KV precision -> `kv_cache_quant_algo`."""
Layout = dict[str, tuple[str, tuple[int, ...]]]
"""Tensor name -> dtype as safetensors spells it, and shape."""
MEMBERS: Mapping[str, tuple[str, ...]] = {
    "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention.dense": ("self_attn.o_proj",),
    "mlp.fc": ("mlp.gate_proj",),
    "mlp.gate": ("mlp.up_proj",),
    "mlp.proj": ("mlp.down_proj",),
}
"""TensorRT-LLM's layer -> the checkpoint's, side by side."""


def checkpoint_config(
    spec: ModelSpec, precision: str, *, group_size: int | None = None, kv_algo: str | None = None
) -> dict[str, Any]:
    """`config.json`: the fields of `PretrainedConfig` and `LLaMAConfig`."""
    scaling = None
    if spec.rope_scaling is not None:
        kind = spec.rope_scaling.kind
        scaling = {"type": kind, "rope_type": kind, "factor": spec.rope_scaling.factor}
        if kind == "llama3":
            scaling |= {
                "low_freq_factor": spec.rope_scaling.low_freq_factor,
                "high_freq_factor": spec.rope_scaling.high_freq_factor,
                "original_max_position_embeddings": spec.rope_scaling.original_context_tokens,
            }
    return {
        "producer": {"name": "edgekit", "version": __version__},
        "architecture": "LlamaForCausalLM",
        "dtype": "float16",
        "logits_dtype": "float32",
        "vocab_size": spec.vocab_size,
        "max_position_embeddings": spec.max_context_tokens,
        "hidden_size": spec.hidden_size,
        "num_hidden_layers": spec.num_layers,
        "num_attention_heads": spec.num_query_heads,
        "num_key_value_heads": spec.num_kv_heads,
        "head_size": spec.head_dim,
        "intermediate_size": spec.intermediate_size,
        "hidden_act": "silu",
        "norm_epsilon": spec.rms_norm_eps,
        "position_embedding_type": "rope_gpt_neox",
        "rotary_base": spec.rope_theta,
        "rotary_scaling": scaling,
        "qk_layernorm": False,
        "attn_bias": False,
        "mlp_bias": False,
        "use_parallel_embedding": False,
        "embedding_sharding_dim": 0,
        "mapping": {"world_size": 1, "tp_size": 1, "pp_size": 1},
        "quantization": {
            "quant_algo": QUANT_ALGOS[precision],
            "kv_cache_quant_algo": kv_algo,
            "group_size": group_size or 128,
            "has_zero_point": False,
            "pre_quant_scale": precision == "int4_awq",
            # null: the builder's own list, with the head and the embedding
            "exclude_modules": None,
        },
    }


def tensor_layout(
    spec: ModelSpec, precision: str, *, group_size: int | None = None, kv_algo: str | None = None
) -> Layout:
    """Every tensor of the file, in its order."""
    layout: Layout = {
        "transformer.vocab_embedding.weight": ("F16", (spec.vocab_size, spec.hidden_size))
    }
    for index in range(spec.num_layers):
        name = f"transformer.layers.{index}"
        layout[f"{name}.input_layernorm.weight"] = ("F16", (spec.hidden_size,))
        layout[f"{name}.post_layernorm.weight"] = ("F16", (spec.hidden_size,))
        if kv_algo is not None:
            layout[f"{name}.attention.kv_cache_scaling_factor"] = ("F32", (1,))
        for layer, (rows, columns) in _widths(spec).items():
            for part, (dtype, shape) in _parts(precision, rows, columns, group_size or 128).items():
                layout[f"{name}.{layer}.{part}"] = (dtype, shape)
    layout["transformer.ln_f.weight"] = ("F16", (spec.hidden_size,))
    layout["lm_head.weight"] = ("F16", (spec.vocab_size, spec.hidden_size))
    return layout


def _widths(spec: ModelSpec) -> dict[str, tuple[int, int]]:
    hidden, inner = spec.hidden_size, spec.intermediate_size
    return {
        "attention.qkv": (spec.q_size + 2 * spec.kv_size, hidden),
        "attention.dense": (hidden, spec.q_size),
        "mlp.fc": (inner, hidden),
        "mlp.gate": (inner, hidden),
        "mlp.proj": (hidden, inner),
    }


def _parts(precision: str, rows: int, columns: int, group: int) -> Layout:
    if precision == "int4_awq":
        return {
            "weight": ("I8", (rows // 2, columns)),
            "weights_scaling_factor": ("F16", (rows, columns // group)),
            "prequant_scaling_factor": ("F16", (columns,)),
        }
    if precision == "fp8":
        return {
            "weight": ("F8_E4M3", (rows, columns)),
            "weights_scaling_factor": ("F32", (1,)),
            "activation_scaling_factor": ("F32", (1,)),
        }
    return {"weight": ("F16", (rows, columns))}
