"""Embedding and head of the standard graph.

At 8 bits a table has one scale per row, of a token: as the embedding its rows are looked up and
multiplied, as the head the scale is that of an output channel. So a tied head shares codes and
scales with the embedding.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from edgekit.checkpoint import Checkpoint, TensorInfo, read_rows, read_tensor
from edgekit.errors import CheckpointError
from edgekit.export.nodes import Graph
from edgekit.export.standard_linear import StandardLinears
from edgekit.export.store import Array
from edgekit.export.weights import read_float_rows, round_to_int, row_chunks
from edgekit.profile import Storage

_EMBEDDING = "model.embed_tokens"
_HEAD = "lm_head"
_SCALE = f"{_HEAD}.weight_scale"
_FLOAT16 = 10
"""TensorProto.FLOAT16."""


def embedding_lookup(graph: Graph, checkpoint: Checkpoint, storage: Storage) -> str:
    """`input_ids [B, T]` -> hidden states `[B, T, H]`, fp16."""
    table = checkpoint.tensors[f"{_EMBEDDING}.weight"]
    if storage.embedding_bits == 16:
        weight = StandardLinears(graph, checkpoint).half(_EMBEDDING, [table])
        return graph.node("Gather", [weight, "input_ids"], "embedded", axis=0)
    codes, scales = _quantized(graph, _EMBEDDING, table, storage.embedding_bits)
    rows = graph.node("Gather", [graph.weight(codes), "input_ids"], "embedded.codes", axis=0)
    wide = graph.node("Cast", [rows], "embedded.wide", to=_FLOAT16)
    column = graph.store.alias(f"{scales}.column", scales, (table.shape[0], 1))
    factors = graph.node("Gather", [graph.weight(column), "input_ids"], "embedded.scales", axis=0)
    return graph.node("Mul", [wide, factors], "embedded")


def head(
    graph: Graph, checkpoint: Checkpoint, storage: Storage, linears: StandardLinears, hidden: str
) -> None:
    """Hidden states of the wanted positions `[B, n, H]` -> the output `logits [B, n, V]`, fp32."""
    name = _EMBEDDING if checkpoint.spec.has_tied_embeddings else _HEAD
    if _SCALE in checkpoint.tensors:
        weight = _calibrated(checkpoint, linears)
        graph.node("MatMul", [hidden, weight], "logits.fp16")
    elif storage.head_bits == 16:
        linears.float_product([checkpoint.tensors[f"{name}.weight"]], name, hidden, "logits.fp16")
    else:
        table = checkpoint.tensors[f"{name}.weight"]
        codes, scales = _quantized(graph, name, table, storage.head_bits)
        tensors = [graph.weight(codes), graph.weight(scales)]
        whole = graph.node("DequantizeLinear", tensors, f"{_HEAD}.dequantized", axis=0)
        turned = graph.node("Transpose", [whole], f"{_HEAD}.turned", perm=[1, 0])
        graph.node("MatMul", [hidden, turned], "logits.fp16")
    graph.node("Cast", ["logits.fp16"], "logits", to=1)
    graph.output("logits", "float32", ["batch", "wanted", checkpoint.spec.vocab_size])


def _calibrated(checkpoint: Checkpoint, linears: StandardLinears) -> str:
    """The head as ModelOpt quantized it: two rows in each byte, turned in pieces."""
    packed = checkpoint.tensors[f"{_HEAD}.weight"]
    columns = packed.shape[1]
    scales = read_tensor(checkpoint.tensors[_SCALE]).astype(np.float32)

    def turned() -> Array:
        out = np.empty((columns, packed.shape[0]), np.uint8)
        for start, stop in row_chunks(packed):
            out[:, start:stop] = read_rows(packed, start, stop).T
        return out

    shape = (columns, checkpoint.spec.vocab_size)
    return linears.int4(_HEAD, shape, turned, np.ascontiguousarray(scales.T))


def _quantized(graph: Graph, name: str, table: TensorInfo, bits: int) -> tuple[str, str]:
    """Names of the stored codes int8 `[V, H]` and scales fp16 `[V]`."""
    if bits != 8:
        raise CheckpointError(
            f"{table.name} can be stored at 8 or 16 bits here, not {bits}",
            hint="set `head_bits` and `embedding_bits` in the profile to 8 or 16",
        )
    rows, columns = table.shape
    found: list[Array] = []

    def chunks() -> Iterator[Array]:
        for block in read_float_rows(table):
            layer = round_to_int(block, 8, columns)
            found.append(layer.scales[:, 0].astype(np.float16))
            yield layer.codes

    codes = graph.store.add(f"{name}.int8", "int8", (rows, columns), chunks)
    return codes, graph.store.add(f"{codes}.scales", "float16", (rows,), lambda: found)
