"""Numbers as Edge-LLM's kernels read them, worked out by hand."""

from __future__ import annotations

import torch

from edgekit.backends.edge_llm import rounding


def test_int4_has_the_even_row_in_the_low_nibble_and_twos_complement() -> None:
    # one byte a column: rows 0 and 1; 0x7 = 7, 0x8 = -8, 0xF = -1
    packed = torch.tensor([[0x87, 0x1F]], dtype=torch.uint8)
    scales = torch.tensor([[2.0], [0.5]])
    weights = rounding.from_int4(packed, scales)
    assert weights.tolist() == [[14.0, -2.0], [-4.0, 0.5]]


def test_int4_scales_are_fp16_to_the_kernel() -> None:
    packed = torch.tensor([[0x01]], dtype=torch.uint8)
    scale = 1 + 2**-12  # fp16 has 10 bits behind the point
    assert rounding.from_int4(packed, torch.tensor([[scale], [scale]])).tolist() == [[1.0], [0.0]]


def test_int8_has_a_scale_for_each_output() -> None:
    codes = torch.tensor([[-127, 2], [3, 4]], dtype=torch.int8)
    assert rounding.from_int8(codes, torch.tensor([0.5, 2.0])).tolist() == [
        [-63.5, 1.0],
        [6.0, 8.0],
    ]


def test_fp8_is_e4m3_and_its_scale_fp16() -> None:
    bits = torch.tensor([[448.0, -1.5]]).to(torch.float8_e4m3fn).view(torch.uint8)
    # 1e-8 is less than half of the smallest fp16
    assert rounding.from_fp8(bits, torch.tensor(1e-8)).tolist() == [[0.0, 0.0]]
    assert rounding.from_fp8(bits, torch.tensor(0.5)).tolist() == [[224.0, -0.75]]


def test_nvfp4_has_the_even_column_in_the_low_nibble_and_two_scales() -> None:
    # codes 1 = 0.5, 7 = 6, 9 = -0.5, 15 = -6; then fourteen zeros
    packed = torch.zeros(1, 8, dtype=torch.uint8)
    packed[0, 0], packed[0, 1] = 0x71, 0xF9
    steps = torch.tensor([[2.0]]).to(torch.float8_e4m3fn).view(torch.uint8)
    weights = rounding.from_nvfp4(packed, steps, torch.tensor(0.25))
    assert weights[0, :4].tolist() == [0.25, 3.0, -0.25, -3.0]
    assert not weights[0, 4:].any()


def test_activations_of_nvfp4_take_the_scale_of_their_block_and_ties_to_even() -> None:
    x = torch.zeros(1, 32)
    x[0, :5] = torch.tensor([6.0, 2.5, 3.5, -0.25, 0.75])  # a block whose step is 1
    x[0, 16] = 600.0  # another, whose step is 100 → 96 or 104 in E4M3
    rounded = rounding.to_nvfp4(x, torch.tensor(1.0))
    # 2.5 lies between 2 and 3, 3.5 between 3 and 4, 0.75 between 0.5 and 1
    assert rounded[0, :5].tolist() == [6.0, 2.0, 4.0, 0.0, 1.0]
    assert rounded[0, 16] in (576.0, 624.0)


def test_what_is_beyond_a_type_is_its_largest_value() -> None:
    x = torch.tensor([1e6, -1e6])
    assert rounding.to_int8(x, torch.tensor(1.0)).tolist() == [127.0, -128.0]
    assert rounding.to_fp8(x, torch.tensor(1.0)).tolist() == [448.0, -448.0]
    assert rounding.to_e4m3(x, torch.tensor(2.0)).tolist() == [896.0, -896.0]
