"""Quantized checkpoint -> ModelOpt's unified checkpoint as TensorRT-LLM's PyTorch backend takes it.

    out/
    ├── config.json            Hugging Face's, of `LlamaForCausalLM`
    ├── hf_quant_config.json   ModelOpt's; missing where nothing is quantized
    └── model.safetensors      the tensors of `unified_layout`

It is what the quantize step wrote, with what the backend's loader needs or would not do itself
(tensorrt_llm/_torch/modules/linear.py, 1.3):

- one type, float16, for all that is not quantized, scales of weights included: the engines' type;
- `pre_quant_scale` on o_proj and down_proj of 4-bit layers, ones where it was folded away: the
  loader asks for it there, and on q, k, v, gate and up, where it would leave it out in silence, it
  is folded into the norms before;
- rotary scaling under the names that transformers had before version 5, which it reads as well;
- no cache scales: the backend stores K and V in E4M3 as they are (attention_backend/trtllm.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.checkpoint import Checkpoint
from edgekit.errors import CheckpointError, storage_errors
from edgekit.export.linear import Block, load_block
from edgekit.export.store import Array, to_float16
from edgekit.export.tensorrt_llm import (
    half_rows,
    norm_weight,
    pack_int4,
    precision_of,
    write_tensors,
)
from edgekit.export.tensorrt_llm_layout import KV_ALGOS, QUANT_ALGOS, Layout
from edgekit.export.weights import IntLinear
from edgekit.model import ModelSpec
from edgekit.profile import Storage
from edgekit.progress import Progress, no_progress

CONFIG_FILE = "config.json"
QUANT_FILE = "hf_quant_config.json"
WEIGHTS_FILE = "model.safetensors"
PRE_SCALED = ("self_attn.o_proj", "mlp.down_proj")
"""Layers whose `pre_quant_scale` the loader asks for, at 4 bits."""
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def export_unified_checkpoint(
    checkpoint: Checkpoint,
    storage: Storage,
    out: Path,
    *,
    context_tokens: int,
    kv_precision: str = "fp16",
    report: Progress = no_progress,
) -> None:
    """Write the three files into the directory `out`.

    The context is no property of such a checkpoint; the runtime is told. Memory stays bounded by
    one layer. Raises `CheckpointError`, `StorageError`.
    """
    precision, group = precision_of(checkpoint)
    layout = unified_layout(checkpoint.spec, precision, group_size=group)
    with storage_errors(out):
        write_tensors(out / WEIGHTS_FILE, layout, _tensors(checkpoint, precision, report))
        _write_json(out / CONFIG_FILE, unified_config(checkpoint.spec, _token_ids(checkpoint)))
        if precision != "fp16" or kv_precision != "fp16":
            config = quant_config(
                precision,
                group_size=group,
                kv_precision=kv_precision,
                producer=_producer(checkpoint),
            )
            _write_json(out / QUANT_FILE, config)


def unified_config(spec: ModelSpec, token_ids: Mapping[str, Any]) -> dict[str, Any]:
    """`config.json`, in the spelling of transformers 4, which version 5 reads as well."""
    scaling = None
    if spec.rope_scaling is not None:
        scaling = {"rope_type": spec.rope_scaling.kind, "factor": spec.rope_scaling.factor}
        if spec.rope_scaling.kind == "llama3":
            scaling |= {
                "low_freq_factor": spec.rope_scaling.low_freq_factor,
                "high_freq_factor": spec.rope_scaling.high_freq_factor,
                "original_max_position_embeddings": spec.rope_scaling.original_context_tokens,
            }
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "float16",
        "vocab_size": spec.vocab_size,
        "max_position_embeddings": spec.max_context_tokens,
        "hidden_size": spec.hidden_size,
        "intermediate_size": spec.intermediate_size,
        "num_hidden_layers": spec.num_layers,
        "num_attention_heads": spec.num_query_heads,
        "num_key_value_heads": spec.num_kv_heads,
        "head_dim": spec.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": spec.rms_norm_eps,
        "rope_theta": spec.rope_theta,
        "rope_scaling": scaling,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": spec.has_tied_embeddings,
        "use_cache": True,
        **token_ids,
    }


def quant_config(
    precision: str, *, group_size: int | None, kv_precision: str, producer: Mapping[str, Any]
) -> dict[str, Any]:
    """`hf_quant_config.json`, as ModelOpt's exporter writes it."""
    found: dict[str, Any] = {
        "quant_algo": QUANT_ALGOS[precision],
        "kv_cache_quant_algo": KV_ALGOS[kv_precision],
        "exclude_modules": ["lm_head"],
    }
    if precision == "int4_awq":
        found |= {"group_size": group_size, "has_zero_point": False, "pre_quant_scale": True}
    return {"producer": dict(producer), "quantization": found}


def unified_layout(spec: ModelSpec, precision: str, *, group_size: int | None = None) -> Layout:
    """Every tensor of the file, in its order."""
    layout: Layout = {"model.embed_tokens.weight": ("F16", (spec.vocab_size, spec.hidden_size))}
    for index in range(spec.num_layers):
        name = f"model.layers.{index}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            layout[f"{name}.{norm}.weight"] = ("F16", (spec.hidden_size,))
        for member, (rows, columns) in _widths(spec).items():
            parts = _parts(precision, rows, columns, group_size or 128)
            if member not in PRE_SCALED:
                parts.pop("pre_quant_scale", None)
            layout |= {f"{name}.{member}.{part}": row for part, row in parts.items()}
    layout["model.norm.weight"] = ("F16", (spec.hidden_size,))
    if not spec.has_tied_embeddings:
        layout["lm_head.weight"] = ("F16", (spec.vocab_size, spec.hidden_size))
    return layout


