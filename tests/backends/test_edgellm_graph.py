"""An exported graph is what was asked for, or the first thing that is not is named.

The graphs here have the nodes that Edge-LLM 0.11.0 exports; `tests/test_edgellm_export.py` runs it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgekit.backends.edge_llm.formats import layer_precision, linear_layers
from edgekit.backends.edge_llm.graph import find_graph_problems, require_graph
from edgekit.errors import BackendError
from edgekit.families import read_spec
from edgekit.model import ModelSpec
from tests.backends.test_edgellm_preflight import CONFIG, NARROW

SPEC, NARROW_SPEC = read_spec(CONFIG), read_spec({**CONFIG, **NARROW})
KINDS = {
    "fp16": TensorProto.FLOAT16, "int8_sq": TensorProto.INT8, "fp8": TensorProto.FLOAT8E4M3FN,
    "nvfp4": TensorProto.FLOAT4E2M1,
}  # fmt: skip
PRECISIONS = [*KINDS, "int4_awq"]


class Graph:
    """Products of every layer, in one precision."""

    def __init__(self, precision: str, *, kv: str = "fp16", spec: ModelSpec = SPEC) -> None:
        self.nodes: list[Any] = []
        self.stored: list[Any] = []
        self.kv, self.spec = kv, spec
        for layer, rows, columns in linear_layers(spec):
            own = layer_precision(precision, layer, columns)
            if own == "int4_awq":
                self.int4(layer, rows, columns)
            else:
                self.product(layer, rows, columns, own)
        for index in range(spec.num_layers):
            self.nodes.append(
                helper.make_node(
                    "AttentionPlugin", ["x", f"past_key_values_{index}"], [f"attended_{index}"],
                    name=f"attention_{index}", domain="trt_edgellm",
                    enable_fp8_kv_cache=int(kv == "fp8"),
                )
            )  # fmt: skip
        head = (spec.vocab_size, spec.hidden_size)
        self.store("_model.lm_head.weight", TensorProto.FLOAT16, head)
        self.nodes.append(helper.make_node("Gemm", ["x", "_model.lm_head.weight"], ["logits"]))

    def store(self, name: str, kind: int, shape: tuple[int, ...]) -> str:
        tensor = TensorProto(name=name, data_type=kind, dims=shape)
        self.stored.append(tensor)
        return name

    def product(self, layer: str, rows: int, columns: int, precision: str) -> None:
        name, entering = f"_model.{layer}", "x"
        weight = self.store(f"{name}.weight", KINDS[precision], (rows, columns))
        if precision != "fp16":
            scale = self.store(f"{name}.weight_scale", TensorProto.FLOAT, (rows,))
            if precision == "nvfp4":
                second = self.store(f"{name}.weight_scale_2", TensorProto.FLOAT, ())
                self.node("DequantizeLinear", [scale, second], f"{name}.steps")
                scale = f"{name}.steps"
            self.node("DequantizeLinear", [weight, scale], f"{name}.wide")
            weight = f"{name}.wide"
            entering = self.rounded(name, precision)
        self.node("Transpose", [weight], f"{name}.turned")
        self.node("MatMul", [entering, f"{name}.turned"], f"{name}.out")

    def rounded(self, name: str, precision: str) -> str:
        scale = self.store(f"{name}.input_scale", TensorProto.FLOAT, ())
        kind = "TRT_FP4DynamicQuantize" if precision == "nvfp4" else "QuantizeLinear"
        self.node(kind, ["x", scale], f"{name}.codes")
        self.node("DequantizeLinear", [f"{name}.codes", scale], f"{name}.rounded")
        self.node("Cast", [f"{name}.rounded"], f"{name}.entering", to=TensorProto.FLOAT16)
        return f"{name}.entering"

    def int4(self, layer: str, rows: int, columns: int, *, group: int = 128) -> None:
        name = f"_model.{layer}"
        codes = self.store(f"{name}.weight", TensorProto.INT8, (16, 512))
        scale = self.store(f"{name}.weight_scale", TensorProto.FLOAT16, (columns // group, rows))
        self.node(
            "Int4GroupwiseGemmPluginV2", ["x", codes, scale], f"{name}.out",
            gemm_n=rows, gemm_k=columns, group_size=group,
        )  # fmt: skip

    def forget(self, layer: str) -> None:
        """All of that layer."""
        name = f"_model.{layer}"
        self.nodes = [n for n in self.nodes if not n.output[0].startswith(name)]
        self.stored = [t for t in self.stored if not t.name.startswith(name)]

    def node(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> None:
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))

    def find(self, kind: str, output: str = "") -> Any:
        return next(n for n in self.nodes if n.op_type == kind and output in n.output[0])

    def write(self, directory: Path, *, said: str | None = None) -> Path:
        cache = TensorProto.FLOAT8E4M3FN if self.kv == "fp8" else TensorProto.FLOAT16
        inputs = [
            helper.make_tensor_value_info(f"past_key_values_{i}", cache, None)
            for i in range(self.spec.num_layers)
        ]
        graph = helper.make_graph(self.nodes, "model", inputs, [], self.stored)
        directory.mkdir(exist_ok=True)
        onnx.save(helper.make_model(graph), str(directory / "model.onnx"))
        (directory / "config.json").write_text(json.dumps({"kv_cache_dtype": said or self.kv}))
        return directory


def problems(graph: Graph, directory: Path, precision: str, kv: str = "fp16") -> list[str]:
    made, spec = graph.write(directory), graph.spec
    return list(find_graph_problems(made, spec, precision=precision, kv_precision=kv))


@pytest.mark.parametrize("kv", ["fp16", "fp8"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_whole_graph_has_nothing_wrong(precision: str, kv: str, tmp_path: Path) -> None:
    assert problems(Graph(precision, kv=kv), tmp_path, precision, kv) == []


@pytest.mark.parametrize("precision", ["int8_sq", "fp8", "nvfp4", "int4_awq"])
def test_a_layer_that_fell_back_to_fp16_is_named(precision: str, tmp_path: Path) -> None:
    graph = Graph(precision)
    graph.forget("model.layers.1.self_attn.k_proj")
    graph.product("model.layers.1.self_attn.k_proj", 64, 128, "fp16")
    told = problems(graph, tmp_path, precision)
    assert told[0] == "model.layers.1.self_attn.k_proj [64, 128] is stored as plain fp16"
    # two blocks of 147,456 weights, of which k_proj has 64 x 128 and down_proj 128 x 256
    counts = "221,184 weights are quantized, the layers have 229,376"
    if precision != "int8_sq":
        counts = "286,720 weights are quantized, the layers have 294,912"
    assert told[1] == counts


def test_int8_weights_without_their_scales_are_named(tmp_path: Path) -> None:
    """What the exporter makes of W8A16: the codes are multiplied as they are."""
    graph = Graph("int8_sq")
    node = graph.find("Transpose", "layers.0.mlp.up_proj")
    node.input[0] = "_model.model.layers.0.mlp.up_proj.weight"
    told = problems(graph, tmp_path, "int8_sq")
    assert told[0] == "model.layers.0.mlp.up_proj [256, 128] is stored as plain int8"


def test_a_wide_layer_instead_of_down_proj_is_found(tmp_path: Path) -> None:
    """up_proj has as many weights: were it left at FP16, and down_proj not, the sum would tell."""
    graph = Graph("int8_sq")
    graph.forget("model.layers.0.mlp.up_proj")
    graph.product("model.layers.0.mlp.up_proj", 256, 128, "fp16")
    told = problems(graph, tmp_path, "int8_sq")
    assert told[0] == "98,304 weights are left at fp16, down_proj has 65,536"


@pytest.mark.parametrize("is_merged", [False, True])
def test_layers_without_groups_of_128_stay_at_fp16(tmp_path: Path, *, is_merged: bool) -> None:
    graph = Graph("int4_awq", spec=NARROW_SPEC)
    for index in range(2 if is_merged else 0):  # as 0.11.0 exports them
        name = f"model.layers.{index}.self_attn"
        for part in "qkv":
            graph.forget(f"{name}.{part}_proj")
        graph.product(f"{name}.qkv_proj_fused", 192 + 2 * 64, 192, "fp16")
    assert problems(graph, tmp_path, "int4_awq") == []


@pytest.mark.parametrize("layer", ["self_attn.q_proj", "mlp.up_proj"])
def test_one_of_them_that_is_quantized_is_named(layer: str, tmp_path: Path) -> None:
    graph = Graph("int4_awq", spec=NARROW_SPEC)
    name = f"model.layers.0.{layer}"
    rows = next(rows for each, rows, _ in linear_layers(NARROW_SPEC) if each == name)
    graph.forget(name)
    graph.int4(name, rows, 192)
    told = problems(graph, tmp_path, "int4_awq")
    assert told[0] == f"{name} has 192 inputs, its kernels take multiples of 128"
    left = 2 * (192 * 192 + 2 * 64 * 192 + 192 * 192 + 2 * 192 * 256)
    names = "q_proj, k_proj, v_proj, o_proj, gate_proj and up_proj"
    said = f"{left - rows * 192:,} weights are left at fp16, {names} have {left:,}"
    assert told[1] == said


def test_one_that_should_be_quantized_and_is_not_is_found(tmp_path: Path) -> None:
    """down_proj, which has groups, beside up_proj of the same size, which has none."""
    graph = Graph("int4_awq", spec=NARROW_SPEC)
    graph.forget("model.layers.0.mlp.down_proj")
    graph.product("model.layers.0.mlp.down_proj", 192, 256, "fp16")
    told = problems(graph, tmp_path, "int4_awq")
    assert told == [
        "442,368 weights are left at fp16, "
        "q_proj, k_proj, v_proj, o_proj, gate_proj and up_proj have 393,216",
        "49,152 weights are quantized, the layers have 98,304",
    ]


@pytest.mark.parametrize("precision", ["int8_sq", "fp8", "nvfp4"])
def test_activations_that_are_not_rounded_are_named(precision: str, tmp_path: Path) -> None:
    graph = Graph(precision)
    graph.find("MatMul", "layers.0.mlp.gate_proj").input[0] = "x"
    told = problems(graph, tmp_path, precision)
    assert told[0] == "what enters model.layers.0.mlp.gate_proj [256, 128] is not rounded"


@pytest.mark.parametrize("precision", ["int8_sq", "fp8", "nvfp4"])
def test_a_scale_that_is_not_stored_is_named(precision: str, tmp_path: Path) -> None:
    graph = Graph(precision)
    name = "_model.model.layers.0.self_attn.o_proj.weight_scale"
    graph.stored = [tensor for tensor in graph.stored if tensor.name != name]
    assert f"is not stored: {name}" in problems(graph, tmp_path, precision)[0]


def test_int4_groups_that_kernels_do_not_have_are_named(tmp_path: Path) -> None:
    graph = Graph("int4_awq")
    graph.find("Int4GroupwiseGemmPluginV2").attribute[2].i = 64
    told = problems(graph, tmp_path, "int4_awq")
    assert told[0] == (
        "model.layers.0.self_attn.q_proj has groups of 64, its kernels are compiled for 128"
    )


def test_int4_scales_of_another_layout_are_named(tmp_path: Path) -> None:
    graph = Graph("int4_awq")
    graph.stored[1].dims[:] = [128, 1]
    assert "are not stored as [128 / 128, 128]" in problems(graph, tmp_path, "int4_awq")[0]


@pytest.mark.parametrize("kv", ["fp16", "fp8"])
def test_another_cache_than_asked_is_named(kv: str, tmp_path: Path) -> None:
    wanted = {"fp16": "fp8", "fp8": "fp16"}[kv]
    told = problems(Graph("fp8", kv=kv), tmp_path, "fp8", wanted)
    assert len(told) == 5  # two plugins, two inputs, the configuration
    assert all(each.startswith(f"its cache is not {wanted}") for each in told)


def test_a_configuration_that_says_another_cache_is_named(tmp_path: Path) -> None:
    made = Graph("fp8", kv="fp8").write(tmp_path, said="fp16")
    told = list(find_graph_problems(made, SPEC, precision="fp8", kv_precision="fp8"))
    assert told == ["its cache is not fp8: config.json says fp16"]


def test_data_that_was_cut_is_found(tmp_path: Path) -> None:
    graph = Graph("fp16")
    tensor = graph.stored[0]
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "model.onnx.data"), ("offset", "64"), ("length", "4096")):
        tensor.external_data.add(key=key, value=value)
    made = graph.write(tmp_path)
    (tmp_path / "model.onnx.data").write_bytes(np.zeros(4159, np.uint8).tobytes())
    told = list(find_graph_problems(made, SPEC, precision="fp16", kv_precision="fp16"))
    assert told == ["model.onnx.data has 4159 bytes, the graph reads 4160"]


@pytest.mark.parametrize("break_it", [lambda p: p.unlink(), lambda p: p.write_bytes(b"\xff" * 9)])
def test_a_graph_that_cannot_be_read_is_an_error(
    break_it: Callable[[Path], object], tmp_path: Path
) -> None:
    made = Graph("fp16").write(tmp_path)
    break_it(made / "model.onnx")
    with pytest.raises(BackendError, match="no graph that can be read"):
        require_graph(made, SPEC, precision="fp16", kv_precision="fp16")
