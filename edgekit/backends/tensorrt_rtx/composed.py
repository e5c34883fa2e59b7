"""Operators for which TensorRT-RTX has no layer, composed of those that it has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from edgekit.backends.tensorrt_rtx.log import import_bindings
from edgekit.errors import BackendError

Constant = Callable[[np.ndarray[Any, Any]], Any]
"""Makes a constant of the network, and keeps its memory."""


def rms_norm(network: Any, constant: Constant, x: Any, weight: Any, epsilon: float) -> Any:
    """The last layer of RMSNorm over the last axis, in fp32 up to the weight.

    INormalization subtracts the mean. The compiler makes one kernel of what is written out here.
    """
    trt = import_bindings()
    operation, unary, rank = trt.ElementWiseOperation, trt.UnaryOperation, len(x.shape)

    def pair(a: Any, b: Any, kind: Any) -> Any:
        return network.add_elementwise(a, b, kind).get_output(0)

    wide = network.add_cast(x, trt.float32).get_output(0)
    squares = pair(wide, wide, operation.PROD)
    mean = network.add_reduce(squares, trt.ReduceOperation.AVG, 1 << (rank - 1), True)
    small = constant(np.full((1,) * rank, epsilon, np.float32))
    moved = pair(mean.get_output(0), small, operation.SUM)
    root = network.add_unary(moved, unary.SQRT).get_output(0)
    inverse = network.add_unary(root, unary.RECIP).get_output(0)
    normed = network.add_cast(pair(wide, inverse, operation.PROD), trt.float16).get_output(0)
    return network.add_elementwise(normed, weight, operation.PROD)


def look_up_bytes(
    network: Any, constant: Constant, address: int, shape: tuple[int, ...], index: Any
) -> Any:
    """Rows `index [B, T]` of the INT8 table `[V, H]` at `address`, as int32 `[B, T, H]`.

    TensorRT takes INT8 constants for quantized weights and looks nothing up in them, so four
    bytes travel as one INT32 and are taken apart behind it. Raises `BackendError` where H is not
    a multiple of 4.
    """
    trt = import_bindings()
    operation = trt.ElementWiseOperation
    rows, columns = shape
    if columns % 4:
        raise BackendError(
            f"an embedding of {columns} columns cannot be stored at 8 bits: not a multiple of 4"
        )
    words = trt.Weights(trt.int32, address, rows * columns // 4)
    table = network.add_constant((rows, columns // 4), words).get_output(0)
    rest = network.add_gather(table, index, 0).get_output(0)

    def with_number(value: Any, number: int, kind: Any) -> Any:
        number_of = constant(np.array([[[number]]], np.int32))
        return network.add_elementwise(value, number_of, kind).get_output(0)

    def difference(value: Any, other: Any, times: int) -> Any:
        scaled = with_number(other, times, operation.PROD)
        return network.add_elementwise(value, scaled, operation.SUB).get_output(0)

    found: list[Any] = []
    for place in (3, 2, 1, 0):  # from the highest byte, whose sign is the word's
        value = with_number(rest, 1 << (8 * place), operation.FLOOR_DIV) if place else rest
        rest = difference(rest, value, 1 << (8 * place))
        if place < 3:
            value = difference(value, with_number(value, 128, operation.FLOOR_DIV), 256)
        single = network.add_shuffle(value)
        single.reshape_dims = (0, 0, 0, 1)
        found.insert(0, single.get_output(0))
    together = network.add_concatenation(found)
    together.axis = 3
    flat = network.add_shuffle(together.get_output(0))
    flat.reshape_dims = (0, 0, columns)
    return flat.get_output(0)
