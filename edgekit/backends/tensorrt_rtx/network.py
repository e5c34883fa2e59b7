"""The decoder graph, operator by operator, as a network of TensorRT-RTX.

Its own ONNX parser takes the same file, once the cache has a size, but loses what an engine for
text lives on: it drops the lengths of the cache (attention would read all of it), keeps a tied head
twice, and copies every weight. Here weights are handed over where they lie, in the mapped data
file, and integers are 32 bits wide.

TensorRT broadcasts only between equal ranks, so constants get leading ones; what it has no layer
for is in `composed`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.backends.tensorrt_rtx.composed import look_up_bytes, rms_norm
from edgekit.errors import BackendError

if TYPE_CHECKING:
    import onnx

_INT8 = 3
"""TensorProto.INT8."""
_KEEP = 0
"""In a reshape: the dimension of the input at that place."""


class NetworkWriter:
    """Fills an empty `INetworkDefinition` from a graph file of `edgekit.export.standard`.

    The writer must outlive the compilation: TensorRT reads the weights from its memory.
    """

    def __init__(
        self, network: Any, graph: Path, *, context_tokens: int, packs_queries: bool = False
    ) -> None:
        import onnx
        import tensorrt_rtx_bindings as trt

        self._trt = trt
        self._network = network
        self._capacity = context_tokens
        self._packs_queries = packs_queries
        """Attention sees the query heads of a KV head as rows: see `compiler`."""
        self._model = onnx.load(graph, load_external_data=False)
        self._directory = graph.parent
        self._initializers = {tensor.name: tensor for tensor in self._model.graph.initializer}
        self._tensors: dict[str, Any] = {}
        self._turned: dict[str, str] = {}
        """Outputs of a Transpose of weights, and of what: the product reads them turned."""
        self._kept: list[Any] = []
        """Arrays and maps whose memory TensorRT reads."""

    def write(self) -> None:
        """Raises `BackendError` for an operator that is not in the table below."""
        graph = self._model.graph
        for value in graph.input:
            self._input(value)
        for node in graph.node:
            write = _OPERATORS.get(node.op_type)
            if write is None:
                raise BackendError(f"no translation of {node.op_type} ({node.name})")
            write(self, node)
        for value in graph.output:
            tensor = self._tensors[value.name]
            tensor.name = value.name
            self._network.mark_output(tensor)

    def _input(self, value: onnx.ValueInfoProto) -> None:
        dims = [
            self._capacity if d.dim_param == "capacity" else (d.dim_value or -1)
            for d in value.type.tensor_type.shape.dim
        ]
        dtype = self._trt.float16 if value.name.startswith("past.") else self._trt.int32
        self._tensors[value.name] = self._network.add_input(value.name, dtype, tuple(dims))

    # tensors

    def _tensor(self, name: str, *, rank: int = 0) -> Any:
        """A value by name; an initializer becomes a constant, with leading ones up to `rank`."""
        if name not in self._tensors:
            self._tensors[name] = self._stored(name)
        tensor = self._tensors[name]
        missing = rank - len(tensor.shape)
        if missing <= 0:
            return tensor
        key = f"{name} of rank {rank}"
        if key not in self._tensors:
            self._tensors[key] = self._reshaped(tensor, (*[1] * missing, *tensor.shape))
        return self._tensors[key]

    @cached_property
    def _data(self) -> np.memmap[Any, Any]:
        place = next(t for t in self._model.graph.initializer if t.external_data)
        return np.memmap(self._directory / _external(place)["location"], np.uint8, mode="r")

    def _stored(self, name: str) -> Any:
        import onnx

        proto = self._initializers[name]
        shape = tuple(proto.dims)
        if not proto.external_data:
            array = onnx.numpy_helper.to_array(proto)
            return self._constant(array.astype(np.int32) if array.dtype == np.int64 else array)
        address = self._data.ctypes.data + int(_external(proto)["offset"])
        dtype = {
            onnx.TensorProto.FLOAT16: self._trt.float16,
            onnx.TensorProto.INT8: self._trt.int8,
            onnx.TensorProto.INT4: self._trt.int4,
            onnx.TensorProto.FLOAT8E4M3FN: self._trt.fp8,
        }[proto.data_type]
        weights = self._trt.Weights(dtype, address, math.prod(shape))
        layer = self._network.add_constant(shape, weights)
        layer.name = name
        return layer.get_output(0)

    def _constant(self, array: np.ndarray[Any, Any]) -> Any:
        array = np.ascontiguousarray(array)
        self._kept.append(array)
        return self._network.add_constant(array.shape, self._trt.Weights(array)).get_output(0)

    def _set(self, node: onnx.NodeProto, layer: Any, output: int = 0) -> None:
        if layer is None:
            raise BackendError(f"TensorRT-RTX refuses {node.op_type} ({node.name})")
        layer.name = node.name
        self._tensors[node.output[output]] = layer.get_output(0)

    # operators

    def _gather(self, node: onnx.NodeProto) -> None:
        table = self._initializers.get(node.input[0])
        index = self._tensor(node.input[1])
        if table is not None and table.data_type == _INT8:
            address = self._data.ctypes.data + int(_external(table)["offset"])
            self._tensors[node.output[0]] = look_up_bytes(
                self._network, self._constant, address, tuple(table.dims), index
            )
            return
        data = self._tensor(node.input[0])
        self._set(node, self._network.add_gather(data, index, _attributes(node)["axis"]))

    def _elementwise(self, node: onnx.NodeProto) -> None:
        operation = self._trt.ElementWiseOperation
        kind = {"Add": operation.SUM, "Mul": operation.PROD}[node.op_type]
        rank = max(len(self._tensor(name).shape) for name in node.input)
        first, second = (self._tensor(name, rank=rank) for name in node.input)
        self._set(node, self._network.add_elementwise(first, second, kind))

    def _less_or_equal(self, node: onnx.NodeProto) -> None:
        rank = max(len(self._tensor(name).shape) for name in node.input)
        first, second = (self._tensor(name, rank=rank) for name in node.input)
        greater = self._trt.ElementWiseOperation.GREATER
        more = self._network.add_elementwise(first, second, greater).get_output(0)
        self._set(node, self._network.add_unary(more, self._trt.UnaryOperation.NOT))

    def _sigmoid(self, node: onnx.NodeProto) -> None:
        kind = self._trt.ActivationType.SIGMOID
        self._set(node, self._network.add_activation(self._tensor(node.input[0]), kind))

    def _cast(self, node: onnx.NodeProto) -> None:
        import onnx

        kinds = {
            onnx.TensorProto.FLOAT: self._trt.float32,
            onnx.TensorProto.FLOAT16: self._trt.float16,
        }
        kind = kinds[_attributes(node)["to"]]
        self._set(node, self._network.add_cast(self._tensor(node.input[0]), kind))

    def _rms_normalization(self, node: onnx.NodeProto) -> None:
        x = self._tensor(node.input[0])
        weight = self._tensor(node.input[1], rank=len(x.shape))
        epsilon = _attributes(node)["epsilon"]
        self._set(node, rms_norm(self._network, self._constant, x, weight, epsilon))

    def _dequantize(self, node: onnx.NodeProto) -> None:
        codes, scale = (self._tensor(name) for name in node.input)
        layer = self._network.add_dequantize(codes, scale, self._trt.float16)
        if len(scale.shape) == 1:
            layer.axis = _attributes(node)["axis"]
        # of blocks TensorRT reads the size from the shape of the scales
        self._set(node, layer)

    def _quantize(self, node: onnx.NodeProto) -> None:
        x, scale = (self._tensor(name) for name in node.input)
        self._set(node, self._network.add_quantize(x, scale, self._trt.fp8))

    def _mat_mul(self, node: onnx.NodeProto) -> None:
        operation = self._trt.MatrixOperation
        x, weight = self._tensor(node.input[0]), node.input[1]
        how = operation.TRANSPOSE if weight in self._turned else operation.NONE
        matrix = self._tensor(self._turned.get(weight, weight), rank=len(x.shape))
        self._set(node, self._network.add_matrix_multiply(x, operation.NONE, matrix, how))

    def _transpose(self, node: onnx.NodeProto) -> None:
        order = tuple(_attributes(node)["perm"])
        if order == (1, 0):
            self._turned[node.output[0]] = node.input[0]
            return
        layer = self._network.add_shuffle(self._tensor(node.input[0]))
        layer.first_transpose = order
        self._set(node, layer)

    def _reshape(self, node: onnx.NodeProto) -> None:
        import onnx

        dims = onnx.numpy_helper.to_array(self._initializers[node.input[1]])
        x = self._tensor(node.input[0])
        self._tensors[node.output[0]] = self._reshaped(x, tuple(int(d) for d in dims))

    def _split(self, node: onnx.NodeProto) -> None:
        """`[B, T, sum]` along its last axis; B and T are known when it runs."""
        import onnx

        x = self._tensor(node.input[0])
        start = 0
        sizes = onnx.numpy_helper.to_array(self._initializers[node.input[1]])
        for output, size in zip(node.output, sizes, strict=True):
            layer = self._network.add_slice(x, (0, 0, start), (1, 1, int(size)), (1, 1, 1))
            layer.set_input(2, self._rows_of(x, int(size)))
            layer.name = output
            self._tensors[output] = layer.get_output(0)
            start += int(size)

    def _rows_of(self, x: Any, width: int) -> Any:
        """The shape `[B, T, width]`, as a tensor."""
        key = f"{x.name} shape {width}"
        if key not in self._tensors:
            network, trt = self._network, self._trt
            shape = network.add_cast(network.add_shape(x).get_output(0), trt.int32).get_output(0)
            rows = network.add_slice(shape, (0,), (2,), (1,)).get_output(0)
            last = self._constant(np.array([width], np.int32))
            self._tensors[key] = network.add_concatenation([rows, last]).get_output(0)
        return self._tensors[key]

    def _rotary(self, node: onnx.NodeProto) -> None:
        x, cosines, sines, positions = (self._tensor(name) for name in node.input)
        layer = self._network.add_rotary_embedding(x, cosines, sines, False, 0)
        layer.set_input(3, positions)
        self._set(node, layer)

    def _tensor_scatter(self, node: onnx.NodeProto) -> None:
        cache, update, places = (self._tensor(name) for name in node.input)
        linear = self._trt.KVCacheMode.LINEAR
        self._set(node, self._network.add_kv_cache_update(cache, update, places, linear))

    def _attention(self, node: onnx.NodeProto) -> None:
        trt = self._trt
        query, key, value = (self._tensor(name) for name in node.input[:3])
        mask, lengths = node.input[3], node.input[6]
        heads, size = query.shape[1], query.shape[3]
        packed = heads // key.shape[1] if self._packs_queries else 1
        if packed > 1:
            # [B, Hq, T, D] -> [B, Hkv, Hq / Hkv * T, D]: the same bytes
            query = self._reshaped(query, (_KEEP, key.shape[1], -1, size))
        layer = self._network.add_attention_v2(
            query, key, value, trt.AttentionNormalizationOp.SOFTMAX, trt.CausalMaskKind.NONE
        )
        layer.mask = self._repeated(mask, packed)
        layer.key_value_lengths = self._tensor(lengths)
        layer.decomposable = False  # one kernel, or no engine
        layer.name = node.name
        if packed == 1:
            self._set(node, layer)
        else:
            self._tensors[node.output[0]] = self._reshaped(
                layer.get_output(0), (_KEEP, heads, -1, size)
            )

    def _reshaped(self, tensor: Any, dims: tuple[int, ...]) -> Any:
        layer = self._network.add_shuffle(tensor)
        layer.reshape_dims = dims
        return layer.get_output(0)

    def _repeated(self, mask: str, times: int) -> Any:
        """The mask for each of the query heads that share a KV head, one below the other."""
        if times == 1:
            return self._tensor(mask)
        key = f"{mask} x {times}"
        if key not in self._tensors:
            layer = self._network.add_concatenation([self._tensor(mask)] * times)
            layer.axis = 2
            self._tensors[key] = layer.get_output(0)
        return self._tensors[key]

    def _columns(self, node: onnx.NodeProto) -> None:
        """The mask's column numbers: the capacity is a number here."""
        self._tensors[node.output[0]] = self._constant(np.arange(self._capacity, dtype=np.int32))

    def _unsqueeze(self, node: onnx.NodeProto) -> None:
        """`position_ids [B, T]` -> `[B, 1, T, 1]`."""
        x = self._tensor(node.input[0])
        self._tensors[node.output[0]] = self._reshaped(x, (_KEEP, 1, -1, 1))

    def _nothing(self, node: onnx.NodeProto) -> None:
        """Part of what `_columns` replaces."""


_OPERATORS: dict[str, Callable[[NetworkWriter, Any], None]] = {
    "Add": NetworkWriter._elementwise,
    "Attention": NetworkWriter._attention,
    "Cast": NetworkWriter._cast,
    "DequantizeLinear": NetworkWriter._dequantize,
    "Gather": NetworkWriter._gather,
    "LessOrEqual": NetworkWriter._less_or_equal,
    "MatMul": NetworkWriter._mat_mul,
    "Mul": NetworkWriter._elementwise,
    "QuantizeLinear": NetworkWriter._quantize,
    "RMSNormalization": NetworkWriter._rms_normalization,
    "Range": NetworkWriter._columns,
    "Reshape": NetworkWriter._reshape,
    "RotaryEmbedding": NetworkWriter._rotary,
    "Shape": NetworkWriter._nothing,
    "Sigmoid": NetworkWriter._sigmoid,
    "Split": NetworkWriter._split,
    "Squeeze": NetworkWriter._nothing,
    "TensorScatter": NetworkWriter._tensor_scatter,
    "Transpose": NetworkWriter._transpose,
    "Unsqueeze": NetworkWriter._unsqueeze,
}


def _external(proto: onnx.TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in proto.external_data}


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    import onnx

    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
