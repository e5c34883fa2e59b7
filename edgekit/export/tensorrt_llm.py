"""Quantized checkpoint -> TensorRT-LLM checkpoint, for `trtllm-build` of TensorRT-LLM 1.2.

    out/
    ├── config.json         `PretrainedConfig` and `LLaMAConfig` of TensorRT-LLM
    └── rank0.safetensors   one GPU's tensors, in the order of the network (`tensorrt_llm_layout`)

The builder's own rounding to int8 takes amax / 128 as the scale of a channel and clips to 127
(`symmetric_quantize_last_axis_of_batched_matrix`), ModelOpt's amax / 127. So that it finds
ModelOpt's codes again, a code of 127 is written as 128 scales: it becomes the channel's largest
value, which makes the scale right, and is clipped back. A channel whose largest code is -127 alone
gets one weight that is a step too large.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.checkpoint import Checkpoint, TensorInfo, read_tensor
from edgekit.checkpoint.safetensors import DTYPE_BYTES, encode_header
from edgekit.errors import CheckpointError, storage_errors
from edgekit.export.cache import cache_scales
from edgekit.export.linear import Block, load_block
from edgekit.export.store import Array, to_float16
from edgekit.export.tensorrt_llm_layout import (
    KV_ALGOS,
    MEMBERS,
    Layout,
    checkpoint_config,
    tensor_layout,
)
from edgekit.export.weights import (
    Floats,
    IntLinear,
    read_float_rows,
    require_symmetric,
    same_input,
    stack,
)
from edgekit.profile import Storage
from edgekit.progress import Progress, no_progress

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "rank0.safetensors"


def export_tensorrt_llm_checkpoint(
    checkpoint: Checkpoint,
    storage: Storage,
    out: Path,
    *,
    context_tokens: int,
    kv_precision: str = "fp16",
    report: Progress = no_progress,
) -> None:
    """Write `config.json` and `rank0.safetensors` into the directory `out`.

    `context_tokens` is no property of such a checkpoint; the builder is told. Memory stays bounded
    by one layer. Raises `CheckpointError`, `StorageError`.
    """
    precision, group = precision_of(checkpoint)
    kv_algo = KV_ALGOS[kv_precision]
    layout = tensor_layout(checkpoint.spec, precision, group_size=group, kv_algo=kv_algo)
    config = checkpoint_config(checkpoint.spec, precision, group_size=group, kv_algo=kv_algo)
    with storage_errors(out):
        cache = None
        if kv_algo is not None:  # one scale for both
            cache = [max(pair) for pair in cache_scales(checkpoint, kv_algo)]
        tensors = _tensors(checkpoint, precision, cache, report)
        write_tensors(out / WEIGHTS_FILE, layout, tensors)
        text = json.dumps(config, indent=2, sort_keys=True)
        (out / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")


def precision_of(checkpoint: Checkpoint) -> tuple[str, int | None]:
    """What the checkpoint holds: the precision, and the group size of 4-bit weights."""
    require_symmetric(checkpoint)
    info = checkpoint.tensors["model.layers.0.mlp.down_proj.weight"]
    scale = checkpoint.tensors.get("model.layers.0.mlp.down_proj.weight_scale")
    if scale is None:
        return "fp16", None
    precision = {"U8": "int4_awq", "I8": "int8", "F8_E4M3": "fp8"}.get(info.dtype)
    if precision is None:
        raise CheckpointError(
            f"{info.name} has scales but type {info.dtype}",
            hint="quantize again with `edgekit quantize`",
        )
    return precision, info.shape[1] // scale.shape[1] if precision == "int4_awq" else None


def _tensors(
    checkpoint: Checkpoint, precision: str, cache: list[float] | None, report: Progress
) -> Iterator[tuple[str, Iterable[Array]]]:
    """Names and rows, in the order of the layout."""
    table = checkpoint.tensors["model.embed_tokens.weight"]
    yield "transformer.vocab_embedding.weight", half_rows(table)
    layers = checkpoint.spec.num_layers
    for index in range(layers):
        report("export", index, layers)
        source, name = f"model.layers.{index}", f"transformer.layers.{index}"
        block = load_block(checkpoint, source)
        for norm, target in (
            ("input_layernorm", "input_layernorm"),
            ("post_attention_layernorm", "post_layernorm"),
        ):
            yield f"{name}.{target}.weight", [norm_weight(checkpoint, f"{source}.{norm}", block)]
        if cache is not None:
            scale = np.array([cache[index]], np.float32)
            yield f"{name}.attention.kv_cache_scaling_factor", [scale]
        for layer, members in MEMBERS.items():
            parts = _linear(checkpoint, block, [f"{source}.{m}" for m in members], precision)
            for part, chunks in parts.items():
                yield f"{name}.{layer}.{part}", chunks
    report("export", layers, layers)
    yield "transformer.ln_f.weight", [norm_weight(checkpoint, "model.norm", None)]
    yield "lm_head.weight", half_rows(checkpoint.tensors.get("lm_head.weight", table))


def norm_weight(checkpoint: Checkpoint, name: str, block: Block | None) -> Array:
    """fp16 `[H]`, with what the block's layers gave it to take over."""
    weight = read_tensor(checkpoint.tensors[f"{name}.weight"]).astype(np.float32)
    if block is not None and name in block.norm_scales:
        weight = weight * block.norm_scales[name]
    return to_float16(weight, name)


