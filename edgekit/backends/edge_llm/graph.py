"""An exported ONNX graph, read without its weights: is what should be quantized quantized?

Every product with a stored matrix is looked at, whatever it is called: where its matrix comes from
(through transposes and dequantization), in which type it is stored, with which scales, and whether
what enters was rounded. Together they must be all the weights of the model's linear layers; a
product with an FP16 matrix beside them is one that fell back. The head stays FP16, and the layers
that do by rule (`formats.layer_precision`): all their weights, in matrices of their sizes.

    int4_awq   trt_edgellm::Int4GroupwiseGemmPlugin(V2)(x, codes, scales)
    int8_sq    MatMul(DequantizeLinear(QuantizeLinear(x)), DequantizeLinear(int8, scales))
    fp8        the same with E4M3
    nvfp4      the same with TRT_FP4DynamicQuantize and two scales
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from edgekit.backends.edge_llm.formats import GROUP, layer_precision, linear_layers
from edgekit.checkpoint.read import read_json
from edgekit.errors import BackendError, MissingBackendError
from edgekit.model import ModelSpec
from edgekit.units import join_words

MODEL_FILE, CONFIG_FILE = "model.onnx", "config.json"
_PRODUCTS = ("MatMul", "Gemm")
_INT4 = ("Int4GroupwiseGemmPlugin", "Int4GroupwiseGemmPluginV2")
_SAME = ("Transpose", "Cast", "Identity", "Reshape")
"""Nodes that change a matrix's form alone."""
_DEQUANTIZE = "DequantizeLinear"
_ROUNDS = ("QuantizeLinear", "TRT_FP4DynamicQuantize")
# types as ONNX numbers them (onnx.proto, TensorProto.DataType)
_INT8, _FLOAT16, _E4M3, _E2M1 = 3, 10, 17, 23


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """How a product of one precision looks."""

    types: tuple[int, ...]
    """Of its stored matrix."""
    scales: int
    rounds: bool
    """What enters is rounded."""


