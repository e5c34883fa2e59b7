"""The decoder network, written operator by operator from a checkpoint (quantized or not).

    input_ids            int64  [B, T]
    seqlens_k            int32  [B]     tokens in the cache after this call, minus one
    total_sequence_length int32 []      the largest of those, plus one
    logits_index         int64  [n]     positions within T whose logits are wanted
    past.<layer>.key     float  [B, Hkv, S, D]   the whole KV buffer, not just its used part
    past.<layer>.value
    present.<layer>.*    the same buffers, written in place
    logits               float32 [B, n, V]

What makes it fast: q/k/v are one matrix product, and so are gate and up; rotary embedding, cache
update and attention are one GroupQueryAttention; residual sums are fused with the next norm; the
last layer's MLP and the head run on the wanted positions only, so a prompt pays for one row of
logits. AWQ's and SmoothQuant's input scales are folded into the norm or into the rows of the layer
before where that is exact, and are one Mul where it is not.

`prompt.onnx`, where the profile's storage has `prompt_bits`, is the same network for tokens whose
logits nobody wants: it has the weights once more, in the layout of the kernels that are fastest on
many tokens, fills the same cache, and stops when the last layer's keys and values are in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from edgekit.checkpoint import Checkpoint, read_tensor
from edgekit.errors import storage_errors
from edgekit.export.linear import Block, LinearWriter, PromptLinearWriter, load_block
from edgekit.export.nodes import CONTRIB, ActivationType, Graph
from edgekit.export.rope import rope_tables
from edgekit.export.store import TensorStore
from edgekit.export.tables import embedding_lookup, head, head_input_scale
from edgekit.export.weights import Floats
from edgekit.profile import Storage
from edgekit.progress import Progress, no_progress

CPU_GRAPH = "model.onnx"
CUDA_GRAPH = "model_fp16.onnx"
PROMPT_GRAPH = "prompt.onnx"
DATA_FILE = "model.data"
_INPUTS: tuple[tuple[str, str, list[int | str]], ...] = (
    ("input_ids", "int64", ["batch", "tokens"]),
    ("seqlens_k", "int32", ["batch"]),
    ("total_sequence_length", "int32", []),
    ("logits_index", "int64", ["wanted"]),
)


def export_decoder(
    checkpoint: Checkpoint,
    storage: Storage,
    out: Path,
    *,
    context_tokens: int,
    report: Progress = no_progress,
) -> None:
    """Write the decoder graphs and their data file into the directory `out`.

    Memory stays bounded by the largest tensor, whatever the size of the model: weights are read,
    converted and appended one after the other. W8A8 layers have no CUDA operator, so such a
    checkpoint gets the CPU graph alone. Raises `CheckpointError`, `StorageError`.
    """
    spec = checkpoint.spec
    with storage_errors(out):
        store = TensorStore(out / DATA_FILE)
        try:
            writers = {CPU_GRAPH: _DecoderWriter(store, "float32", checkpoint, storage)}
            if not storage.int8_activations:
                writers[CUDA_GRAPH] = _DecoderWriter(store, "float16", checkpoint, storage)
            if storage.prompt_bits is not None:
                writers[PROMPT_GRAPH] = _PromptWriter(store, "float32", checkpoint, storage)
            for writer in writers.values():
                writer.begin(context_tokens)
            for index in range(spec.num_layers):
                report("export", index, spec.num_layers)
                block = load_block(checkpoint, f"model.layers.{index}")
                for writer in writers.values():
                    writer.layer(index, block)
            for name, writer in writers.items():
                writer.end()
                writer.graph.save(out / name, metadata={"context_tokens": str(context_tokens)})
            report("export", spec.num_layers, spec.num_layers)
        finally:
            store.close()


class _DecoderWriter:
    """Writes one graph, block after block."""

    inputs = _INPUTS
    linear_writer = LinearWriter

    def __init__(
        self,
        store: TensorStore,
        activation: ActivationType,
        checkpoint: Checkpoint,
        storage: Storage,
    ) -> None:
        self.graph = Graph(store, activation)
        self.checkpoint = checkpoint
        self.storage = storage
        self.spec = checkpoint.spec
        self.linears = self.linear_writer(self.graph, checkpoint, storage)
        self._residual = ""
        self._branch = ""
        """What the sublayer before adds to the residual stream; empty before the first."""

    def begin(self, context_tokens: int) -> None:
        """Inputs, rotary tables and the embedding."""
        for name, dtype, shape in self.inputs:
            self.graph.input(name, dtype, shape)
        cosines, sines = rope_tables(self.spec, context_tokens)
        self._rope = [self.graph.floats("rope.cos", cosines), self.graph.floats("rope.sin", sines)]
        self._residual = embedding_lookup(self.graph, self.checkpoint, self.storage)

    def layer(self, index: int, block: Block) -> None:
        """Attention and MLP of block `index`."""
        name = f"model.layers.{index}"
        attended = self._attention(
            index, block, self._norm(f"{name}.input_layernorm", block.norm_scales)
        )
        if index == self.spec.num_layers - 1:
            attended = self._wanted_positions(attended, f"{name}.wanted_attention")
            self._residual = self._wanted_positions(self._residual, f"{name}.wanted_residual")
        output = f"{name}.self_attn.o_proj"
        self._branch = self.linears.apply(block, output, [output], attended)
        normed = self._norm(f"{name}.post_attention_layernorm", block.norm_scales)
        self._branch = self._mlp(f"{name}.mlp", block, normed)

    def end(self) -> None:
        """The last norm and the head, on the wanted positions."""
        normed = self._norm("model.norm", head_input_scale(self.checkpoint))
        head(self.graph, self.checkpoint, self.storage, normed)

    def _wanted_positions(self, value: str, name: str) -> str:
        return self.graph.node("Gather", [value, "logits_index"], name, axis=1)

    def _norm(self, name: str, scales: Mapping[str, Floats]) -> str:
        """RMSNorm of the residual stream after the pending branch was added to it.

        Its weight takes over `scales[name]`, the input scale of the layers behind it.
        """
        weight = read_tensor(self.checkpoint.tensors[f"{name}.weight"]).astype(np.float32)
        if name in scales:
            weight = weight * scales[name]
        tensor, epsilon = self.graph.floats(f"{name}.weight", weight), self.spec.rms_norm_eps
        if not self._branch:
            return self.graph.node(
                "SimplifiedLayerNormalization",
                [self._residual, tensor],
                f"{name}.out",
                axis=-1,
                epsilon=epsilon,
                stash_type=1,
            )
        outputs = [f"{name}.out", "", "", f"{name}.sum"]
        self.graph.node(
            "SkipSimplifiedLayerNormalization",
            [self._residual, self._branch, tensor],
            outputs,
            domain=CONTRIB,
            epsilon=epsilon,
        )
        self._residual = outputs[3]
        return outputs[0]

    def _attention(self, index: int, block: Block, normed: str) -> str:
        spec, graph = self.spec, self.graph
        prefix = f"model.layers.{index}.self_attn"
        packed = self.linears.apply(
            block, f"{prefix}.qkv_proj", [f"{prefix}.{x}_proj" for x in "qkv"], normed
        )
        query, key, value = (
            self._normed_heads(prefix, packed) if spec.has_qk_norm else (packed, "", "")
        )
        cache_shape: list[int | str] = ["batch", spec.num_kv_heads, "capacity", spec.head_dim]
        past = [
            graph.input(f"past.{index}.{kind}", graph.activation, cache_shape)
            for kind in ("key", "value")
        ]
        present = [f"present.{index}.{kind}" for kind in ("key", "value")]
        out = graph.node(
            "GroupQueryAttention",
            [query, key, value, *past, "seqlens_k", "total_sequence_length", *self._rope],
            [f"{prefix}.out", *present],
            domain=CONTRIB,
            num_heads=spec.num_query_heads,
            kv_num_heads=spec.num_kv_heads,
            do_rotary=1,
            scale=spec.head_dim**-0.5,
        )
        for name in present:
            graph.output(name, graph.activation, cache_shape)
        return out

    def _normed_heads(self, prefix: str, packed: str) -> tuple[str, str, str]:
        """Split q/k/v and apply RMSNorm to every query and key head (qwen3)."""
        spec, graph = self.spec, self.graph
        sizes = graph.constant(
            f"{prefix}.qkv_sizes", np.array([spec.q_size, spec.kv_size, spec.kv_size], np.int64)
        )
        parts = [f"{prefix}.{x}" for x in "qkv"]
        graph.node("Split", [packed, sizes], parts, axis=-1)
        heads = graph.constant(
            f"{prefix}.head_shape", np.array([0, 0, -1, spec.head_dim], np.int64)
        )
        flat = graph.constant(f"{prefix}.flat_shape", np.array([0, 0, -1], np.int64))
        normed = []
        for x in "qk":
            weight = read_tensor(self.checkpoint.tensors[f"{prefix}.{x}_norm.weight"])
            tensor = graph.floats(f"{prefix}.{x}_norm.weight", weight.astype(np.float32))
            split = graph.node("Reshape", [f"{prefix}.{x}", heads], f"{prefix}.{x}_heads")
            out = graph.node(
                "SimplifiedLayerNormalization",
                [split, tensor],
                f"{prefix}.{x}_normed",
                axis=-1,
                epsilon=spec.rms_norm_eps,
                stash_type=1,
            )
            normed.append(graph.node("Reshape", [out, flat], f"{prefix}.{x}_flat"))
        return normed[0], normed[1], parts[2]

    def _mlp(self, prefix: str, block: Block, normed: str) -> str:
        graph, size = self.graph, self.spec.intermediate_size
        both = self.linears.apply(
            block, f"{prefix}.gate_up_proj", [f"{prefix}.gate_proj", f"{prefix}.up_proj"], normed
        )
        sizes = graph.constant(f"{prefix}.sizes", np.array([size, size], np.int64))
        gate, up = f"{prefix}.gate", f"{prefix}.up"
        graph.node("Split", [both, sizes], [gate, up], axis=-1)
        # QuickGelu with alpha 1 is SiLU, x * sigmoid(x), in one pass
        active = graph.node("QuickGelu", [gate], f"{prefix}.silu", domain=CONTRIB, alpha=1.0)
        product = graph.node("Mul", [active, up], f"{prefix}.product")
        down = f"{prefix}.down_proj"
        return self.linears.apply(block, down, [down], product)


class _PromptWriter(_DecoderWriter):
    """The graph that fills the cache, from W8A8 layers, and has no head."""

    inputs = tuple(row for row in _INPUTS if row[0] != "logits_index")
    linear_writer = PromptLinearWriter

    def layer(self, index: int, block: Block) -> None:
        """The same, but of the last block only what its cache needs."""
        if index < self.spec.num_layers - 1:
            super().layer(index, block)
            return
        normed = self._norm(f"model.layers.{index}.input_layernorm", block.norm_scales)
        self._attention(index, block, normed)

    def end(self) -> None:
        """Nothing: the cache is full."""