def half_rows(info: TensorInfo) -> Iterator[Array]:
    """A floating-point matrix in fp16, chunk by chunk."""
    for rows in read_float_rows(info):
        yield to_float16(rows, info.name)


def _linear(
    checkpoint: Checkpoint, block: Block, members: list[str], precision: str
) -> dict[str, Iterable[Array]]:
    layers = [block.linears[m] for m in members]
    quantized = [layer for layer in layers if layer is not None]
    if precision == "fp16" and not quantized:
        infos = [checkpoint.tensors[f"{m}.weight"] for m in members]
        return {"weight": (rows for info in infos for rows in half_rows(info))}
    if len(quantized) != len(layers) or not same_input(quantized):
        raise CheckpointError(
            f"layers of mixed precision in one product: {', '.join(members)}",
            hint="quantize again with `edgekit quantize`",
        )
    layer = stack(quantized)
    if precision == "int8":
        return {"weight": [weights_for_rounding(layer, members[0])]}
    if precision == "fp8":
        return _fp8(layer, members)
    before = layer.pre_quant_scale
    ones = np.ones(layer.codes.shape[1], np.float32)
    return {
        "weight": [pack_int4(layer.codes)],
        "weights_scaling_factor": [to_float16(layer.scales, members[0])],
        "prequant_scaling_factor": [to_float16(ones if before is None else before, members[0])],
    }


def pack_int4(codes: Array) -> Array:
    """Codes `[N, K]` in -8..7 -> int8 `[N / 2, K]`, the even row in the low nibble."""
    low, high = codes[0::2].view(np.uint8) & 0x0F, codes[1::2].view(np.uint8) << 4
    packed: Array = (low | high).view(np.int8)
    return packed


def weights_for_rounding(layer: IntLinear, name: str) -> Array:
    """fp16 `[N, K]` that the builder rounds to the codes of `layer`; see the module's docstring."""
    codes = layer.codes.astype(np.float32)
    codes[layer.codes == 127] = 128
    lowest = layer.codes.argmin(axis=1)
    rows = np.flatnonzero(np.abs(codes).max(axis=1) < 128)
    rows = rows[layer.codes[rows, lowest[rows]] == -127]
    codes[rows, lowest[rows]] = -128
    return to_float16(codes * layer.scales, name)


def _fp8(layer: IntLinear, members: list[str]) -> dict[str, Iterable[Array]]:
    scales = np.unique(layer.scales)
    if len(scales) != 1 or layer.input_scale is None:
        raise CheckpointError(
            f"no single scale for {', '.join(members)}",
            hint="quantize again with this version's `edgekit quantize`, which makes them agree",
        )
    entering: Floats = np.array([layer.input_scale], np.float32)
    return {
        "weight": [layer.codes.view(np.uint8)],
        "weights_scaling_factor": [scales.astype(np.float32)],
        "activation_scaling_factor": [entering],
    }


def write_tensors(
    path: Path, layout: Layout, tensors: Iterable[tuple[str, Iterable[Array]]]
) -> None:
    """Write `tensors`, name and rows, which come in the order of `layout`.

    Raises `CheckpointError` unless the chunks of each fill its shape.
    """
    with path.open("wb") as file:
        file.write(
            encode_header(
                {name: shape for name, (_, shape) in layout.items()},
                {name: dtype for name, (dtype, _) in layout.items()},
            )
        )
        expected = iter(layout.items())
        for name, chunks in tensors:
            wanted, (dtype, shape) = next(expected)
            if name != wanted:
                raise ValueError(f"{name} comes where {wanted} belongs")
            _write_rows(file, name, dtype, shape, chunks)


def _write_rows(
    file: Any, name: str, dtype: str, shape: tuple[int, ...], chunks: Iterable[Array]
) -> None:
    written = 0
    for chunk in chunks:
        data = np.ascontiguousarray(chunk).reshape(-1).view(np.uint8).data
        file.write(data)
        written += len(data)
    expected = int(np.prod(shape, dtype=np.int64)) * DTYPE_BYTES[dtype]
    if written != expected:
        raise CheckpointError(f"{name} has {written} bytes, {expected} belong there")
