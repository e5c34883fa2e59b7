"""The linear layers of a checkpoint, in the layouts of ONNX Runtime's kernels.

ModelOpt's unified checkpoint stores an INT4 weight as uint8 `[N / 2, K]`, two output rows per byte
(low nibble = even row, two's complement), with `weight_scale` float `[N, K / group]`; an INT8 one
as int8 `[N, K]` with `weight_scale` `[N]`. An optional `pre_quant_scale` `[K]` multiplies the
layer's input; an optional `weight_zero_point`, int8 `[N, K / group]`, is edgekit's own
(`quantize.zero_points`). MatMulNBits wants unsigned codes around a zero point of 2^(bits-1), as
uint8 `[N, K / group, group * bits / 8]`, low nibble = even input, and other zero points as uint8
`[N, ceil(K / group * bits / 8)]`, low nibble = even group; DynamicQuantizeMatMul wants `[K, N]`.
N is the output width, K the input width of a linear layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edgekit.checkpoint import ZERO_POINT, Checkpoint, TensorInfo, read_rows, read_tensor
from edgekit.errors import CheckpointError

Floats = NDArray[np.float32]
_CHUNK_VALUES = 8 * 1024**2
"""Rows are read in chunks of about this many values: 32 MiB as float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IntLinear:
    """Quantized weights of one linear layer (or of several that read the same input)."""

    codes: NDArray[np.int8]
    """`[N, K]`; of FP8 weights the values themselves (`ml_dtypes.float8_e4m3fn`)."""
    scales: Floats
    """`[N, K / group]`, or `[N, 1]` for one scale per output channel."""
    bits: int
    pre_quant_scale: Floats | None
    """`[K]`, multiplies the input; `None`: all ones."""
    zero_points: NDArray[np.int8] | None = None
    """`[N, K / group]`, codes that stand for 0; `None`: 0 does."""
    input_scale: float | None = None
    """FP8: activations are divided by it and rounded before they enter; `None`: they are not."""

    @property
    def group_size(self) -> int:
        """Weights per scale; K for per-channel scales."""
        return int(self.codes.shape[1] // self.scales.shape[1])

    def scale_outputs(self, factors: Floats) -> IntLinear:
        """The same layer with output row i multiplied by `factors[i]`: exact up to rounding."""
        return replace(self, scales=self.scales * factors[:, None])

    def dequantize(self) -> Floats:
        """The weights `[N, K]` that the codes stand for, without `pre_quant_scale`."""
        weights: Floats = self.codes.astype(np.float32)
        if self.zero_points is not None:
            weights -= np.repeat(self.zero_points, self.group_size, axis=1)
        weights *= np.repeat(self.scales, self.group_size, axis=1)
        return weights


def read_linear(checkpoint: Checkpoint, layer: str) -> IntLinear | None:
    """A quantized layer, or `None` when its weights are floating point."""
    scale = checkpoint.tensors.get(f"{layer}.weight_scale")
    if scale is None:
        return None
    info = checkpoint.tensors[f"{layer}.weight"]
    packed = read_tensor(info)
    scales = read_tensor(scale).astype(np.float32)
    pre = checkpoint.tensors.get(f"{layer}.pre_quant_scale")
    if info.dtype == "F8_E4M3":
        return _read_fp8(checkpoint, layer, packed, scales)
    if packed.dtype == np.uint8:
        codes, bits = unpack_int4(packed), 4
    elif packed.dtype == np.int8:
        codes, bits = packed, 8
    else:
        raise CheckpointError(f"{layer}.weight has scales but type {packed.dtype}")
    scales = scales.reshape(codes.shape[0], -1)
    if codes.shape[1] % scales.shape[1]:
        raise CheckpointError(f"{layer}: {codes.shape[1]} inputs, {scales.shape[1]} scales a row")
    return IntLinear(
        codes=codes,
        scales=scales,
        bits=bits,
        pre_quant_scale=None if pre is None else read_tensor(pre).astype(np.float32),
        zero_points=read_zero_points(checkpoint, layer, scales.shape),
    )


def read_zero_points(
    checkpoint: Checkpoint, layer: str, shape: tuple[int, ...]
) -> NDArray[np.int8] | None:
    """A layer's zero points, `shape` being that of its scales; `None`: it is symmetric."""
    info = checkpoint.tensors.get(f"{layer}{ZERO_POINT}")
    if info is None:
        return None
    zero_points = read_tensor(info)
    if zero_points.dtype != np.int8 or zero_points.shape != shape:
        raise CheckpointError(
            f"{info.name} is {zero_points.dtype} {list(zero_points.shape)}, not int8 {list(shape)}",
            hint="quantize again with `edgekit quantize`",
        )
    return zero_points


def require_symmetric(checkpoint: Checkpoint) -> None:
    """Raises `CheckpointError` for a checkpoint whose weights have zero points."""
    if checkpoint.has_zero_points:
        raise CheckpointError(
            f"this format has no zero points, and the weights in {checkpoint.path} have",
            hint="quantize again, for the device that the engine is for",
        )


def _read_fp8(
    checkpoint: Checkpoint, layer: str, bits: NDArray[np.uint8], scale: Floats
) -> IntLinear:
    """ModelOpt's FP8: one scale for the matrix, one for what enters it."""
    import ml_dtypes  # comes with onnx

    entering = checkpoint.tensors.get(f"{layer}.input_scale")
    return IntLinear(
        codes=bits.view(ml_dtypes.float8_e4m3fn),
        scales=np.broadcast_to(scale.reshape(-1, 1), (len(bits), 1)),
        bits=8,
        pre_quant_scale=None,
        input_scale=None if entering is None else float(read_tensor(entering).max()),
    )


def unpack_int4(packed: NDArray[np.uint8]) -> NDArray[np.int8]:
    """ModelOpt's `[N / 2, K]` bytes -> codes `[N, K]` in -8..7."""
    rows, columns = packed.shape
    codes = np.empty((rows * 2, columns), np.int8)
    # shifting the nibble to the top and back extends its sign
    codes[0::2] = (packed << 4).view(np.int8) >> 4
    codes[1::2] = packed.view(np.int8) >> 4
    return codes


def stack(layers: Sequence[IntLinear]) -> IntLinear:
    """Layers that read the same input as one with their outputs side by side.

    They must agree in bits, group, input scales and whether they have zero points; `same_input`
    tells.
    """
    zero_points = [layer.zero_points for layer in layers if layer.zero_points is not None]
    return replace(
        layers[0],
        codes=np.concatenate([layer.codes for layer in layers]),
        scales=np.concatenate([layer.scales for layer in layers]),
        zero_points=np.concatenate(zero_points) if zero_points else None,
    )


def same_input(layers: Sequence[IntLinear]) -> bool:
    """Whether `stack` may join them."""
    first = layers[0]
    return all(
        layer.bits == first.bits
        and layer.scales.shape[1] == first.scales.shape[1]
        and layer.input_scale == first.input_scale
        and (layer.zero_points is None) == (first.zero_points is None)
        and _equal(layer.pre_quant_scale, first.pre_quant_scale)
        for layer in layers
    )


def _equal(a: Floats | None, b: Floats | None) -> bool:
    if a is None or b is None:
        return a is b
    return bool(np.array_equal(a, b))


def pack_for_nbits(layer: IntLinear, group_size: int) -> tuple[NDArray[np.uint8], Floats]:
    """MatMulNBits' `B` `[N, ceil(K / g), g * bits / 8]` and scales `[N, ceil(K / g)]`.

    Per-channel scales are repeated for every group. Inputs beyond K are padded with what stands for
    0 in a symmetric layer. `group_size` must divide the layer's own, and be a power of two of at
    least 16.
    """
    rows, columns = layer.codes.shape
    groups = -(-columns // group_size)
    zero = 1 << (layer.bits - 1)
    codes = np.full((rows, groups * group_size), zero, np.uint8)
    # +zero wraps within uint8, which is what two's complement needs
    codes[:, :columns] = layer.codes.view(np.uint8) + np.uint8(zero)
    if layer.bits == 4:
        codes &= 0x0F
        codes = codes[:, 0::2] | (codes[:, 1::2] << 4)
    blob = codes.reshape(rows, groups, group_size * layer.bits // 8)
    per_group = np.repeat(layer.scales, max(1, layer.group_size // group_size), axis=1)
    if layer.scales.shape[1] == 1:
        per_group = np.broadcast_to(layer.scales, (rows, groups))
    return blob, np.ascontiguousarray(per_group, dtype=np.float32)


def pack_zero_points(zero_points: NDArray[np.int8]) -> NDArray[np.uint8]:
    """MatMulNBits' `zero_points` `[N, ceil(groups / 2)]` of 4-bit codes, from `[N, groups]`."""
    rows, groups = zero_points.shape
    unsigned = np.zeros((rows, groups + groups % 2), np.uint8)
    unsigned[:, :groups] = zero_points + 8
    packed: NDArray[np.uint8] = unsigned[:, 0::2] | (unsigned[:, 1::2] << 4)
    return packed


def row_chunks(info: TensorInfo) -> Iterator[tuple[int, int]]:
    """Row ranges that cover a 2-D tensor in pieces of bounded size."""
    step = max(1, _CHUNK_VALUES // info.shape[1])
    for start in range(0, info.shape[0], step):
        yield start, min(start + step, info.shape[0])


def read_float_rows(info: TensorInfo) -> Iterator[NDArray[np.floating]]:
    """A floating-point matrix, chunk by chunk."""
    for start, stop in row_chunks(info):
        yield read_rows(info, start, stop)


def round_to_int(rows: NDArray[np.floating], bits: int, group_size: int) -> IntLinear:
    """Round-to-nearest, symmetric, in groups along the input axis.

    At 8 bits the scale is amax / 127. At 4 bits it is taken from the signed extreme value, which
    becomes -8 exactly: the full range of codes is used, one more than amax / 7 would.
    """
    count, columns = rows.shape
    grouped = rows.astype(np.float32).reshape(count, columns // group_size, group_size)
    if bits == 8:
        scales = np.abs(grouped).max(axis=2) / 127
    else:
        extreme = np.take_along_axis(grouped, np.abs(grouped).argmax(axis=2)[..., None], axis=2)[
            ..., 0
        ]
        scales = extreme / -(1 << (bits - 1))
    safe = np.where(scales == 0, 1, scales)
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    codes = np.clip(np.rint(grouped / safe[..., None]), low, high).astype(np.int8)
    return IntLinear(
        codes=codes.reshape(count, columns),
        scales=safe.astype(np.float32),
        bits=bits,
        pre_quant_scale=None,
    )