_WANTED: Mapping[str, _Wanted] = MappingProxyType(
    {
        "fp16": _Wanted(types=(_FLOAT16,), scales=0, rounds=False),
        "int8_sq": _Wanted(types=(_INT8,), scales=1, rounds=True),
        "fp8": _Wanted(types=(_E4M3,), scales=1, rounds=True),
        "nvfp4": _Wanted(types=(_E2M1,), scales=2, rounds=True),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Matrix:
    """A stored operand."""

    name: str
    type: int
    shape: tuple[int, ...]
    scales: tuple[str, ...] = ()


@dataclass(slots=True)
class _Graph:
    """Nodes by what they give, stored tensors by name."""

    nodes: list[Any]
    makers: dict[str, Any] = field(default_factory=dict)
    stored: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, int] = field(default_factory=dict)
    """Name -> type."""


def require_graph(directory: Path, spec: ModelSpec, *, precision: str, kv_precision: str) -> None:
    """Raises `BackendError` with the first thing that is wrong, `MissingBackendError` without
    onnx."""
    for problem in find_graph_problems(
        directory, spec, precision=precision, kv_precision=kv_precision
    ):
        raise BackendError(
            f"Edge-LLM exported something else than {precision}: {problem}",
            hint="please report the model; `--precision fp16` may work",
        )


def find_graph_problems(
    directory: Path, spec: ModelSpec, *, precision: str, kv_precision: str
) -> Iterator[str]:
    """Every reason, one sentence each."""
    graph = _read(directory / MODEL_FILE)
    yield from _files(directory, graph)
    if precision == "int4_awq":
        yield from _int4_products(graph, spec)
    else:
        yield from _products(graph, spec, precision)
    yield from _cache(directory, graph, spec, kv_precision)


def _read(path: Path) -> _Graph:
    try:
        import onnx
    except ImportError as exc:
        raise MissingBackendError(
            "checking an exported graph needs a package that is not installed: onnx",
            hint="pip install 'edgekit[build]'",
        ) from exc
    try:
        found = onnx.load(str(path), load_external_data=False).graph
    except Exception as exc:  # protobuf and file errors of any kind
        raise BackendError(f"Edge-LLM's export left no graph that can be read: {path}") from exc
    graph = _Graph(nodes=list(found.node))
    for node in found.node:
        graph.makers |= dict.fromkeys(node.output, node)
    graph.stored = {tensor.name: tensor for tensor in found.initializer}
    graph.inputs = {each.name: each.type.tensor_type.elem_type for each in found.input}
    return graph


def _files(directory: Path, graph: _Graph) -> Iterator[str]:
    """Data beside the graph, as long as it says."""
    ends: dict[str, int] = {}
    for tensor in graph.stored.values():
        entries = {entry.key: entry.value for entry in tensor.external_data}
        if "location" in entries:
            end = int(entries.get("offset", 0)) + int(entries.get("length", 0))
            ends[entries["location"]] = max(ends.get(entries["location"], 0), end)
    for name, end in ends.items():
        path = directory / name
        size = path.stat().st_size if path.is_file() else 0
        if size < end:
            yield f"{name} has {size} bytes, the graph reads {end}"


def _products(graph: _Graph, spec: ModelSpec, precision: str) -> Iterator[str]:
    wanted, values = _WANTED[precision], 0
    kept = _Kept(spec, precision)
    for node in graph.nodes:
        if node.op_type in _INT4:
            yield f"an INT4 product, {node.input[1]}"
        if node.op_type not in _PRODUCTS:
            continue
        matrix = _matrix(graph, node.input[1])
        if matrix is None or _is_head(matrix, spec) or kept.takes(matrix):
            continue
        if matrix.type not in wanted.types or len(matrix.scales) != wanted.scales:
            yield f"{_call(matrix)} is stored as {_describe(matrix)}"
            continue
        if wanted.rounds and not _is_rounded(graph, node.input[0]):
            yield f"what enters {_call(matrix)} is not rounded"
        missing = [name for name in matrix.scales if not _is_stored(graph, name)]
        if missing:
            yield f"the scale of {_call(matrix)} is not stored: {missing[0]}"
        values += math.prod(matrix.shape)
    yield from kept.problems()
    yield from _count(values, spec.linear_params - kept.params)


def _int4_products(graph: _Graph, spec: ModelSpec) -> Iterator[str]:
    values, kept = 0, _Kept(spec, "int4_awq")
    for node in graph.nodes:
        matrix = None
        if node.op_type in _PRODUCTS:
            matrix = _matrix(graph, node.input[1])
        if matrix is not None and not _is_head(matrix, spec) and not kept.takes(matrix):
            yield f"{_call(matrix)} is stored as {_describe(matrix)}"
        if node.op_type not in _INT4:
            continue
        sizes = {each.name: each.i for each in node.attribute}
        n, k, group = (sizes.get(name, 0) for name in ("gemm_n", "gemm_k", "group_size"))
        name = _short(node.input[1])
        if group != GROUP:
            yield f"{name} has groups of {group}, its kernels are compiled for {GROUP}"
        if k % GROUP:
            yield f"{name} has {k} inputs, its kernels take multiples of {GROUP}"
        scales = graph.stored.get(node.input[2])
        if scales is None or tuple(scales.dims) != (k // max(group, 1), n):
            yield f"the scales of {name} are not stored as [{k} / {group}, {n}]"
        if node.input[1] not in graph.stored:
            yield f"the weights of {name} are not stored"
        values += n * k
    yield from kept.problems()
    yield from _count(values, spec.linear_params - kept.params)


class _Kept:
    """The matrices that stay at FP16 by rule, known by their sizes: the exporter names them anew,
    and makes one of q, k and v."""

    def __init__(self, spec: ModelSpec, precision: str) -> None:
        self.params = 0
        """Weights that should stay."""
        self._found = 0
        self._names: list[str] = []
        self._sizes: set[frozenset[int]] = set()
        for layer, rows, columns in linear_layers(spec):
            if precision == "fp16" or layer_precision(precision, layer, columns) != "fp16":
                continue
            name = layer.rpartition(".")[2]
            self.params += rows * columns
            self._sizes.add(frozenset((rows, columns)))
            if name == "q_proj":
                self._sizes.add(frozenset((spec.q_size + 2 * spec.kv_size, columns)))
            if name not in self._names:
                self._names.append(name)

    def takes(self, matrix: _Matrix) -> bool:
        """Whether it is of the size of one that stays, and stayed."""
        is_plain = matrix.type == _FLOAT16 and not matrix.scales
        if not is_plain or frozenset(matrix.shape) not in self._sizes:
            return False
        self._found += math.prod(matrix.shape)
        return True

    def problems(self) -> Iterator[str]:
        """That others stayed than should."""
        if self._found != self.params:
            names, have = join_words(self._names), "has" if len(self._names) == 1 else "have"
            yield f"{self._found:,} weights are left at fp16, {names} {have} {self.params:,}"


def _count(values: int, wanted: int) -> Iterator[str]:
    if values != wanted:
        yield f"{values:,} weights are quantized, the layers have {wanted:,}"


def _cache(directory: Path, graph: _Graph, spec: ModelSpec, kv_precision: str) -> Iterator[str]:
    attention = [node for node in graph.nodes if node.op_type == "AttentionPlugin"]
    if len(attention) != spec.num_layers:
        yield f"{len(attention)} attention layers, the model has {spec.num_layers}"
    wants = kv_precision == "fp8"
    for node in attention:
        flags = {each.name: each.i for each in node.attribute}
        if bool(flags.get("enable_fp8_kv_cache", 0)) != wants:
            yield f"its cache is not {kv_precision}: enable_fp8_kv_cache of {node.name}"
    wrong = _FLOAT16 if wants else _E4M3
    for name, kind in graph.inputs.items():
        if name.startswith("past_key_values") and kind == wrong:
            yield f"its cache is not {kv_precision}: {name}"
    said = read_json(directory / CONFIG_FILE).get("kv_cache_dtype")
    if said != kv_precision:
        yield f"its cache is not {kv_precision}: config.json says {said}"


def _matrix(graph: _Graph, name: str, scales: tuple[str, ...] = ()) -> _Matrix | None:
    """The stored tensor that `name` comes from; `None`: it is computed from what enters."""
    tensor = graph.stored.get(name)
    if tensor is not None:
        shape = tuple(tensor.dims)
        return _Matrix(name=name, type=tensor.data_type, shape=shape, scales=scales)
    node = graph.makers.get(name)
    if node is None:
        return None
    if node.op_type in _SAME:
        return _matrix(graph, node.input[0], scales)
    if node.op_type == _DEQUANTIZE:
        return _matrix(graph, node.input[0], (*scales, *_scales(graph, node.input[1])))
    return None


def _scales(graph: _Graph, name: str) -> tuple[str, ...]:
    """A scale, and that which it is itself a multiple of."""
    node = graph.makers.get(name)
    if node is not None and node.op_type in _SAME:
        return _scales(graph, node.input[0])
    if node is not None and node.op_type == _DEQUANTIZE:
        return (node.input[0], *_scales(graph, node.input[1]))
    return (name,)


def _is_stored(graph: _Graph, name: str) -> bool:
    node = graph.makers.get(name)
    if node is not None and node.op_type in _SAME:
        return _is_stored(graph, node.input[0])
    return name in graph.stored


def _is_rounded(graph: _Graph, name: str) -> bool:
    """Whether it went through a quantizer on its way."""
    node = graph.makers.get(name)
    while node is not None and node.op_type in (*_SAME, _DEQUANTIZE):
        node = graph.makers.get(node.input[0])
    return node is not None and node.op_type in _ROUNDS


def _is_head(matrix: _Matrix, spec: ModelSpec) -> bool:
    table = {spec.vocab_size, spec.hidden_size}
    return matrix.type == _FLOAT16 and set(matrix.shape) == table and spec.vocab_size in table


def _call(matrix: _Matrix) -> str:
    return f"{_short(matrix.name)} {list(matrix.shape)}"


def _short(name: str) -> str:
    return name.removeprefix("_model.").removesuffix(".weight")


def _describe(matrix: _Matrix) -> str:
    names = {_INT8: "int8", _FLOAT16: "fp16", _E4M3: "fp8", _E2M1: "fp4"}
    kind = names.get(matrix.type, f"type {matrix.type}")
    count = len(matrix.scales)
    return f"{kind} with {count} scale{'' if count == 1 else 's'}" if count else f"plain {kind}"
