"""Packing: ModelOpt's layout -> codes -> what ONNX Runtime's kernels read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file, save_file

from edgekit.backends.onnxruntime.session import open_on
from edgekit.checkpoint import read_checkpoint
from edgekit.errors import CheckpointError
from edgekit.export.weights import (
    IntLinear,
    pack_for_nbits,
    pack_zero_points,
    read_linear,
    round_to_int,
    row_chunks,
    same_input,
    stack,
    unpack_int4,
)
from edgekit.storage import Storage
from tests.providers import CPU, FP16_ON_CPU

Logits = Callable[[Path, Sequence[int]], NDArray[np.float32]]
MakePath = Callable[..., Path]
Floats = NDArray[np.float32]
Codes = NDArray[np.int8]
# the first call of a kernel or of numpy can take long on a busy machine
RELAXED = settings(deadline=None, max_examples=60)


def slow_pack_int4(codes: Codes) -> NDArray[np.uint8]:
    """ModelOpt's layout, byte by byte: low nibble = even output row, high nibble = odd one."""
    rows, columns = codes.shape
    packed = np.zeros((rows // 2, columns), np.uint8)
    for row in range(rows):
        for column in range(columns):
            packed[row // 2, column] |= (int(codes[row, column]) & 0xF) << (4 * (row % 2))
    return packed


def slow_read_nbits(
    blob: NDArray[np.uint8], scales: Floats, bits: int, zeros: NDArray[np.uint8] | None = None
) -> Floats:
    """What MatMulNBits computes from its inputs: (code - zero point) x scale, one by one. Without
    zero points it is 2^(bits-1)."""
    rows, groups, group_bytes = blob.shape
    group = group_bytes * 8 // bits
    out = np.zeros((rows, groups * group), np.float32)
    for n in range(rows):
        for k in range(groups * group):
            byte = int(blob[n, k // group, (k % group) * bits // 8])
            code = byte if bits == 8 else (byte >> (4 * (k % 2))) & 0xF
            zero = 1 << (bits - 1)
            if zeros is not None:
                zero = int(zeros[n, k // group // 2]) >> (4 * (k // group % 2)) & 0xF
            out[n, k] = np.float32(code - zero) * scales[n, k // group]
    return out


def linear(codes: Codes, scales: Floats, bits: int, pre: Floats | None = None) -> IntLinear:
    return IntLinear(codes=codes, scales=scales, bits=bits, pre_quant_scale=pre)


@st.composite
def int4_layers(draw: st.DrawFn) -> IntLinear:
    rows = 2 * draw(st.integers(1, 3))
    group = draw(st.sampled_from([16, 32]))
    groups = draw(st.integers(1, 3))
    codes = draw(hnp.arrays(np.int8, (rows, groups * group), elements=st.integers(-8, 7)))
    scales = draw(hnp.arrays(np.float32, (rows, groups), elements=st.floats(-4, 4, width=32)))
    return linear(codes, scales, 4)


def test_a_byte_holds_two_output_rows() -> None:
    # 0x8F: low nibble 0xF = -1 is row 0, high nibble 0x8 = -8 is row 1; 0x70: 0 and 7
    np.testing.assert_array_equal(
        unpack_int4(np.array([[0x8F, 0x70]], np.uint8)), [[-1, 0], [-8, 7]]
    )


@RELAXED
@given(int4_layers())
def test_unpacking_undoes_packing(layer: IntLinear) -> None:
    np.testing.assert_array_equal(unpack_int4(slow_pack_int4(layer.codes)), layer.codes)


def test_a_blob_holds_two_inputs_per_byte_around_eight() -> None:
    codes = np.zeros((1, 16), np.int8)
    codes[0, :4] = [1, -8, 7, 0]
    blob, scales = pack_for_nbits(linear(codes, np.ones((1, 1), np.float32), 4), 16)
    # unsigned 9, 0, 15, 8; the even input is the low nibble
    assert blob.shape == (1, 1, 8)
    assert blob[0, 0].tolist() == [0x09, 0x8F, *[0x88] * 6]
    assert scales.tolist() == [[1.0]]


@RELAXED
@given(int4_layers())
def test_a_packed_int4_layer_means_what_its_codes_do(layer: IntLinear) -> None:
    blob, scales = pack_for_nbits(layer, layer.group_size)
    np.testing.assert_array_equal(slow_read_nbits(blob, scales, 4), layer.dequantize())


@RELAXED
@given(int4_layers())
def test_scales_are_repeated_for_smaller_groups(layer: IntLinear) -> None:
    blob, scales = pack_for_nbits(layer, 16)
    assert scales.shape == (layer.codes.shape[0], layer.codes.shape[1] // 16)
    np.testing.assert_array_equal(slow_read_nbits(blob, scales, 4), layer.dequantize())


@RELAXED
@given(
    hnp.arrays(np.int8, st.tuples(st.integers(1, 3), st.integers(1, 70))),
    st.sampled_from([16, 32]),
)
def test_per_channel_int8_fits_groups_that_do_not_divide_its_width(
    codes: Codes, group: int
) -> None:
    rows, columns = codes.shape
    scale = np.linspace(0.5, 2, rows, dtype=np.float32)[:, None]
    blob, scales = pack_for_nbits(linear(codes, scale, 8), group)
    groups = -(-columns // group)
    assert blob.shape == (rows, groups, group)
    assert scales.shape == (rows, groups)
    read = slow_read_nbits(blob, scales, 8)
    np.testing.assert_array_equal(read[:, :columns], codes * scale)
    assert not read[:, columns:].any()  # padding is the zero point: it adds nothing


def test_a_byte_holds_the_zero_points_of_two_groups_around_eight() -> None:
    # unsigned 8, 0, 15; the even group is the low nibble, and a third one has a byte of its own
    packed = pack_zero_points(np.array([[0, -8, 7]], np.int8))
    assert packed.tolist() == [[0x08, 0x0F]]


@RELAXED
@given(int4_layers(), st.data())
def test_a_packed_layer_with_zero_points_means_what_its_codes_do(
    layer: IntLinear, data: st.DataObject
) -> None:
    zero_points = data.draw(
        hnp.arrays(np.int8, layer.scales.shape, elements=st.integers(-8, 7)), label="zero points"
    )
    layer = replace(layer, zero_points=zero_points)
    blob, scales = pack_for_nbits(layer, layer.group_size)
    read = slow_read_nbits(blob, scales, 4, pack_zero_points(zero_points))
    np.testing.assert_array_equal(read, layer.dequantize())
    expected = layer.codes.astype(np.float32) - np.repeat(zero_points, layer.group_size, axis=1)
    np.testing.assert_array_equal(
        layer.dequantize(), expected * np.repeat(layer.scales, layer.group_size, axis=1)
    )


@pytest.mark.parametrize("accuracy_level", [1, 4])
def test_the_kernel_reads_zero_points_as_packed(accuracy_level: int) -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(-8, 8, (32, 192)).astype(np.int8)
    scales = rng.uniform(0.01, 0.1, (32, 3)).astype(np.float32)  # an odd number of groups
    zero_points = rng.integers(-8, 8, (32, 3)).astype(np.int8)
    layer = replace(linear(codes, scales, 4), zero_points=zero_points)
    x = rng.standard_normal((1, 192)).astype(np.float32)
    found = _run_nbits(
        x, *pack_for_nbits(layer, 64), 192, 4, 64,
        zeros=pack_zero_points(zero_points), accuracy_level=accuracy_level,
    )  # fmt: skip
    expected = x @ layer.dequantize().T
    # level 4 rounds x to 8 bits in each group: half a step of 3.5 / 127, 192 products with
    # weights up to 1.5, errors add up like a random walk
    limit = 1e-3 if accuracy_level == 1 else 0.5
    assert np.abs(found - expected).max() < limit
    # and a symmetric reading is another product: the comparison could fail
    plain = x @ replace(layer, zero_points=None).dequantize().T
    assert np.abs(plain - expected).max() > 2 * limit


def test_int8_codes_become_unsigned_around_128() -> None:
    codes = np.array([[-128, -1, 0, 127] + [0] * 12], np.int8)
    blob, _ = pack_for_nbits(linear(codes, np.ones((1, 1), np.float32), 8), 16)
    assert blob[0, 0, :4].tolist() == [0, 127, 128, 255]


@pytest.mark.parametrize(("bits", "columns", "group"), [(4, 64, 32), (8, 64, 32), (8, 80, 32)])
def test_the_kernel_reads_a_blob_as_packed(bits: int, columns: int, group: int) -> None:
    rng = np.random.default_rng(0)
    half = 1 << (bits - 1)
    codes = rng.integers(-half, half, (8, columns)).astype(np.int8)
    count = columns // group if bits == 4 else 1
    scales = rng.uniform(0.01, 0.1, (8, count)).astype(np.float32)
    layer = linear(codes, scales, bits)
    x = rng.standard_normal((1, columns)).astype(np.float32)
    found = _run_nbits(x, *pack_for_nbits(layer, group), columns, bits, group)
    # fp32 sums in another order: 80 products of magnitude <= 128 x 0.1 x 3, half an ulp each
    np.testing.assert_allclose(found, x @ layer.dequantize().T, rtol=1e-4, atol=1e-3)


def _run_nbits(
    x: Floats, blob: NDArray[np.uint8], scales: Floats, columns: int, bits: int, group: int,
    *, zeros: NDArray[np.uint8] | None = None, accuracy_level: int = 1,
) -> Floats:  # fmt: skip
    rows = blob.shape[0]
    stored = [] if zeros is None else [numpy_helper.from_array(zeros, "z")]
    node = helper.make_node(
        "MatMulNBits", ["x", "b", "s", *(tensor.name for tensor in stored)], ["y"],
        domain="com.microsoft",
        N=rows, K=columns, bits=bits, block_size=group, accuracy_level=accuracy_level,
    )  # fmt: skip
    graph = helper.make_graph(
        [node],
        "one",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape),
            helper.make_tensor_value_info("b", TensorProto.UINT8, blob.shape),
            helper.make_tensor_value_info("s", TensorProto.FLOAT, scales.shape),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, rows))],
        stored,
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    result: Floats = session.run(None, {"x": x, "b": blob, "s": scales})[0]
    return result


WEIGHTS = hnp.arrays(
    np.float32, (2, 64), elements=st.floats(-100, 100, width=32, allow_subnormal=False)
)


@RELAXED
@given(WEIGHTS, st.sampled_from([16, 32]))
def test_rounding_to_8_bits_is_off_by_half_a_step_at_most(weights: Floats, group: int) -> None:
    rounded = round_to_int(weights, 8, group)
    steps = np.repeat(rounded.scales, group, axis=1)
    # scales are rounded to fp32 and codes reach 127: 127 x 2^-24 of a step more than half
    assert (np.abs(weights - rounded.dequantize()) <= steps * (0.5 + 1e-4) + 1e-30).all()


@RELAXED
@given(WEIGHTS, st.sampled_from([16, 32]))
def test_rounding_to_4_bits_is_off_by_half_a_step_but_at_the_far_end(
    weights: Floats, group: int
) -> None:
    rounded = round_to_int(weights, 4, group)
    steps = np.repeat(rounded.scales, group, axis=1)
    off = np.abs(weights - rounded.dequantize())
    # codes end at -8 and 7: the side opposite to the extreme value is cut by up to one step
    is_cut = weights / steps > 7.5
    assert (off <= np.abs(steps) * np.where(is_cut, 1, 0.5) * (1 + 1e-4) + 1e-30).all()


def test_the_extreme_of_a_group_is_minus_eight() -> None:
    weights = np.zeros((1, 16), np.float32)
    weights[0, :3] = [1.0, -0.5, 0.25]
    rounded = round_to_int(weights, 4, 16)
    # 1 becomes -8, so the step is -1/8: -0.5 is 4 and 0.25 is -2
    assert rounded.scales.tolist() == [[-0.125]]
    assert rounded.codes[0, :4].tolist() == [-8, 4, -2, 0]


@pytest.mark.parametrize("bits", [4, 8])
def test_a_group_of_zeros_stays_zero(bits: int) -> None:
    rounded = round_to_int(np.zeros((2, 32), np.float32), bits, 32)
    assert np.isfinite(rounded.scales).all()
    assert not rounded.dequantize().any()


def test_scaled_outputs_scale_the_rows() -> None:
    layer = linear(np.array([[2, -3], [4, 5]], np.int8), np.array([[0.5], [1]], np.float32), 8)
    scaled = layer.scale_outputs(np.array([2, 10], np.float32))
    # rows (1, -1.5) and (4, 5), times 2 and 10
    assert scaled.dequantize().tolist() == [[2, -3], [40, 50]]


def test_stacked_layers_lie_one_after_the_other() -> None:
    one = linear(np.full((2, 16), 1, np.int8), np.ones((2, 1), np.float32), 8)
    two = linear(np.full((3, 16), 2, np.int8), np.full((3, 1), 0.5, np.float32), 8)
    both = stack([one, two])
    assert both.codes[:, 0].tolist() == [1, 1, 2, 2, 2]
    assert both.scales[:, 0].tolist() == [1, 1, 0.5, 0.5, 0.5]
    assert both.zero_points is None
    zeros = [np.full((rows, 1), rows, np.int8) for rows in (2, 3)]
    both = stack([replace(one, zero_points=zeros[0]), replace(two, zero_points=zeros[1])])
    assert both.zero_points is not None
    assert both.zero_points[:, 0].tolist() == [2, 2, 3, 3, 3]


def test_layers_share_an_input_only_with_equal_scales_bits_and_groups() -> None:
    codes, scales = np.zeros((2, 32), np.int8), np.ones((2, 2), np.float32)
    pre = np.arange(32, dtype=np.float32)
    plain, scaled = linear(codes, scales, 4), linear(codes, scales, 4, pre)
    assert same_input([scaled, linear(codes, scales, 4, pre.copy())])
    assert not same_input([plain, scaled])
    assert not same_input([scaled, linear(codes, scales, 4, pre + 1)])
    assert not same_input([plain, linear(codes, scales, 8)])
    assert not same_input([plain, linear(codes, scales[:, :1], 4)])
    zeroed = replace(plain, zero_points=np.zeros((2, 2), np.int8))
    assert same_input([zeroed, replace(zeroed)])
    assert not same_input([plain, zeroed])


def test_row_chunks_cover_a_tensor_once_in_bounded_pieces(make_tiny: Callable[..., Path]) -> None:
    info = read_checkpoint(make_tiny()).tensors["model.embed_tokens.weight"]
    # 8 Mi values at most: 2^23 / 2^20 = 8 rows of a million
    large = replace(info, shape=(20, 1 << 20))
    assert list(row_chunks(large)) == [(0, 8), (8, 16), (16, 20)]
    # a row wider than that is still read alone
    assert list(row_chunks(replace(info, shape=(2, 1 << 24)))) == [(0, 1), (1, 2)]


def test_a_floating_point_layer_has_no_codes(make_tiny: Callable[..., Path]) -> None:
    assert read_linear(read_checkpoint(make_tiny()), "model.layers.0.mlp.up_proj") is None


def test_scales_that_do_not_divide_the_width_are_refused(
    make_tiny: Callable[..., Path], make_quantized: Callable[..., tuple[Path, Path]]
) -> None:

    path, _ = make_quantized(make_tiny(), 4, 32, {})
    tensors = load_file(path / "model.safetensors")
    name = "model.layers.0.mlp.up_proj"
    tensors[f"{name}.weight_scale"] = np.ones((160, 3), np.float32)
    save_file(tensors, path / "model.safetensors")
    with pytest.raises(CheckpointError, match="64 inputs, 3 scales a row"):
        read_linear(read_checkpoint(path), name)


@pytest.mark.parametrize(
    ("zero_points", "message"),
    [
        (np.zeros((160, 3), np.int8), r"up_proj\.weight_zero_point is int8 \[160, 3\], not int8"),
        (np.zeros((160, 2), np.uint8), r"is uint8 \[160, 2\], not int8 \[160, 2\]"),
    ],
)
def test_zero_points_of_another_shape_or_type_are_refused(
    zero_points: NDArray[Any], message: str, make_tiny: Callable[..., Path],
    make_quantized: Callable[..., tuple[Path, Path]],
) -> None:  # fmt: skip
    path, _ = make_quantized(make_tiny(), 4, 32, {})
    tensors = load_file(path / "model.safetensors")
    name = "model.layers.0.mlp.up_proj"
    tensors[f"{name}.weight_zero_point"] = zero_points
    save_file(tensors, path / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        read_linear(read_checkpoint(path), name)


def test_scales_beside_floating_point_weights_are_refused(
    make_tiny: Callable[..., Path], make_quantized: Callable[..., tuple[Path, Path]]
) -> None:

    path, _ = make_quantized(make_tiny(), 8, None, {})
    tensors = load_file(path / "model.safetensors")
    name = "model.layers.0.mlp.up_proj"
    tensors[f"{name}.weight"] = np.ones((160, 64), np.float16)
    save_file(tensors, path / "model.safetensors")
    with pytest.raises(CheckpointError, match="has scales but type float16"):
        read_linear(read_checkpoint(path), name)


@pytest.mark.parametrize("group", [16, 256])
def test_a_layer_that_fills_its_groups_differently_is_stored_for_each_graph(
    group: int, make_tiny: MakePath, make_quantized: Callable[..., tuple[Path, Path]],
    export_graph: MakePath, hf_logits: Logits,
) -> None:  # fmt: skip
    # 64 inputs are four groups of 16 in both graphs; in groups of 256 they are filled up to one of
    # 256 on a processor and to one of 128, the most it has, on CUDA
    checkpoint, plain = make_quantized(make_tiny(), 8, None, {})
    graph = export_graph(checkpoint, Storage(linear_bits=8, group_size=group))
    bytes_of = [
        {
            int(entry.value)
            for tensor in onnx.load(graph / name, load_external_data=False).graph.initializer
            if "0.self_attn.qkv_proj.int8" in tensor.name
            for entry in tensor.external_data
            if entry.key == "length"
        }
        for name in ("model.onnx", "model_fp16.onnx")
    ]
    assert bytes_of == ([{128 * 256}, {128 * 128}] if group == 256 else [{128 * 64}] * 2)
    ids = [int(i) for i in np.random.default_rng(3).integers(0, 384, 24)]
    expected = hf_logits(plain, ids)
    for provider in (CPU, FP16_ON_CPU):
        session = open_on(provider, graph, context_tokens=64, num_slots=1, threads=1)
        found = session.prefill(0, ids, num_logits=24)
        # activations at 8 bits: a percent of the spread; weights in another's place, all of it
        assert np.abs(found - expected).max() <= 0.1 * expected.std()
        session.close()