def _widths(spec: ModelSpec) -> dict[str, tuple[int, int]]:
    hidden, inner = spec.hidden_size, spec.intermediate_size
    return {
        "self_attn.q_proj": (spec.q_size, hidden),
        "self_attn.k_proj": (spec.kv_size, hidden),
        "self_attn.v_proj": (spec.kv_size, hidden),
        "self_attn.o_proj": (hidden, spec.q_size),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }


def _parts(precision: str, rows: int, columns: int, group: int) -> Layout:
    rows_of: dict[str, Layout] = {
        "fp16": {"weight": ("F16", (rows, columns))},
        "int8": {"weight": ("I8", (rows, columns)), "weight_scale": ("F16", (rows,))},
        "int4_awq": {
            "weight": ("U8", (rows // 2, columns)),
            "weight_scale": ("F16", (rows, columns // group)),
            "pre_quant_scale": ("F16", (columns,)),
        },
        "fp8": {
            "weight": ("F8_E4M3", (rows, columns)),
            "weight_scale": ("F32", ()),
            "input_scale": ("F32", ()),
        },
    }
    return rows_of[precision]


def _tensors(
    checkpoint: Checkpoint, precision: str, report: Progress
) -> Iterator[tuple[str, Iterable[Array]]]:
    """Names and rows, in the order of the layout."""
    yield "model.embed_tokens.weight", half_rows(checkpoint.tensors["model.embed_tokens.weight"])
    layers = checkpoint.spec.num_layers
    for index in range(layers):
        report("export", index, layers)
        name = f"model.layers.{index}"
        block = load_block(checkpoint, name)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"{name}.{norm}.weight", [norm_weight(checkpoint, f"{name}.{norm}", block)]
        for member in _widths(checkpoint.spec):
            parts = _linear(checkpoint, block, f"{name}.{member}", precision)
            for part, chunks in parts.items():
                yield f"{name}.{member}.{part}", chunks
    report("export", layers, layers)
    yield "model.norm.weight", [norm_weight(checkpoint, "model.norm", None)]
    if not checkpoint.spec.has_tied_embeddings:
        yield "lm_head.weight", half_rows(checkpoint.tensors["lm_head.weight"])


def _linear(
    checkpoint: Checkpoint, block: Block, name: str, precision: str
) -> dict[str, Iterable[Array]]:
    layer = block.linears[name]
    if (layer is None) != (precision == "fp16"):
        raise CheckpointError(
            f"{name} is not {precision}, as other layers are",
            hint="quantize again with `edgekit quantize`",
        )
    if layer is None:
        return {"weight": half_rows(checkpoint.tensors[f"{name}.weight"])}
    return {"int8": _int8, "int4_awq": _int4, "fp8": _fp8}[precision](layer, name)


def _int8(layer: IntLinear, name: str) -> dict[str, Iterable[Array]]:
    return {"weight": [layer.codes], "weight_scale": [to_float16(layer.scales[:, 0], name)]}


def _int4(layer: IntLinear, name: str) -> dict[str, Iterable[Array]]:
    parts: dict[str, Iterable[Array]] = {
        "weight": [pack_int4(layer.codes).view(np.uint8)],
        "weight_scale": [to_float16(layer.scales, name)],
    }
    before = layer.pre_quant_scale
    if name.endswith(PRE_SCALED):
        ones = np.ones(layer.codes.shape[1], np.float32)
        parts["pre_quant_scale"] = [to_float16(ones if before is None else before, name)]
    elif before is not None:
        raise CheckpointError(f"the input scale of {name} is not folded into its norm")
    return parts


def _fp8(layer: IntLinear, name: str) -> dict[str, Iterable[Array]]:
    scales = np.unique(layer.scales)
    if len(scales) != 1 or layer.input_scale is None:
        raise CheckpointError(
            f"no single scale for {name}", hint="quantize again with `edgekit quantize`"
        )
    entering = np.array([layer.input_scale], np.float32)
    return {
        "weight": [layer.codes.view(np.uint8)],
        "weight_scale": [scales.astype(np.float32)],
        "input_scale": [entering],
    }


def _token_ids(checkpoint: Checkpoint) -> dict[str, Any]:
    """Ids of special tokens, as the checkpoint's own `config.json` has them."""
    config = _read_json(checkpoint.path / CONFIG_FILE)
    return {name: config.get(name) for name in _TOKENS}


def _producer(checkpoint: Checkpoint) -> dict[str, Any]:
    """Which ModelOpt quantized it, as that wrote it; of what is not quantized, its form alone."""
    found = _read_json(checkpoint.path / QUANT_FILE) if checkpoint.is_quantized else {}
    producer = found.get("producer")
    return producer if isinstance(producer, dict) else {"name": "modelopt"}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise CheckpointError(f"unreadable {path}: {exc}") from exc
    return found


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n", encoding="utf-8")
