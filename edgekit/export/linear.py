"""Linear layers of one transformer block: folding of input scales, and the operator for each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from edgekit.checkpoint import Checkpoint, read_tensor
from edgekit.errors import CheckpointError
from edgekit.export.nodes import CONTRIB, ActivationType, Graph
from edgekit.export.store import to_float16
from edgekit.export.weights import (
    Floats,
    IntLinear,
    pack_for_nbits,
    pack_zero_points,
    read_float_rows,
    read_linear,
    same_input,
    stack,
)
from edgekit.profile import Storage

_INT8_ACTIVATIONS = 4
"""MatMulNBits' `accuracy_level`: activations rounded to int8 per group, the fast kernels."""
_LARGEST_GROUP: Mapping[ActivationType, int] = MappingProxyType({"float32": 256, "float16": 128})
"""Of the kernels for one token: on a processor (MLAS, `qnbitgemm.cpp`), and on CUDA, which runs the
fp16 graph (ONNX Runtime, docs/contrib_ops/cuda/matmul_nbits.md, section 4.1)."""


_WEIGHT_ONLY = "down_proj"
"""Runs on 8-bit weights alone in a W8A8 engine: silu(gate) * up has outliers that one scale per
call cannot hold. On SmolLM2-135M the perplexity ratio is 1.025 this way, and 1.08 when only the six
layers with the largest outliers are kept back."""
_DEFAULT_GROUP = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """The linear layers of one transformer block after folding."""

    linears: Mapping[str, IntLinear | None]
    """Full layer name -> quantized weights; `None`: floating point, read when written."""
    norm_scales: Mapping[str, Floats]
    """Full norm name -> `[H]` factors that its weight takes over from the layers behind it."""
    row_scales: Mapping[str, Floats]
    """Full layer name -> `[N]` factors already in its weights, which its bias needs as well."""


