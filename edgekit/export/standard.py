"""The decoder as standard ONNX, operator set 24: what TensorRT-RTX takes, and ONNX Runtime proves.

    input_ids       int64   [B, T]
    position_ids    int64   [B, T]    tokens held before the call, plus 0 … T - 1
    write_indices   int64   [B]       tokens held before the call
    kv_lengths      int64   [B]       tokens held after it
    logits_index    int64   [n]       positions within T whose logits are wanted
    past.<layer>.key   float16 [B, Hkv, S, D]   the whole KV buffer
    past.<layer>.value
    present.<layer>.*  the same with the new tokens in place (TensorScatter)
    logits          float32 [B, n, V]

Activations are fp16. Attention gets its mask as values, which is the only form that ONNX Runtime
and TensorRT-RTX read alike: the latter's parser takes `is_causal` for another alignment and drops
the lengths, without a word.

The scale of attention, D^-0.5, lies in the rotary tables of the queries. Given to the operator it
would be multiplied into the whole K cache at every step; in the query's weights it would be rounded
with them, and lost where a norm follows them (qwen3).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from edgekit.checkpoint import Checkpoint, read_tensor
from edgekit.errors import storage_errors
from edgekit.export.linear import Block, load_block
from edgekit.export.nodes import Graph
from edgekit.export.rope import rope_tables
from edgekit.export.standard_linear import StandardLinears
from edgekit.export.standard_tables import embedding_lookup, head
from edgekit.export.store import TensorStore
from edgekit.export.tables import head_input_scale
from edgekit.export.weights import Floats, require_symmetric
from edgekit.profile import Storage
from edgekit.progress import Progress, no_progress

STANDARD_GRAPH = "model.onnx"
FLOAT_GRAPH = "model_float.onnx"
_DATA_FILE = "model.data"
_INPUTS: tuple[tuple[str, list[int | str]], ...] = (
    ("input_ids", ["batch", "tokens"]),
    ("position_ids", ["batch", "tokens"]),
    ("write_indices", ["batch"]),
    ("kv_lengths", ["batch"]),
    ("logits_index", ["wanted"]),
)


def export_standard_decoder(
    checkpoint: Checkpoint,
    storage: Storage,
    out: Path,
    *,
    context_tokens: int,
    report: Progress = no_progress,
) -> None:
    """Write `model.onnx` and `model.data` into the directory `out`.

    Where activations are rounded (FP8), `model_float.onnx` is the same network without that.
    Rounding turns a difference in the last bit into one of 6 %, and thirty layers of it into any
    other answer of the same quality: 1e-6 on the embedding moves ModelOpt's own simulation of
    SmolLM2-135M by 0.03 nats. So weights, scales and graph are proved without it.

    Memory stays bounded by the largest matrix. Raises `CheckpointError`, `StorageError`.
    """
    require_symmetric(checkpoint)
    with storage_errors(out):
        store = TensorStore(out / _DATA_FILE)
        try:
            writers = {STANDARD_GRAPH: _StandardWriter(store, checkpoint, storage)}
            if rounds_activations(checkpoint):
                float_writer = _StandardWriter(store, checkpoint, storage, keeps_activations=True)
                writers[FLOAT_GRAPH] = float_writer
            for writer in writers.values():
                writer.begin(context_tokens)
            for index in range(checkpoint.spec.num_layers):
                report("export", index, checkpoint.spec.num_layers)
                block = load_block(checkpoint, f"model.layers.{index}")
                for writer in writers.values():
                    writer.layer(index, block)
            for name, writer in writers.items():
                writer.end()
                writer.graph.save(out / name, metadata={"context_tokens": str(context_tokens)})
            report("export", checkpoint.spec.num_layers, checkpoint.spec.num_layers)
        finally:
            store.close()


def rounds_activations(checkpoint: Checkpoint) -> bool:
    """Whether a layer of the checkpoint says how its input is to be rounded."""
    return any(name.endswith(".input_scale") for name in checkpoint.tensors)


class _StandardWriter:
    """Writes the graph, block after block."""

    def __init__(
        self,
        store: TensorStore,
        checkpoint: Checkpoint,
        storage: Storage,
        *,
        keeps_activations: bool = False,
    ) -> None:
        self.graph = Graph(store, "float16", opset=24)
        self.checkpoint = checkpoint
        self.storage = storage
        self.spec = checkpoint.spec
        self.linears = StandardLinears(self.graph, checkpoint, keeps_activations=keeps_activations)
        self._residual = ""

    def begin(self, context_tokens: int) -> None:
        """Inputs, rotary tables, mask and the embedding."""
        graph, spec = self.graph, self.spec
        for name, shape in _INPUTS:
            graph.input(name, "int64", shape)
        self._cache_shape: list[int | str] = ["batch", spec.num_kv_heads, "capacity", spec.head_dim]
        cosines, sines = rope_tables(spec, context_tokens)
        scale = np.float32(spec.head_dim**-0.5)
        self._rope = {
            "k": [graph.floats("rope.cos", cosines), graph.floats("rope.sin", sines)],
            "q": [
                graph.floats("rope.cos_scaled", cosines * scale),
                graph.floats("rope.sin_scaled", sines * scale),
            ],
        }
        self._residual = embedding_lookup(graph, self.checkpoint, self.storage)
        self._declare_cache()
        self._mask = self._visible()

    def layer(self, index: int, block: Block) -> None:
        """Attention and MLP of block `index`."""
        name = f"model.layers.{index}"
        normed = self._norm(f"{name}.input_layernorm", block.norm_scales)
        attended = self._attention(index, block, normed)
        if index == self.spec.num_layers - 1:
            attended = self._wanted_positions(attended, f"{name}.wanted_attention")
            self._residual = self._wanted_positions(self._residual, f"{name}.wanted_residual")
        output = f"{name}.self_attn.o_proj"
        self._add(f"{name}.attended", self.linears.apply(block, output, [output], attended))
        normed = self._norm(f"{name}.post_attention_layernorm", block.norm_scales)
        self._add(f"{name}.sum", self._mlp(f"{name}.mlp", block, normed))

    def end(self) -> None:
        """The last norm and the head, on the wanted positions."""
        normed = self._norm("model.norm", head_input_scale(self.checkpoint))
        head(self.graph, self.checkpoint, self.storage, self.linears, normed)

    def _declare_cache(self) -> None:
        for index in range(self.spec.num_layers):
            for kind in ("key", "value"):
                self.graph.input(f"past.{index}.{kind}", "float16", self._cache_shape)

    def _visible(self) -> str:
        """`[B, 1, T, S]`, true where a position may be looked at: up to the query's own."""
        graph = self.graph
        zero = graph.constant("mask.zero", np.array(0, np.int64))
        one = graph.constant("mask.one", np.array(1, np.int64))
        axes = graph.constant("mask.axes", np.array([1, 3], np.int64))
        first = graph.constant("mask.first", np.array([0], np.int64))
        rows = graph.node("Shape", ["past.0.key"], "mask.rows", start=2, end=3)
        count = graph.node("Squeeze", [rows, first], "mask.count")
        columns = graph.node("Range", [zero, count, one], "mask.columns")
        queries = graph.node("Unsqueeze", ["position_ids", axes], "mask.queries")
        return graph.node("LessOrEqual", [columns, queries], "mask")

    def _wanted_positions(self, value: str, name: str) -> str:
        return self.graph.node("Gather", [value, "logits_index"], name, axis=1)

    def _add(self, name: str, branch: str) -> None:
        self._residual = self.graph.node("Add", [self._residual, branch], name)

    def _norm(self, name: str, scales: Mapping[str, Floats]) -> str:
        """RMSNorm of the residual stream; its weight takes over `scales[name]`."""
        weight = read_tensor(self.checkpoint.tensors[f"{name}.weight"]).astype(np.float32)
        if name in scales:
            weight = weight * scales[name]
        return self._rms(self._residual, self.graph.floats(f"{name}.weight", weight), f"{name}.out")

    def _rms(self, x: str, weight: str, out: str) -> str:
        return self.graph.node(
            "RMSNormalization",
            [x, weight],
            out,
            axis=-1,
            epsilon=self.spec.rms_norm_eps,
            stash_type=1,
        )

    def _attention(self, index: int, block: Block, normed: str) -> str:
        spec, graph = self.spec, self.graph
        prefix = f"model.layers.{index}.self_attn"
        packed = self.linears.apply(
            block, f"{prefix}.qkv_proj", [f"{prefix}.{x}_proj" for x in "qkv"], normed
        )
        sizes = graph.constant(
            f"{prefix}.qkv_sizes", np.array([spec.q_size, spec.kv_size, spec.kv_size], np.int64)
        )
        graph.node("Split", [packed, sizes], [f"{prefix}.{x}" for x in "qkv"], axis=-1)
        query, key, value = (self._heads(prefix, x) for x in "qkv")
        present = []
        for kind, new in (("key", key), ("value", value)):
            name = f"present.{index}.{kind}"
            present.append(
                graph.node(
                    "TensorScatter", [f"past.{index}.{kind}", new, "write_indices"], name, axis=2
                )
            )
            graph.output(name, "float16", self._cache_shape)
        heads = graph.node(
            "Attention",
            [query, *present, self._mask, "", "", "kv_lengths"],
            f"{prefix}.heads",
            scale=1.0,
        )
        merged = graph.node("Transpose", [heads], f"{prefix}.merged", perm=[0, 2, 1, 3])
        flat = graph.constant(f"{prefix}.flat_shape", np.array([0, 0, spec.q_size], np.int64))
        return graph.node("Reshape", [merged, flat], f"{prefix}.out")

    def _heads(self, prefix: str, which: str) -> str:
        """`[B, T, n * D]` -> `[B, n, T, D]`, q and k normed (qwen3) and rotated."""
        graph, spec = self.graph, self.spec
        count = spec.num_query_heads if which == "q" else spec.num_kv_heads
        name = f"{prefix}.{which}"
        shape = graph.constant(f"{name}_shape", np.array([0, 0, count, spec.head_dim], np.int64))
        heads = graph.node("Reshape", [name, shape], f"{name}_heads")
        if spec.has_qk_norm and which != "v":
            weight = read_tensor(self.checkpoint.tensors[f"{prefix}.{which}_norm.weight"])
            tensor = graph.floats(f"{prefix}.{which}_norm.weight", weight.astype(np.float32))
            heads = self._rms(heads, tensor, f"{name}_normed")
        heads = graph.node("Transpose", [heads], f"{name}_turned", perm=[0, 2, 1, 3])
        if which == "v":
            return heads
        return graph.node(
            "RotaryEmbedding", [heads, *self._rope[which], "position_ids"], f"{name}_rotated"
        )

    def _mlp(self, prefix: str, block: Block, normed: str) -> str:
        graph, size = self.graph, self.spec.intermediate_size
        both = self.linears.apply(
            block, f"{prefix}.gate_up_proj", [f"{prefix}.gate_proj", f"{prefix}.up_proj"], normed
        )
        sizes = graph.constant(f"{prefix}.sizes", np.array([size, size], np.int64))
        gate, up = f"{prefix}.gate", f"{prefix}.up"
        graph.node("Split", [both, sizes], [gate, up], axis=-1)
        active = graph.node("Sigmoid", [gate], f"{prefix}.sigmoid")
        active = graph.node("Mul", [gate, active], f"{prefix}.silu")
        product = graph.node("Mul", [active, up], f"{prefix}.product")
        down = f"{prefix}.down_proj"
        return self.linears.apply(block, down, [down], product)
