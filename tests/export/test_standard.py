"""The standard graph: valid ONNX, and every weight in it is what the checkpoint means.

onnx reads the data file here, 4-bit and 8-bit types too: a reader that shares no code with ours.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from safetensors.numpy import load_file, save_file

from edgekit.checkpoint import read_checkpoint
from edgekit.errors import CheckpointError
from edgekit.export import export_standard_decoder
from edgekit.export.nodes import Graph
from edgekit.export.standard_linear import StandardLinears, pack_columns
from edgekit.export.store import TensorStore
from edgekit.export.weights import IntLinear
from edgekit.profile import Storage

Floats = NDArray[np.float32]
MakePath = Callable[..., Path]
MakeQuantized = Callable[..., tuple[Path, Path]]
Logits = Callable[[Path, Sequence[int]], Floats]

FAMILIES = ["llama", "qwen2", "qwen3"]
FP16 = Storage(linear_bits=16)
TABLES = Storage(linear_bits=16, head_bits=8, embedding_bits=8)
INT8 = Storage(linear_bits=8)
INT4 = Storage(linear_bits=4, group_size=32)
FP8 = Storage(linear_bits=8)
IDS = [int(i) for i in np.random.default_rng(3).integers(0, 384, 40)]
# activations round at 2^-11 = 5e-4, some thirty times on the way: a percent of their spread
TOLERANCE = 2e-2
# a scale of fp16 is off by 2^-11 of itself at most
HALF = 2.0**-11


class Reading:
    """A graph file as onnx reads it."""

    def __init__(self, graph: Path) -> None:
        self.model = onnx.load(graph / "model.onnx")
        self.nodes = {n.name: n for n in self.model.graph.node}
        self.protos = {t.name: t for t in self.model.graph.initializer}
        self._made_by = {out: n for n in self.model.graph.node for out in n.output}

    def array(self, name: str) -> Floats:
        found: Floats = numpy_helper.to_array(self.protos[name]).astype(np.float32)
        return found

    def product(self, name: str) -> Floats:
        """The matrix `[K, N]` that the product `name` multiplies with."""
        return self._weight(self.nodes[name].input[1])

    def dequantizer(self, name: str) -> onnx.NodeProto:
        """What makes the matrix of the product `name`."""
        node = self._made_by[self.nodes[name].input[1]]
        return self._made_by[node.input[0]] if node.op_type == "Transpose" else node

    def _weight(self, name: str) -> Floats:
        if name in self.protos:
            return self.array(name)
        node = self._made_by[name]
        if node.op_type == "Transpose":
            return self._weight(node.input[0]).T
        assert node.op_type == "DequantizeLinear"
        codes, scales = (self.array(i) for i in node.input)
        attributes = {a.name: a.i for a in node.attribute}
        assert attributes["axis"] == 0
        if scales.ndim == 1:
            return codes * scales[:, None]
        whole: Floats = codes * np.repeat(scales, attributes["block_size"], axis=0)
        return whole


def plain_weight(path: Path, *layers: str) -> Floats:
    """Matrices of a checkpoint side by side, `[K, sum of N]`."""
    tensors = load_file(path / "model.safetensors")
    joined = np.concatenate([tensors[f"{layer}.weight"].astype(np.float32) for layer in layers])
    return joined.T


def attention(index: int, *which: str) -> list[str]:
    return [f"model.layers.{index}.self_attn.{x}_proj" for x in which]


def run_graph(graph: Path, ids: Sequence[int]) -> Floats:
    """`[T, V]` by ONNX Runtime, one pass into an empty cache of 64 tokens."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    # otherwise products with INT4 weights round their activations to 8 bits
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    session = ort.InferenceSession(graph / "model.onnx", options, ["CPUExecutionProvider"])
    count = np.arange(len(ids), dtype=np.int64)
    feeds: dict[str, NDArray[Any]] = {
        "input_ids": np.array([ids], np.int64),
        "position_ids": count[None],
        "write_indices": np.array([0], np.int64),
        "kv_lengths": np.array([len(ids)], np.int64),
        "logits_index": count,
    }
    for value in session.get_inputs():
        if value.name.startswith("past."):
            _, heads, _, size = value.shape
            feeds[value.name] = np.zeros((1, heads, 64, size), np.float16)
    result: Floats = session.run(["logits"], feeds)[0][0]
    return result


