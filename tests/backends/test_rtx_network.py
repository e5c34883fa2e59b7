"""The network that TensorRT-RTX is given: operators, weights where they lie, and its numbers.

No card is here, so a small evaluator walks the layers of the real network in numpy, each as
TensorRT's documentation defines it, and is compared with ONNX Runtime on the graph.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from edgekit.backends.tensorrt_rtx.composed import look_up_bytes, rms_norm
from edgekit.backends.tensorrt_rtx.log import vendor_log
from edgekit.backends.tensorrt_rtx.network import NetworkWriter
from edgekit.errors import BackendError

trt = pytest.importorskip("tensorrt_rtx_bindings")

Array = NDArray[Any]
MakePath = Callable[..., Path]

CAPACITY = 256
PRECISIONS = ["fp16", "int8", "int4_awq", "fp8"]
STRONGLY_TYPED = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
DTYPES = {
    trt.float32: np.dtype(np.float32),
    trt.float16: np.dtype(np.float16),
    trt.int32: np.dtype(np.int32),
    trt.int64: np.dtype(np.int64),
    trt.bool: np.dtype(np.bool_),
    trt.fp8: np.dtype(ml_dtypes.float8_e4m3fn),
}
CLASSES = {
    "ACTIVATION": trt.IActivationLayer,
    "ATTENTION_INPUT": trt.IAttentionInputLayer,
    "CAST": trt.ICastLayer,
    "CONCATENATION": trt.IConcatenationLayer,
    "CONSTANT": trt.IConstantLayer,
    "DEQUANTIZE": trt.IDequantizeLayer,
    "ELEMENTWISE": trt.IElementWiseLayer,
    "GATHER": trt.IGatherLayer,
    "MATRIX_MULTIPLY": trt.IMatrixMultiplyLayer,
    "QUANTIZE": trt.IQuantizeLayer,
    "REDUCE": trt.IReduceLayer,
    "ROTARY_EMBEDDING": trt.IRotaryEmbeddingLayer,
    "SHUFFLE": trt.IShuffleLayer,
    "SLICE": trt.ISliceLayer,
    "UNARY": trt.IUnaryLayer,
}
"""The class that a layer is to Python once it is asked for by number."""


def kind_of(layer: Any) -> str:
    """Some layers have another `type` of their own."""
    kind: str = trt.ILayer.type.__get__(layer).name
    return kind


def layers(network: Any, *kinds: str) -> list[Any]:
    """All layers of the network, or those of some kinds."""
    found = []
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if not kinds or kind_of(layer) in kinds:
            layer.__class__ = CLASSES.get(kind_of(layer), layer.__class__)
            found.append(layer)
    return found


@dataclass
class Written:
    """A filled network, and what it lives on."""

    graph: Path
    builder: Any
    network: Any
    writer: NetworkWriter | None = None
    handed: list[tuple[Any, ...]] = field(default_factory=list)
    """Arguments of every `trt.Weights` that was made."""

    @property
    def model(self) -> onnx.ModelProto:
        return onnx.load(self.graph / "model.onnx", load_external_data=False)

    @property
    def counts(self) -> Counter[str]:
        return Counter(kind_of(layer) for layer in layers(self.network))


def empty(graph: Path) -> Written:
    builder = trt.Builder(vendor_log().logger)
    return Written(graph, builder, builder.create_network(STRONGLY_TYPED))


@pytest.fixture
def write(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Written]:
    """`write(graph, packs_queries=...)`: the network of a graph, for 256 tokens of context."""

    def make(graph: Path, *, packs_queries: bool = False) -> Written:
        written = empty(graph)
        weights = trt.Weights

        def record(*arguments: Any) -> Any:
            written.handed.append(arguments)
            return weights(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(trt, "Weights", record)
            written.writer = NetworkWriter(
                written.network,
                graph / "model.onnx",
                context_tokens=CAPACITY,
                packs_queries=packs_queries,
            )
            written.writer.write()
        return written

    return make


# the layers in numpy


class Evaluator:
    """Values of a network's tensors, by name, from those of its inputs."""

    def __init__(self, network: Any, feeds: Mapping[str, Array], graph: Path | None = None) -> None:
        self._values = dict(feeds)
        self._makers = {layer.get_output(0).name: layer for layer in layers(network)}
        self._graph = graph
        """Where constants of types that numpy has not are read, by their names."""

    def value(self, name: str) -> Array:
        if name not in self._values:
            layer = self._makers[name]
            given = [layer.get_input(i) for i in range(layer.num_inputs)]
            inputs = [None if tensor is None else self.value(tensor.name) for tensor in given]
            found = getattr(self, f"_{kind_of(layer).lower()}")(layer, *inputs)
            dtype = DTYPES.get(layer.get_output(0).dtype)
            self._values[name] = found if dtype is None else found.astype(dtype)
        return self._values[name]

    def _constant(self, layer: Any) -> Array:
        if isinstance(layer.weights, np.ndarray):
            return layer.weights.reshape(tuple(layer.shape))
        assert self._graph is not None
        model = onnx.load(self._graph / "model.onnx")
        (proto,) = (t for t in model.graph.initializer if t.name == layer.name)
        stored: Array = numpy_helper.to_array(proto).astype(np.float32)
        return stored

    def _gather(self, layer: Any, data: Array, index: Array) -> Array:
        return np.take(data, index, axis=layer.axis)

    def _elementwise(self, layer: Any, a: Array, b: Array) -> Array:
        assert a.ndim == b.ndim
        assert a.dtype == b.dtype
        operation = trt.ElementWiseOperation
        functions: dict[Any, Callable[[Array, Array], Array]] = {
            operation.SUM: np.add,
            operation.SUB: np.subtract,
            operation.PROD: np.multiply,
            operation.FLOOR_DIV: np.floor_divide,
            operation.GREATER: np.greater,
        }
        return functions[layer.op](a, b)

    def _unary(self, layer: Any, x: Array) -> Array:
        operation = trt.UnaryOperation
        functions: dict[Any, Callable[[Array], Array]] = {
            operation.NOT: np.logical_not,
            operation.SQRT: np.sqrt,
            operation.RECIP: np.reciprocal,
        }
        return functions[layer.op](x)

    def _activation(self, layer: Any, x: Array) -> Array:
        assert layer.type == trt.ActivationType.SIGMOID
        result: Array = 1 / (1 + np.exp(-x.astype(np.float32)))
        return result

    def _cast(self, layer: Any, x: Array) -> Array:
        return x

    def _reduce(self, layer: Any, x: Array) -> Array:
        assert layer.op == trt.ReduceOperation.AVG
        assert layer.keep_dims
        axes = tuple(axis for axis in range(x.ndim) if layer.axes >> axis & 1)
        mean: Array = x.mean(axis=axes, keepdims=True)
        return mean

    def _shuffle(self, layer: Any, x: Array) -> Array:
        x = x.transpose(tuple(layer.first_transpose)[: x.ndim])
        if layer.reshape_dims is not None:
            wanted = enumerate(layer.reshape_dims)
            x = x.reshape([x.shape[i] if size == 0 else size for i, size in wanted])
        assert tuple(layer.second_transpose)[: x.ndim] == tuple(range(x.ndim))
        return x

    def _concatenation(self, layer: Any, *parts: Array) -> Array:
        return np.concatenate(parts, axis=layer.axis)

    def _shape(self, layer: Any, x: Array) -> Array:
        return np.array(x.shape)

    def _slice(
        self, layer: Any, x: Array, start: Array | None = None, shape: Array | None = None
    ) -> Array:
        assert start is None
        sizes = tuple(layer.shape) if shape is None else tuple(shape)
        assert set(layer.stride) == {1}
        return x[tuple(slice(b, b + n) for b, n in zip(layer.start, sizes, strict=True))]

    def _dequantize(self, layer: Any, codes: Array, scale: Array) -> Array:
        if scale.ndim == 0:
            return codes.astype(np.float32) * scale
        if scale.ndim == 1:
            assert layer.axis == 0
            scale = scale[:, None]
        whole = np.repeat(scale.astype(np.float32), codes.shape[0] // scale.shape[0], axis=0)
        return codes.astype(np.float32) * whole

    def _quantize(self, layer: Any, x: Array, scale: Array) -> Array:
        ratio: Array = np.clip(x.astype(np.float32) / scale, -448, 448)
        return ratio

    def _matrix_multiply(self, layer: Any, a: Array, b: Array) -> Array:
        operation = trt.MatrixOperation
        assert layer.op0 == operation.NONE
        right = b.swapaxes(-1, -2) if layer.op1 == operation.TRANSPOSE else b
        product: Array = a.astype(np.float32) @ right.astype(np.float32)
        return product

    def _rotary_embedding(
        self, layer: Any, x: Array, cosines: Array, sines: Array, positions: Array
    ) -> Array:
        assert not layer.interleaved
        assert layer.rotary_embedding_dim == 0
        cos, sin = (t.astype(np.float32)[positions][:, None] for t in (cosines, sines))
        first, second = np.split(x.astype(np.float32), 2, axis=-1)
        return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)

    def _kv_cache_update(self, layer: Any, cache: Array, update: Array, places: Array) -> Array:
        result = cache.copy()
        for row, place in enumerate(places):
            result[row, :, place : place + update.shape[2]] = update[row]
        return result

    def _attention_input(self, layer: Any, *inputs: Array | None) -> Array:
        names = ("mask", "key_value_lengths")
        mask, lengths = (self.value(getattr(layer.attention, name).name) for name in names)
        query, key, value = (x.astype(np.float32) for x in inputs[:3] if x is not None)
        assert key.shape[1] == value.shape[1]
        key, value = (np.repeat(x, query.shape[1] // x.shape[1], axis=1) for x in (key, value))
        scores = query @ key.swapaxes(-1, -2)  # IAttention scales nothing
        held = np.arange(key.shape[2]) < lengths[:, None, None, None]
        assert mask.dtype == np.bool_
        weights = np.where(mask & held, np.exp(scores), 0)
        result: Array = weights / weights.sum(axis=-1, keepdims=True) @ value
        return result

    def _attention_output(self, layer: Any, x: Array) -> Array:
        return x


def feeds_of(graph: Path, seed: int = 0) -> dict[str, Array]:
    """Two slots that hold 5 and 200 tokens get three more; beyond these the cache is random too."""
    random = np.random.default_rng(seed)
    held = np.array([5, 200])
    feeds: dict[str, Array] = {
        "input_ids": random.integers(0, 384, (2, 3)),
        "position_ids": held[:, None] + np.arange(3),
        "write_indices": held,
        "kv_lengths": held + 3,
        "logits_index": np.array([1, 2]),
    }
    for value in onnx.load(graph / "model.onnx", load_external_data=False).graph.input:
        if value.name.startswith("past."):
            _, heads, _, size = (d.dim_value for d in value.type.tensor_type.shape.dim)
            feeds[value.name] = random.standard_normal((2, heads, CAPACITY, size)).astype(
                np.float16
            )
    return feeds


def by_onnx_runtime(graph: Path, feeds: Mapping[str, Array]) -> dict[str, Array]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    session = ort.InferenceSession(graph / "model.onnx", options, ["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def by_layers(written: Written, feeds: Mapping[str, Array]) -> dict[str, Array]:
    narrow = {n: x if n.startswith("past.") else x.astype(np.int32) for n, x in feeds.items()}
    evaluator = Evaluator(written.network, narrow, written.graph)
    outputs = (written.network.get_output(i) for i in range(written.network.num_outputs))
    return {tensor.name: evaluator.value(tensor.name) for tensor in outputs}


# activations round at 2^-11 = 5e-4, some thirty times on the way: a percent of their spread
TOLERANCE = 1e-2
# what lies between two FP8 numbers goes to either, a sixteenth apart, in four products on the way;
# the largest of 300 000 differences is five times the usual one of 3 percent
FP8_TOLERANCE = 0.25


def require_same_numbers(written: Written, tolerance: float = TOLERANCE) -> None:
    feeds = feeds_of(written.graph)
    found, expected = by_layers(written, feeds), by_onnx_runtime(written.graph, feeds)
    assert found.keys() == expected.keys()
    for name in expected:
        values = expected[name].astype(np.float32)
        error = np.abs(found[name].astype(np.float32) - values).max()
        assert error <= tolerance * values.std(), name


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("packs_queries", [False, True])
def test_the_network_computes_what_the_graph_computes(
    family: str, packs_queries: bool, make_tiny: MakePath, export_standard: MakePath,
    write: Callable[..., Written],
) -> None:  # fmt: skip
    graph = export_standard(make_tiny(family), context_tokens=CAPACITY)
    require_same_numbers(write(graph, packs_queries=packs_queries))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_quantized_network_computes_what_the_graph_computes(
    precision: str, rtx_graph: MakePath, write: Callable[..., Written]
) -> None:
    tolerance = FP8_TOLERANCE if precision == "fp8" else TOLERANCE
    require_same_numbers(write(rtx_graph(precision)), tolerance)


def test_query_heads_as_rows_of_their_kv_head_are_the_same_attention(
    make_tiny: MakePath, export_standard: MakePath, write: Callable[..., Written]
) -> None:
    graph = export_standard(make_tiny("llama"), context_tokens=CAPACITY)
    plain, packed = (
        by_layers(write(graph, packs_queries=packs), feeds_of(graph)) for packs in (False, True)
    )
    # the same sums in float32, rounded to fp16 at the same places
    np.testing.assert_allclose(packed["logits"], plain["logits"], rtol=0, atol=1e-2)


def test_packed_queries_have_the_documented_shapes(
    rtx_graph: MakePath, write: Callable[..., Written]
) -> None:
    # 9 query heads, 3 KV heads of 64: 3 x T rows for each KV head, and the mask three times
    for packs, query, factor in ((False, (-1, 9, -1, 64), 1), (True, (-1, 3, -1, 64), 3)):
        written = write(rtx_graph("fp16"), packs_queries=packs)
        evaluator = Evaluator(
            written.network,
            {n: x if n.startswith("past.") else x.astype(np.int32)
             for n, x in feeds_of(written.graph).items()},
        )  # fmt: skip
        for layer in layers(written.network, "ATTENTION_INPUT"):
            assert tuple(layer.get_input(0).shape) == query
            assert tuple(layer.get_input(1).shape) == (-1, 3, CAPACITY, 64)
            assert evaluator.value(layer.get_input(0).name).shape[2] == 3 * factor
            assert evaluator.value(layer.attention.mask.name).shape == (2, 1, 3 * factor, CAPACITY)


def constants_of(network: Any, kept: list[Array]) -> Callable[[Array], Any]:
    """What makes constants of a network, their memory in `kept`."""

    def constant(array: Array) -> Any:
        kept.append(array)
        return network.add_constant(array.shape, trt.Weights(array)).get_output(0)

    return constant


def test_rms_norm_adds_its_epsilon_to_the_mean_square(tmp_path: Path) -> None:
    written, kept = empty(tmp_path), list[Array]()
    constant = constants_of(written.network, kept)
    random = np.random.default_rng(0)
    # squares of 1e-6 beside an epsilon of 1e-6, and a mean that is not subtracted
    x = (1e-3 * (1 + 0.1 * random.standard_normal((2, 3, 64)))).astype(np.float16)
    weight = random.standard_normal((1, 1, 64)).astype(np.float16)
    given = written.network.add_input("x", trt.float16, (-1, -1, 64))
    layer = rms_norm(written.network, constant, given, constant(weight), 1e-6)
    found = Evaluator(written.network, {"x": x}).value(layer.get_output(0).name)
    wide = x.astype(np.float32)
    expected = wide / np.sqrt((wide**2).mean(axis=-1, keepdims=True) + 1e-6) * weight
    np.testing.assert_allclose(found, expected, rtol=2e-3)


def every_byte_in_every_place() -> NDArray[np.int8]:
    """`[5120, 4]`: all 256 values in each of the four places, between extreme neighbours."""
    rows = []
    for place in range(4):
        for neighbour in (-128, -1, 0, 1, 127):
            block = np.full((256, 4), neighbour, np.int8)
            block[:, place] = np.arange(-128, 128)
            rows.append(block)
    return np.concatenate(rows)


@pytest.mark.parametrize("columns", [4, 16])
def test_a_lookup_of_bytes_gives_every_byte_in_every_place(columns: int, tmp_path: Path) -> None:
    table = np.ascontiguousarray(every_byte_in_every_place().reshape(-1, columns))
    written, kept = empty(tmp_path), list[Array]()
    constant = constants_of(written.network, kept)
    index = written.network.add_input("ids", trt.int32, (-1, -1))
    rows = look_up_bytes(written.network, constant, table.ctypes.data, table.shape, index)
    assert rows.dtype == trt.int32
    # in another order, in two rows
    ids = np.random.default_rng(0).permutation(len(table)).astype(np.int32).reshape(2, -1)
    found = Evaluator(written.network, {"ids": ids}).value(rows.name)
    np.testing.assert_array_equal(found, table[ids])


def test_a_lookup_of_bytes_needs_whole_words(tmp_path: Path) -> None:
    network = empty(tmp_path).network
    index = network.add_input("ids", trt.int32, (-1, -1))
    with pytest.raises(BackendError, match="6 columns cannot be stored at 8 bits"):
        look_up_bytes(network, lambda array: array, 0, (10, 6), index)


# the operators and their tensors

COUNTERPARTS = {
    "Attention": "ATTENTION_INPUT",
    "DequantizeLinear": "DEQUANTIZE",
    "MatMul": "MATRIX_MULTIPLY",
    "QuantizeLinear": "QUANTIZE",
    "RMSNormalization": "REDUCE",
    "RotaryEmbedding": "ROTARY_EMBEDDING",
    "Sigmoid": "ACTIVATION",
    "TensorScatter": "KV_CACHE_UPDATE",
}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_operator_of_the_graph_is_in_the_network_once(
    precision: str, rtx_graph: MakePath, write: Callable[..., Written]
) -> None:
    written = write(rtx_graph(precision))
    nodes = Counter(node.op_type for node in written.model.graph.node)
    # two layers, each with 4 products, 2 rotations and 2 KV updates, and a head
    assert (nodes["Attention"], nodes["MatMul"], nodes["TensorScatter"]) == (2, 9, 4)
    for operator, kind in COUNTERPARTS.items():
        assert written.counts[kind] == nodes[operator], operator
        if kind not in ("REDUCE", "ATTENTION_INPUT"):
            names = {n.name for n in written.model.graph.node if n.op_type == operator}
            assert {layer.name for layer in layers(written.network, kind)} == names


@pytest.mark.parametrize("packs_queries", [False, True])
def test_inputs_and_outputs_are_those_of_the_graph_with_integers_of_32_bits(
    packs_queries: bool, rtx_graph: MakePath, write: Callable[..., Written]
) -> None:
    written = write(rtx_graph("fp16"), packs_queries=packs_queries)
    network, graph = written.network, written.model.graph
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    outputs = [network.get_output(i) for i in range(network.num_outputs)]
    assert [tensor.name for tensor in inputs] == [value.name for value in graph.input]
    assert [tensor.name for tensor in outputs] == [value.name for value in graph.output]
    cache = (trt.float16, (-1, 3, CAPACITY, 64))
    expected = {
        "input_ids": (trt.int32, (-1, -1)),
        "position_ids": (trt.int32, (-1, -1)),
        "write_indices": (trt.int32, (-1,)),
        "kv_lengths": (trt.int32, (-1,)),
        "logits_index": (trt.int32, (-1,)),
        "logits": (trt.float32, (-1, -1, 512)),
        **{
            f"{when}.{index}.{kind}": cache
            for when in ("past", "present")
            for index in (0, 1)
            for kind in ("key", "value")
        },
    }
    assert {t.name: (t.dtype, tuple(t.shape)) for t in (*inputs, *outputs)} == expected


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_weight_is_handed_over_where_it_lies_in_the_data_file(
    precision: str, rtx_graph: MakePath, write: Callable[..., Written]
) -> None:
    written = write(rtx_graph(precision))
    assert written.writer is not None
    begin = written.writer._data.ctypes.data
    places = {
        int(entry.value)
        for tensor in written.model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "offset"
    }
    by_reference = [arguments for arguments in written.handed if len(arguments) == 3]
    assert {address - begin for _, address, _ in by_reference} == places
    copied = [array for arguments in written.handed for array in arguments if len(arguments) == 1]
    # the mask's 256 column numbers are the largest
    assert max(array.nbytes for array in copied) == 4 * CAPACITY


@pytest.mark.parametrize("precision", PRECISIONS)
def test_no_weight_of_the_network_is_a_copy(
    precision: str, rtx_graph: MakePath, write: Callable[..., Written]
) -> None:
    written = write(rtx_graph(precision))
    assert written.writer is not None
    data = written.writer._data
    for layer in layers(written.network, "CONSTANT"):
        # numpy has no view of the others
        if isinstance(layer.weights, np.ndarray) and layer.weights.nbytes > 4 * CAPACITY:
            offset = layer.weights.ctypes.data - data.ctypes.data
            assert 0 <= offset <= data.nbytes - layer.weights.nbytes, layer.name


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_weight_is_handed_over_with_its_type_and_size(
    precision: str, rtx_graph: MakePath, write: Callable[..., Written]
) -> None:
    bits = {trt.float16: 16, trt.int8: 8, trt.int4: 4, trt.fp8: 8, trt.int32: 32}
    written = write(rtx_graph(precision))
    assert written.writer is not None
    begin = written.writer._data.ctypes.data
    lengths = {}
    for tensor in written.model.graph.initializer:
        place = {entry.key: entry.value for entry in tensor.external_data}
        if place:
            lengths[int(place["offset"])] = int(place["length"])
    for arguments in written.handed:
        if len(arguments) == 3:
            kind, address, count = arguments
            assert count * bits[kind] == 8 * lengths[address - begin]


@pytest.mark.parametrize("packs_queries", [False, True])
def test_every_attention_has_mask_and_lengths_and_must_be_one_kernel(
    packs_queries: bool, rtx_graph: MakePath, write: Callable[..., Written]
) -> None:
    written = write(rtx_graph("fp16"), packs_queries=packs_queries)
    found = [layer.attention for layer in layers(written.network, "ATTENTION_INPUT")]
    assert len(found) == 2
    for attention in found:
        assert attention.mask.dtype == trt.bool
        assert attention.key_value_lengths.name == "kv_lengths"
        assert attention.causal_kind == trt.CausalMaskKind.NONE
        assert attention.norm_op == trt.AttentionNormalizationOp.SOFTMAX
        assert not attention.decomposable


def parse(graph: Path, name: str) -> tuple[Written, list[str]]:
    """The same file by TensorRT's own parser, and what it has against it."""
    written = empty(graph)
    parser = trt.OnnxParser(written.network, vendor_log().logger)
    parser.parse_from_file(str(graph / name))
    return written, [parser.get_error(i).desc() for i in range(parser.num_errors)]


def test_tensorrt_s_own_parser_does_not_take_a_capacity_that_is_free(rtx_graph: MakePath) -> None:
    _, problems = parse(rtx_graph("fp16"), "model.onnx")
    assert "must have a static sequence length" in problems[0]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_tensorrt_s_own_parser_reads_the_same_network_but_drops_the_lengths(
    precision: str, rtx_graph: MakePath, write: Callable[..., Written]
) -> None:
    ours = write(rtx_graph(precision))
    model = ours.model
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == "capacity":
                dim.dim_value = CAPACITY
    onnx.save(model, ours.graph / "fixed.onnx")
    theirs, problems = parse(ours.graph, "fixed.onnx")
    assert problems == []
    for kind in COUNTERPARTS.values():
        assert theirs.counts[kind] == ours.counts[kind], kind
    # why it is not used: attention would look at all of the cache
    for layer in layers(theirs.network, "ATTENTION_INPUT"):
        assert layer.attention.key_value_lengths is None


def test_an_operator_that_is_not_known_is_refused(
    rtx_graph: MakePath, write: Callable[..., Written], tmp_path: Path
) -> None:
    model = onnx.load(rtx_graph("fp16") / "model.onnx", load_external_data=False)
    (node,) = (n for n in model.graph.node if n.name == "model.layers.1.mlp.sigmoid")
    node.op_type = "Erf"
    onnx.save(model, tmp_path / "model.onnx")
    (tmp_path / "model.data").symlink_to(rtx_graph("fp16") / "model.data")
    with pytest.raises(BackendError, match=r"no translation of Erf \(model.layers.1.mlp.sigmoid"):
        write(tmp_path)
