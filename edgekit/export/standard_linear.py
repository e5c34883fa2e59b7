"""Linear layers as DequantizeLinear -> MatMul, in the layouts that TensorRT-RTX takes.

INT4 weights are stored `[K, N]`, two output columns per byte, with fp16 scales `[K / group, N]`:
ModelOpt's bytes `[N / 2, K]` turned around. The others keep the checkpoint's `[N, K]` and meet a
Transpose, which both compilers fold: INT8 and FP8 with one fp16 scale per output channel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from edgekit.checkpoint import Checkpoint, TensorInfo, read_tensor
from edgekit.errors import CheckpointError
from edgekit.export.linear import Block
from edgekit.export.nodes import Graph
from edgekit.export.store import Array, to_float16
from edgekit.export.weights import IntLinear, read_float_rows, same_input, stack


class StandardLinears:
    """Writes linear layers into one graph."""

    def __init__(
        self, graph: Graph, checkpoint: Checkpoint, *, keeps_activations: bool = False
    ) -> None:
        self.graph = graph
        self.checkpoint = checkpoint
        self.keeps_activations = keeps_activations

    def apply(self, block: Block, name: str, members: list[str], x: str) -> str:
        """`x [B, T, K]` through `members` side by side, biases too -> `name [B, T, sum of N]`."""
        layers = [block.linears[m] for m in members]
        quantized = [layer for layer in layers if layer is not None]
        bias = self._bias(block, name, members)
        out = f"{name}.product" if bias else f"{name}.out"
        if not quantized:
            self.float_product(
                [self.checkpoint.tensors[f"{m}.weight"] for m in members], name, x, out
            )
        elif len(quantized) != len(layers) or not same_input(quantized):
            raise CheckpointError(
                f"layers of mixed precision in one product: {name}",
                hint="quantize again with `edgekit quantize`",
            )
        else:
            self.product(name, stack(quantized) if len(quantized) > 1 else quantized[0], x, out)
        return self.graph.node("Add", [out, bias], f"{name}.out") if bias else out

    def product(self, name: str, layer: IntLinear, x: str, out: str) -> None:
        """`x @ weights.T` of a quantized layer, input scales first."""
        graph = self.graph
        if layer.pre_quant_scale is not None:
            scale = graph.floats(f"{name}.pre_quant_scale", layer.pre_quant_scale)
            x = graph.node("Mul", [x, scale], f"{name}.scaled")
        if layer.bits == 4:
            weight = self._int4(name, layer)
        elif layer.codes.dtype == np.int8:
            codes = graph.store.add_array(f"{name}.int8", layer.codes)
            weight = self.per_channel(name, codes, layer.scales[:, 0])
        else:
            x = self._rounded(name, x, layer.input_scale)
            weight = self._fp8(name, layer)
        graph.node("MatMul", [x, weight], out)

    def float_product(self, infos: list[TensorInfo], name: str, x: str, out: str) -> None:
        """`x @ weights.T` of fp16 matrices with their outputs side by side."""
        weight = self.half(name, infos)
        turned = self.graph.node("Transpose", [weight], f"{name}.turned", perm=[1, 0])
        self.graph.node("MatMul", [x, turned], out)

    def half(self, name: str, infos: list[TensorInfo]) -> str:
        """Matrices of the same width, one below the other, as one fp16 initializer."""

        def rows() -> Iterable[Array]:
            for info in infos:
                for chunk in read_float_rows(info):
                    yield to_float16(chunk, info.name)

        height, width = sum(info.shape[0] for info in infos), infos[0].shape[1]
        return self.graph.weight(
            self.graph.store.add(f"{name}.weight", "float16", (height, width), rows)
        )

    def per_channel(self, name: str, codes: str, scales: NDArray[np.float32]) -> str:
        """Stored codes `[N, K]` and a scale for each row -> fp16 `[K, N]`."""
        graph = self.graph
        tensors = [graph.weight(codes), graph.floats(f"{name}.scales", scales)]
        whole = graph.node("DequantizeLinear", tensors, f"{name}.dequantized", axis=0)
        return graph.node("Transpose", [whole], f"{name}.turned", perm=[1, 0])

    def int4(
        self, name: str, shape: tuple[int, int], packed: Callable[[], Array], scales: Array
    ) -> str:
        """Bytes `[K, N / 2]` and scales `[K / group, N]` -> fp16 `[K, N]`; `shape` is (K, N)."""
        graph, (depth, width) = self.graph, shape
        stored = graph.store.add(f"{name}.bytes", "uint8", (depth, width // 2), lambda: [packed()])
        codes = graph.store.alias(f"{name}.int4", stored, shape, dtype="INT4")
        return graph.node(
            "DequantizeLinear",
            [graph.weight(codes), graph.floats(f"{name}.scales", scales)],
            f"{name}.dequantized",
            axis=0,
            block_size=depth // scales.shape[0],
        )

    def _int4(self, name: str, layer: IntLinear) -> str:
        rows, columns = layer.codes.shape
        if rows % 2:
            raise CheckpointError(
                f"{name} has an odd number of outputs: {rows}",
                hint="INT4 holds two of them in a byte: use `--precision int8`",
            )
        return self.int4(
            name,
            (columns, rows),
            lambda: pack_columns(layer.codes),
            np.ascontiguousarray(layer.scales.T),
        )

    def _fp8(self, name: str, layer: IntLinear) -> str:
        stored = self.graph.store.add_array(f"{name}.bytes", layer.codes.view(np.uint8))
        shape = (layer.codes.shape[0], layer.codes.shape[1])
        codes = self.graph.store.alias(f"{name}.fp8", stored, shape, dtype="FLOAT8E4M3FN")
        return self.per_channel(name, codes, layer.scales[:, 0])

    def _rounded(self, name: str, x: str, scale: float | None) -> str:
        """`x` as FP8 holds it, for a GEMM of two FP8 operands."""
        if scale is None or self.keeps_activations:
            return x
        graph = self.graph
        tensor = graph.floats(f"{name}.input_scale", np.array(scale, np.float32))
        codes = graph.node(
            "QuantizeLinear", [x, tensor], f"{name}.input_codes", output_dtype=_fp8_type()
        )
        return graph.node("DequantizeLinear", [codes, tensor], f"{name}.input")

    def _bias(self, block: Block, name: str, members: list[str]) -> str:
        parts = [
            read_tensor(info).astype(np.float32) * block.row_scales.get(m, np.float32(1))
            for m in members
            if (info := self.checkpoint.tensors.get(f"{m}.bias")) is not None
        ]
        return self.graph.floats(f"{name}.bias", np.concatenate(parts)) if parts else ""


def pack_columns(codes: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Codes `[N, K]` in -8..7 -> bytes `[K, N / 2]`: ONNX's INT4 `[K, N]`, low nibble = even N."""
    turned = np.ascontiguousarray(codes.T).view(np.uint8)
    return (turned[:, 0::2] & np.uint8(0x0F)) | (turned[:, 1::2] << np.uint8(4))


def _fp8_type() -> int:
    from onnx import TensorProto

    return int(TensorProto.FLOAT8E4M3FN)