def require_logits(graph: Path, expected: Floats) -> None:
    error = np.abs(run_graph(graph, IDS) - expected).max()
    assert error <= TOLERANCE * expected.std()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("storage", [FP16, TABLES], ids=["fp16", "int8 tables"])
def test_a_graph_of_operator_set_24_passes_the_checker(
    family: str, storage: Storage, make_tiny: MakePath, export_standard: MakePath
) -> None:
    path = export_standard(make_tiny(family), storage) / "model.onnx"
    onnx.checker.check_model(path, full_check=True)
    imports = onnx.load(path, load_external_data=False).opset_import
    assert [(i.domain, i.version) for i in imports] == [("", 24)]


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_transformers(
    family: str, make_tiny: MakePath, export_standard: MakePath, hf_logits: Logits
) -> None:
    checkpoint = make_tiny(family)
    require_logits(export_standard(checkpoint), hf_logits(checkpoint, IDS))


def slow_pack_columns(codes: NDArray[np.int8]) -> NDArray[np.uint8]:
    """ONNX's INT4 tensor `[K, N]`, nibble by nibble: the first of two is the low one."""
    outputs, inputs = codes.shape
    packed = np.zeros(inputs * outputs // 2, np.uint8)
    for k in range(inputs):
        for n in range(outputs):
            place = k * outputs + n
            packed[place // 2] |= (int(codes[n, k]) & 0xF) << (4 * (place % 2))
    return packed.reshape(inputs, outputs // 2)


CODES = st.tuples(st.integers(1, 5), st.integers(1, 9)).flatmap(
    lambda s: hnp.arrays(np.int8, (2 * s[0], s[1]), elements=st.integers(-8, 7))
)


@settings(deadline=None, max_examples=60)
@given(CODES)
def test_int4_columns_are_packed_nibble_by_nibble(codes: NDArray[np.int8]) -> None:
    np.testing.assert_array_equal(pack_columns(codes), slow_pack_columns(codes))


@settings(deadline=None, max_examples=60)
@given(CODES)
def test_onnx_reads_the_int4_codes_that_were_packed(codes: NDArray[np.int8]) -> None:
    raw = pack_columns(codes).tobytes()
    tensor = TensorProto(data_type=TensorProto.INT4, dims=codes.T.shape, raw_data=raw)
    np.testing.assert_array_equal(numpy_helper.to_array(tensor).astype(np.int8), codes.T)


@pytest.mark.parametrize(("bits", "group"), [(8, None), (4, 32)])
def test_the_quantized_weights_read_back_as_what_they_stand_for(
    bits: int, group: int | None, make_tiny: MakePath, make_quantized: MakeQuantized,
    export_standard: MakePath,
) -> None:  # fmt: skip
    checkpoint, plain = make_quantized(make_tiny(), bits, group, {})
    reading = Reading(export_standard(checkpoint, INT8 if bits == 8 else INT4))
    for index in (0, 1):
        mlp = f"model.layers.{index}.mlp"
        for product, layers in (
            (f"model.layers.{index}.self_attn.qkv_proj", attention(index, *"qkv")),
            (f"model.layers.{index}.self_attn.o_proj", attention(index, "o")),
            (f"{mlp}.gate_up_proj", [f"{mlp}.gate_proj", f"{mlp}.up_proj"]),
            (f"{mlp}.down_proj", [f"{mlp}.down_proj"]),
        ):
            node = reading.dequantizer(f"{product}.out")
            kind = TensorProto.INT8 if bits == 8 else TensorProto.INT4
            assert reading.protos[node.input[0]].data_type == kind
            found = reading.product(f"{product}.out")
            np.testing.assert_allclose(found, plain_weight(plain, *layers), rtol=HALF)


def test_a_scale_that_no_weight_takes_over_multiplies_the_input(
    make_tiny: MakePath, make_quantized: MakeQuantized, export_standard: MakePath,
    hf_logits: Logits,
) -> None:  # fmt: skip
    # query heads that share a KV head but not their scale: it cannot go into the rows of v
    scale = np.exp2(np.random.default_rng(5).uniform(-2, 2, 64)).astype(np.float32)
    checkpoint, plain = make_quantized(make_tiny(), 4, 32, {"o_proj": scale})
    graph = export_standard(checkpoint, INT4)
    reading = Reading(graph)
    for index in (0, 1):
        (layer,) = attention(index, "o")
        assert reading.nodes[f"{layer}.out"].input[0] == f"{layer}.scaled"
        factors = reading.array(reading.nodes[f"{layer}.scaled"].input[1])
        found = factors[:, None] * reading.product(f"{layer}.out")
        np.testing.assert_allclose(found, plain_weight(plain, layer), rtol=2 * HALF)
    require_logits(graph, hf_logits(plain, IDS))


@pytest.mark.parametrize("bits", [8, 4])
def test_scales_that_are_folded_leave_the_logits_as_they_were(
    bits: int, make_tiny: MakePath, make_quantized: MakeQuantized, export_standard: MakePath,
    hf_logits: Logits,
) -> None:  # fmt: skip
    def factors(width: int) -> Floats:
        return np.exp2(np.random.default_rng(width).uniform(-2, 2, width)).astype(np.float32)

    # o_proj: both query heads of each of the two KV heads agree, and the rows of v take it over
    shared = np.broadcast_to(factors(32).reshape(2, 1, 16), (2, 2, 16)).reshape(-1).copy()
    scales = {f"{x}_proj": factors(64) for x in "qkv"}
    scales |= {"down_proj": factors(160), "o_proj": shared}
    # qwen2 has biases on q, k and v
    checkpoint, plain = make_quantized(
        make_tiny("qwen2"), bits, 32 if bits == 4 else None, scales
    )  # fmt: skip
    graph = export_standard(checkpoint, INT4 if bits == 4 else INT8)
    assert not any(name.endswith(".scaled") for name in Reading(graph).nodes)
    require_logits(graph, hf_logits(plain, IDS))


@pytest.fixture(scope="module")
def fp8(make_tiny: MakePath, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ModelOpt's FP8: a scale for each matrix, and for what enters it."""
    from safetensors.torch import load_file, save_file

    path = tmp_path_factory.mktemp("fp8")
    shutil.copytree(make_tiny(), path, dirs_exist_ok=True)
    tensors = {}
    for name, value in load_file(path / "model.safetensors").items():
        tensors[name] = value
        if name.endswith("_proj.weight"):
            step = value.float().abs().max() / 448
            tensors[name] = (value.float() / step).to(torch.float8_e4m3fn)
            tensors[f"{name}_scale"] = step
            tensors[name.replace("weight", "input_scale")] = torch.tensor(0.0625)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return path


def test_fp8_weights_read_back_as_what_they_stand_for(fp8: Path, export_standard: MakePath) -> None:
    from safetensors.torch import load_file

    reading = Reading(export_standard(fp8, FP8))
    stored = load_file(fp8 / "model.safetensors")
    expected = torch.cat(
        # each of the three has a scale of its own
        [stored[f"{n}.weight"].float() * stored[f"{n}.weight_scale"] for n in attention(0, *"qkv")]
    )
    found = reading.product("model.layers.0.self_attn.qkv_proj.out")
    np.testing.assert_allclose(found, expected.numpy().T, rtol=HALF)


def test_what_enters_an_fp8_product_is_rounded_with_the_checkpoint_s_scale(
    fp8: Path, export_standard: MakePath
) -> None:
    reading = Reading(export_standard(fp8, FP8))
    product = reading.nodes["model.layers.0.mlp.down_proj.out"]
    back = reading.nodes[product.input[0]]
    codes = reading.nodes[back.input[0]]
    assert (back.op_type, codes.op_type) == ("DequantizeLinear", "QuantizeLinear")
    assert {a.name: a.i for a in codes.attribute} == {"output_dtype": TensorProto.FLOAT8E4M3FN}
    assert codes.input[1] == back.input[1]
    assert reading.array(back.input[1]) == 0.0625


def test_the_bytes_of_fp8_are_those_of_the_checkpoint(fp8: Path, export_standard: MakePath) -> None:
    from safetensors.torch import load_file

    reading = Reading(export_standard(fp8, FP8))
    proto = reading.protos["model.layers.1.mlp.down_proj.fp8"]
    assert proto.data_type == TensorProto.FLOAT8E4M3FN
    found = numpy_helper.to_array(proto)
    assert found.dtype == ml_dtypes.float8_e4m3fn
    expected = load_file(fp8 / "model.safetensors")["model.layers.1.mlp.down_proj.weight"]
    np.testing.assert_array_equal(found.view(np.uint8), expected.view(torch.uint8).numpy())


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_tables_at_8_bits_are_within_half_a_step_of_the_checkpoint(
    family: str, make_tiny: MakePath, export_standard: MakePath
) -> None:
    reading = Reading(export_standard(make_tiny(family), TABLES))
    codes = reading.array(reading.nodes["embedded.codes"].input[0])
    scales = reading.array(reading.nodes["embedded.scales"].input[0])
    assert scales.shape == (384, 1)
    tables = load_file(make_tiny(family) / "model.safetensors")
    embedding = tables["model.embed_tokens.weight"].astype(np.float32)
    for table, found in (
        (embedding, codes * scales),
        (
            tables.get("lm_head.weight", embedding).astype(np.float32),
            reading.product("logits.fp16").T,
        ),
    ):
        # the largest of a row is code 127, and 127 x the rounding of its scale to fp16
        step = np.abs(table).max(axis=1, keepdims=True) / 127
        assert (np.abs(found - table) <= step * (0.5 + 127 * HALF) * 1.001).all()


def test_a_tied_head_shares_codes_and_scales_with_the_embedding(
    make_tiny: MakePath, export_standard: MakePath
) -> None:
    reading = Reading(export_standard(make_tiny("qwen2"), TABLES))
    model = onnx.load(
        export_standard(make_tiny("qwen2"), TABLES) / "model.onnx", load_external_data=False
    )
    places = {
        t.name: {entry.key: entry.value for entry in t.external_data}
        for t in model.graph.initializer
    }
    codes, scales = reading.dequantizer("logits.fp16").input
    assert codes == reading.nodes["embedded.codes"].input[0]
    assert places[scales] == places[reading.nodes["embedded.scales"].input[0]]
    assert not any(name.startswith("lm_head") for name in places)


def test_an_untied_head_has_codes_of_its_own(
    make_tiny: MakePath, export_standard: MakePath
) -> None:
    reading = Reading(export_standard(make_tiny("llama"), TABLES))
    assert reading.dequantizer("logits.fp16").input[0] == "lm_head.int8"
    assert reading.nodes["embedded.codes"].input[0] == "model.embed_tokens.int8"


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_logits_of_tables_at_8_bits_are_those_of_the_rounded_tables(
    family: str, make_tiny: MakePath, export_standard: MakePath, hf_logits: Logits, tmp_path: Path
) -> None:
    graph = export_standard(make_tiny(family), TABLES)
    reading = Reading(graph)
    codes, scales = (reading.array(reading.nodes[f"embedded.{x}"].input[0])
                     for x in ("codes", "scales"))  # fmt: skip
    shutil.copytree(make_tiny(family), tmp_path, dirs_exist_ok=True)
    tensors = {
        k: v.astype(np.float32) for k, v in load_file(tmp_path / "model.safetensors").items()
    }
    tensors["model.embed_tokens.weight"] = codes * scales
    if "lm_head.weight" in tensors:
        tensors["lm_head.weight"] = np.ascontiguousarray(reading.product("logits.fp16").T)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    require_logits(graph, hf_logits(tmp_path, IDS))


def test_a_head_that_modelopt_quantized_stays_as_it_is(
    make_tiny: MakePath, make_quantized: MakeQuantized, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    checkpoint, _ = make_quantized(make_tiny(), 4, 32, {})
    tensors = load_file(checkpoint / "model.safetensors")
    random = np.random.default_rng(1)
    codes = random.integers(-8, 8, (384, 64)).astype(np.int8)
    scales = random.uniform(0.1, 0.2, (384, 2)).astype(np.float32)
    nibbles = codes.view(np.uint8)
    tensors["lm_head.weight"] = (nibbles[0::2] & 15) | (nibbles[1::2] << 4)
    tensors["lm_head.weight_scale"] = scales
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})
    monkeypatch.setattr("edgekit.export.weights._CHUNK_VALUES", 1000)  # in 13 pieces
    storage = Storage(linear_bits=4, group_size=32, head_bits=4, is_head_calibrated=True)
    (tmp_path / "out").mkdir()
    export_standard_decoder(
        read_checkpoint(checkpoint), storage, tmp_path / "out", context_tokens=16
    )
    found = Reading(tmp_path / "out").product("logits.fp16")
    np.testing.assert_allclose(found, (codes * np.repeat(scales, 32, axis=1)).T, rtol=HALF)


def test_the_scale_of_attention_lies_in_the_query_s_rotary_tables(
    make_tiny: MakePath, export_standard: MakePath
) -> None:
    # qwen3: a norm follows the query's weights, and would undo a scale in them
    reading = Reading(export_standard(make_tiny("qwen3")))
    stored = load_file(make_tiny("qwen3") / "model.safetensors")
    for index in (0, 1):
        prefix = f"model.layers.{index}.self_attn"
        scale = {a.name: a.f for a in reading.nodes[f"{prefix}.heads"].attribute}
        assert scale == {"scale": 1.0}
        query, key = (reading.nodes[f"{prefix}.{x}_rotated"].input[1:3] for x in "qk")
        for scaled, table in zip(query, key, strict=True):
            # heads of 32
            expected = reading.array(table) * 32**-0.5
            np.testing.assert_allclose(reading.array(scaled), expected, rtol=2 * HALF, atol=1e-7)
        for which in "qk":
            found = reading.array(reading.nodes[f"{prefix}.{which}_normed"].input[1])
            weight = stored[f"{prefix}.{which}_norm.weight"].astype(np.float32)
            np.testing.assert_array_equal(found, weight)
        found = reading.product(f"{prefix}.qkv_proj.out")
        np.testing.assert_array_equal(
            found, plain_weight(make_tiny("qwen3"), *attention(index, *"qkv"))
        )


def refused(checkpoint: Path, storage: Storage, out: Path) -> CheckpointError:
    out.mkdir()
    with pytest.raises(CheckpointError) as caught:
        export_standard_decoder(read_checkpoint(checkpoint), storage, out, context_tokens=16)
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("table", ["head_bits", "embedding_bits"])
def test_tables_at_4_bits_are_refused(
    family: str, table: str, make_tiny: MakePath, tmp_path: Path
) -> None:
    bits: dict[str, Any] = {table: 4}
    error = refused(make_tiny(family), replace(FP16, **bits), tmp_path / "out")
    assert "at 8 or 16 bits here, not 4" in str(error)


@pytest.mark.parametrize("what", ["one is not quantized", "other groups", "other input scales"])
def test_layers_of_one_product_must_be_of_one_precision(
    what: str, make_tiny: MakePath, make_quantized: MakeQuantized, tmp_path: Path
) -> None:
    checkpoint, plain = make_quantized(make_tiny(), 4, 32, {})
    tensors = load_file(checkpoint / "model.safetensors")
    layer = "model.layers.1.self_attn.k_proj"
    if what == "one is not quantized":
        del tensors[f"{layer}.weight_scale"]
        tensors[f"{layer}.weight"] = load_file(plain / "model.safetensors")[f"{layer}.weight"]
    elif what == "other groups":
        tensors[f"{layer}.weight_scale"] = np.repeat(tensors[f"{layer}.weight_scale"], 2, axis=1)
    else:
        tensors[f"{layer}.pre_quant_scale"] = np.full(64, 2, np.float32)
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})
    error = refused(checkpoint, INT4, tmp_path / "out")
    assert "mixed precision" in str(error)
    assert "model.layers.1.self_attn.qkv_proj" in str(error)


def test_an_odd_number_of_int4_outputs_is_refused(make_tiny: MakePath, tmp_path: Path) -> None:
    store = TensorStore(tmp_path / "model.data")
    layer = IntLinear(
        codes=np.zeros((3, 32), np.int8), scales=np.ones((3, 1), np.float32), bits=4,
        pre_quant_scale=None,
    )  # fmt: skip
    linears = StandardLinears(Graph(store, "float16", opset=24), read_checkpoint(make_tiny()))
    with pytest.raises(CheckpointError, match="odd number of outputs: 3") as caught:
        linears.product("layer", layer, "x", "out")
    store.close()
    assert caught.value.hint
