"""The two tables at the ends of a decoder: token embedding and head.

Either may be quantized to 4 or 8 bits by rounding to nearest; a head that ModelOpt quantized stays
as it is. Where the head is tied to the embedding and both have the same bits, the codes are stored
once and used twice, under two shapes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from edgekit.checkpoint import Checkpoint, TensorInfo, read_rows, read_tensor
from edgekit.errors import CheckpointError
from edgekit.export.linear import float_product, largest_group, nbits_node, stored_zero_points
from edgekit.export.nodes import CONTRIB, Graph
from edgekit.export.store import Array, to_float16
from edgekit.export.weights import (
    Floats,
    IntLinear,
    pack_for_nbits,
    read_float_rows,
    read_zero_points,
    round_to_int,
    row_chunks,
    unpack_int4,
)
from edgekit.profile import Storage

_EMBEDDING = "model.embed_tokens"
_HEAD = "lm_head"
_SCALE = f"{_HEAD}.weight_scale"


def embedding_lookup(graph: Graph, checkpoint: Checkpoint, storage: Storage) -> str:
    """`input_ids [B, T]` -> hidden states `[B, T, H]` in the graph's activation type."""
    table = checkpoint.tensors[f"{_EMBEDDING}.weight"]
    bits = storage.embedding_bits
    if bits in (4, 8):
        group = _group(table, storage.head_group_size)
        codes, scales = _quantized(graph, _EMBEDDING, table, bits, group)
        size = table.shape[1]
        flat = graph.store.alias(f"{codes}.rows", codes, (table.shape[0], size * bits // 8))
        return graph.node(
            "GatherBlockQuantized",
            [graph.weight(flat), "input_ids", scales],
            "embedded",
            domain=CONTRIB,
            bits=bits,
            block_size=group,
            gather_axis=0,
            quantize_axis=1,
        )
    weight = graph.weight(_half(graph, _EMBEDDING, table))
    if graph.activation == "float16":
        return graph.node("Gather", [weight, "input_ids"], "embedded", axis=0)
    rows = graph.node("Gather", [weight, "input_ids"], "embedded.fp16", axis=0)
    return graph.node("Cast", [rows], "embedded", to=1)


def head(graph: Graph, checkpoint: Checkpoint, storage: Storage, hidden: str) -> None:
    """Hidden states of the wanted positions `[B, n, H]` -> the output `logits [B, n, V]`, fp32."""
    if _SCALE in checkpoint.tensors:
        _calibrated_head(graph, checkpoint, hidden)
        return
    is_tied = checkpoint.spec.has_tied_embeddings
    name = _EMBEDDING if is_tied else _HEAD
    table = checkpoint.tensors[f"{name}.weight"]
    out = _logits_name(graph)
    if storage.head_bits in (4, 8):
        bits, group = storage.head_bits, _group(table, storage.head_group_size)
        codes, scales = _quantized(graph, name, table, bits, group)
        nbits_node(
            graph,
            hidden,
            out,
            codes=codes,
            scales=scales,
            shape=(table.shape[0], table.shape[1]),
            bits=bits,
            group_size=group,
        )
    else:
        float_product(graph, _half(graph, name, table), hidden, out)
    _finish(graph, out, checkpoint.spec.vocab_size)


def head_input_scale(checkpoint: Checkpoint) -> dict[str, Floats]:
    """What the last norm's weight takes over from the head: `{"model.norm": [H]}`, or nothing."""
    scale = checkpoint.tensors.get(f"{_HEAD}.pre_quant_scale")
    return {} if scale is None else {"model.norm": read_tensor(scale).astype(np.float32)}


def _calibrated_head(graph: Graph, checkpoint: Checkpoint, hidden: str) -> None:
    """The head as ModelOpt quantized it: repacked chunk by chunk, for it is the largest matrix."""
    packed, scales = checkpoint.tensors[f"{_HEAD}.weight"], checkpoint.tensors[_SCALE]
    rows, columns = checkpoint.spec.vocab_size, checkpoint.spec.hidden_size
    groups = scales.shape[1]
    group = columns // groups
    zero_points = read_zero_points(checkpoint, _HEAD, scales.shape)

    def chunks() -> Iterator[Array]:
        for first, last in row_chunks(packed):
            codes = unpack_int4(read_rows(packed, first, last))
            layer = IntLinear(
                codes=codes,
                scales=np.ones((len(codes), groups), np.float32),
                bits=4,
                pre_quant_scale=None,
            )
            yield pack_for_nbits(layer, group)[0]

    codes = graph.store.add(f"{_HEAD}.int4", "uint8", (rows, groups, group // 2), chunks)
    out = _logits_name(graph)
    part = largest_group(graph, group)
    all_scales = np.repeat(read_tensor(scales).astype(np.float32), group // part, axis=1)
    if zero_points is not None:
        zero_points = np.repeat(zero_points, group // part, axis=1)
    nbits_node(
        graph,
        hidden,
        out,
        codes=codes,
        scales=graph.floats(f"{_HEAD}.scales", all_scales),
        zero_points=stored_zero_points(graph, _HEAD, zero_points),
        shape=(rows, columns),
        bits=4,
        group_size=part,
    )
    _finish(graph, out, rows)


def _logits_name(graph: Graph) -> str:
    return "logits" if graph.activation == "float32" else "logits.fp16"


def _finish(graph: Graph, logits: str, vocab_size: int) -> None:
    if logits != "logits":
        graph.node("Cast", [logits], "logits", to=1)
    graph.output("logits", "float32", ["batch", "wanted", vocab_size])


def _group(table: TensorInfo, wanted: int | None) -> int:
    for group in (wanted or 32, 32, 16):
        if table.shape[1] % group == 0:
            return group
    raise CheckpointError(
        f"{table.name} cannot be quantized: its width is not a multiple of 16: {table.shape[1]}"
    )


def _half(graph: Graph, name: str, table: TensorInfo) -> str:
    return graph.store.add(
        f"{name}.weight",
        "float16",
        (table.shape[0], table.shape[1]),
        lambda: (to_float16(rows, table.name) for rows in read_float_rows(table)),
    )


def _quantized(
    graph: Graph, name: str, table: TensorInfo, bits: int, group: int
) -> tuple[str, str]:
    """Names of the stored codes `[V, H / g, g * bits / 8]` and scales `[V, H / g]`."""
    rows, columns = table.shape
    all_scales: list[Array] = []

    def chunks() -> Iterator[Array]:
        for block in read_float_rows(table):
            codes, scales = pack_for_nbits(round_to_int(block, bits, group), group)
            all_scales.append(scales)
            yield codes

    codes = graph.store.add(
        f"{name}.int{bits}", "uint8", (rows, columns // group, group * bits // 8), chunks
    )
    key = f"{codes}.scales"
    if graph.activation == "float32":
        return codes, graph.weight(
            graph.store.add(key, "float32", (rows, columns // group), lambda: all_scales)
        )
    # the fp16 graph is written after the fp32 one, from the same rounding
    halves = (
        round_to_int(block, bits, group).scales.astype(np.float16)
        for block in read_float_rows(table)
    )
    return codes, graph.weight(
        graph.store.add(f"{key}.fp16", "float16", (rows, columns // group), lambda: halves)
    )