def load_block(checkpoint: Checkpoint, name: str) -> Block:
    """Read the seven linear layers of block `name` and fold their input scales where exact.

    q/k/v and gate/up read one norm's output: equal scales move into that norm's weight. down_proj's
    moves into up_proj's rows, since silu(gate) * up is linear in up. o_proj's moves into v_proj's
    rows where all query heads of a KV head agree, since attention only mixes rows of v.
    """
    attention, mlp = f"{name}.self_attn", f"{name}.mlp"
    groups = {
        f"{name}.input_layernorm": [f"{attention}.{x}_proj" for x in "qkv"],
        f"{name}.post_attention_layernorm": [f"{mlp}.gate_proj", f"{mlp}.up_proj"],
    }
    others = [f"{attention}.o_proj", f"{mlp}.down_proj"]
    names = [*(n for group in groups.values() for n in group), *others]
    linears = {n: read_linear(checkpoint, n) for n in names}
    row_scales: dict[str, Floats] = {}
    _fold_into_rows(linears, row_scales, f"{mlp}.up_proj", f"{mlp}.down_proj", heads=None)
    spec = checkpoint.spec
    _fold_into_rows(
        linears,
        row_scales,
        f"{attention}.v_proj",
        f"{attention}.o_proj",
        heads=(spec.num_kv_heads, spec.num_query_heads // spec.num_kv_heads, spec.head_dim),
    )
    norm_scales = {}
    for norm, group in groups.items():
        members = [linears[n] for n in group]
        quantized = [m for m in members if m is not None]
        if not quantized or quantized[0].pre_quant_scale is None:
            continue
        if len(quantized) != len(members) or not same_input(quantized):
            raise CheckpointError(
                f"the layers behind {norm} do not share one pre_quant_scale",
                hint="quantize again with `edgekit quantize`, which makes them agree",
            )
        norm_scales[norm] = quantized[0].pre_quant_scale
        for n, member in zip(group, quantized, strict=True):
            linears[n] = _without_scale(member)
    return Block(linears=linears, norm_scales=norm_scales, row_scales=row_scales)


def _without_scale(layer: IntLinear) -> IntLinear:
    return replace(layer, pre_quant_scale=None)


def _fold_into_rows(
    linears: dict[str, IntLinear | None],
    row_scales: dict[str, Floats],
    before: str,
    behind: str,
    *,
    heads: tuple[int, int, int] | None,
) -> None:
    """Move `behind`'s input scale into the rows of `before`; `heads` is (Hkv, Hq / Hkv, D)."""
    producer, consumer = linears[before], linears[behind]
    if producer is None or consumer is None or consumer.pre_quant_scale is None:
        return
    factors = consumer.pre_quant_scale
    if heads is not None:
        per_head = factors.reshape(heads)
        if not np.array_equal(per_head, np.broadcast_to(per_head[:, :1], heads)):
            return
        factors = per_head[:, 0].reshape(-1)
    linears[before] = producer.scale_outputs(factors)
    row_scales[before] = factors
    linears[behind] = _without_scale(consumer)


class LinearWriter:
    """Writes linear layers as the operators that run them fastest."""

    def __init__(self, graph: Graph, checkpoint: Checkpoint, storage: Storage) -> None:
        self.graph = graph
        self.checkpoint = checkpoint
        self.storage = storage

    def apply(self, block: Block, name: str, members: list[str], x: str) -> str:
        """`x [B, T, K]` through `members` side by side, biases too -> `name [B, T, sum of N]`."""
        layers = [block.linears[m] for m in members]
        quantized = [layer for layer in layers if layer is not None]
        bias = self._bias(block, name, members)
        if not quantized:
            out = self._float(name, members, x, f"{name}.product" if bias else f"{name}.out")
        else:
            if len(quantized) != len(layers) or not same_input(quantized):
                raise CheckpointError(f"layers of mixed precision in one product: {name}")
            layer = stack(quantized) if len(quantized) > 1 else quantized[0]
            if layer.pre_quant_scale is not None:
                scale = self.graph.floats(f"{name}.pre_quant_scale", layer.pre_quant_scale)
                x = self.graph.node("Mul", [x, scale], f"{name}.scaled")
            out = f"{name}.product" if bias else f"{name}.out"
            self._product(name, layer, x, out)
        return self.graph.node("Add", [out, bias], f"{name}.out") if bias else out

    def _product(self, name: str, layer: IntLinear, x: str, out: str) -> None:
        if self.storage.int8_activations and not name.endswith(_WEIGHT_ONLY):
            dynamic_int8(self.graph, name, at_seven_bits(layer), x, out)
            return
        group = layer.group_size if layer.bits == 4 else self.storage.group_size
        if self.storage.int8_activations:
            group = self.storage.down_group_size
        nbits(self.graph, name, layer, x, out, group_size=group or _DEFAULT_GROUP)

    def _bias(self, block: Block, name: str, members: list[str]) -> str:
        parts = [
            read_tensor(info).astype(np.float32) * block.row_scales.get(m, np.float32(1))
            for m in members
            if (info := self.checkpoint.tensors.get(f"{m}.bias")) is not None
        ]
        if not parts:
            return ""
        return self.graph.floats(f"{name}.bias", np.concatenate(parts))

    def _float(self, name: str, members: list[str], x: str, out: str) -> str:
        infos = [self.checkpoint.tensors[f"{m}.weight"] for m in members]
        weight = self.graph.store.add(
            f"{name}.weight",
            "float16",
            (sum(i.shape[0] for i in infos), infos[0].shape[1]),
            lambda: (to_float16(rows, i.name) for i in infos for rows in read_float_rows(i)),
        )
        return float_product(self.graph, weight, x, out)


class PromptLinearWriter(LinearWriter):
    """Writes the same layers with one scale per channel and 8-bit activations: W8A8."""

    def _product(self, name: str, layer: IntLinear, x: str, out: str) -> None:
        if name.endswith(_WEIGHT_ONLY):
            super()._product(name, layer, x, out)  # the decoder's own, over the same bytes
        else:
            dynamic_int8(self.graph, f"{name}.prompt", round_channels(layer), x, out)


def at_seven_bits(layer: IntLinear) -> IntLinear:
    """A layer with 8-bit codes, halved."""
    codes = np.clip(np.rint(layer.codes / 2), -64, 63).astype(np.int8)
    return replace(layer, codes=codes, scales=2 * layer.scales)


def round_channels(layer: IntLinear) -> IntLinear:
    """The weights that a layer stands for, rounded once more: 7 bits, one scale per channel."""
    weights = layer.dequantize()
    scales = np.abs(weights).max(axis=1, keepdims=True) / 63
    scales[scales == 0] = 1
    codes = np.rint(weights / scales).astype(np.int8)
    return replace(layer, codes=codes, scales=scales, bits=8, zero_points=None)


def dynamic_int8(graph: Graph, name: str, layer: IntLinear, x: str, out: str) -> None:
    """W8A8: activations are quantized per call; weights are int8 with 7 bits used.

    With all 8 bits, pairs of products saturate in int16 on AVX2 without VNNI, silently. Around
    a zero point of 128 as uint8 they would not, but miss the fast kernels (AMX: a tenth of
    the speed). Halving the codes costs SmolLM2-135M 1.3 % of perplexity.
    """
    codes = np.ascontiguousarray(layer.codes.T)
    zero_points = np.zeros(codes.shape[1], np.int8)
    graph.node(
        "DynamicQuantizeMatMul",
        [
            x,
            graph.weight(graph.store.add_array(f"{name}.int8", codes)),
            graph.floats(f"{name}.scales", layer.scales[:, 0]),
            graph.weight(graph.store.add_array(f"{name}.zero", zero_points)),
        ],
        out,
        domain=CONTRIB,
    )


def float_product(graph: Graph, weight: str, x: str, out: str) -> str:
    """`x @ weight.T` for an fp16 `[N, K]` weight; on fp32 graphs it is widened when loaded."""
    graph.weight(weight)
    if graph.activation == "float32":
        weight = graph.node("Cast", [weight], f"{weight}.fp32", to=1)
    return graph.node("FusedMatMul", [x, weight], out, domain=CONTRIB, transB=1, transA=0)


def nbits(graph: Graph, name: str, layer: IntLinear, x: str, out: str, *, group_size: int) -> None:
    """MatMulNBits over `layer`, its codes, scales and zero points stored under `name`."""
    rows, columns = layer.codes.shape
    group_size = largest_group(graph, group_size)
    codes, scales = pack_for_nbits(layer, group_size)
    stored = graph.store.add_array(f"{name}.int{layer.bits}", codes)
    if graph.store[stored].num_bytes != codes.nbytes:  # other groups, filled up to whole ones
        stored = graph.store.add_array(f"{stored}.groups_of_{group_size}", codes)
    zero_points = None
    if layer.zero_points is not None:
        zero_points = np.repeat(layer.zero_points, layer.group_size // group_size, axis=1)
    nbits_node(
        graph,
        x,
        out,
        codes=stored,
        scales=graph.floats(f"{name}.scales", scales),
        zero_points=stored_zero_points(graph, name, zero_points),
        shape=(rows, columns),
        bits=layer.bits,
        group_size=group_size,
    )


def largest_group(graph: Graph, group_size: int) -> int:
    """That group, or the largest part of it that the kernels of this graph have: its scale and zero
    point are then there several times; its codes are the same bytes where it divides the inputs."""
    return min(group_size, _LARGEST_GROUP[graph.activation])


def stored_zero_points(graph: Graph, name: str, zero_points: NDArray[np.int8] | None) -> str:
    """The name under which zero points `[N, groups]` are stored, packed; empty: there are none."""
    if zero_points is None:
        return ""
    return graph.store.add_array(
        f"{name}.zero_points.{zero_points.shape[1]}", pack_zero_points(zero_points)
    )


def nbits_node(
    graph: Graph,
    x: str,
    out: str,
    *,
    codes: str,
    scales: str,
    zero_points: str = "",
    shape: tuple[int, int],
    bits: int,
    group_size: int,
) -> None:
    """The operator alone, over tensors that are stored already; `shape` is (N, K)."""
    blob = (shape[0], -(-shape[1] // group_size), group_size * bits // 8)
    if graph.store[codes].shape != blob:
        codes = graph.store.alias(f"{codes}.groups_of_{group_size}", codes, blob)
    graph.node(
        "MatMulNBits",
        [x, graph.weight(codes), scales, *([graph.weight(zero_points)] if zero_points else [])],
        out,
        domain=CONTRIB,
        N=shape[0],
        K=shape[1],
        bits=bits,
        block_size=group_size,
        accuracy_level=_INT8_ACTIVATIONS,
    )
