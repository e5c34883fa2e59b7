"""ModelOpt's NVFP4 on a processor: its simulation has a kernel for GPUs alone.

Its own arithmetic for files (`NVFP4QTensor`) is plain torch; a tensor that went through it and back
is what the simulation gives.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def blocks_on_processor(model: Any) -> Iterator[None]:
    """Simulate blocks of E2M1 numbers on a processor, where the model is on one."""
    from modelopt.torch.quantization import tensor_quant

    if model.device.type != "cpu":
        yield
        return
    found = tensor_quant.dynamic_block_quantize_op
    tensor_quant.dynamic_block_quantize_op = _through_file
    try:
        yield
    finally:
        tensor_quant.dynamic_block_quantize_op = found


def _through_file(
    inputs: Any, block_size: int, amax: Any, num_bits: int, exponent_bits: int, *scale_bits: int
) -> Any:
    """`inputs` rounded to 4 bits, blocks of E4M3 scales: `dynamic_block_quantize_op` for NVFP4."""
    from modelopt.torch.quantization.qtensor import NVFP4QTensor

    if (num_bits, exponent_bits, scale_bits) != (4, 2, (8, 4)):
        raise ValueError(f"not NVFP4: {num_bits} bits, scales of {scale_bits[0]}")
    scale = amax.float().amax() / (6.0 * 448.0)
    packed, steps, _ = NVFP4QTensor.quantize(inputs, block_size, weights_scaling_factor_2=scale)
    return packed.dequantize(
        dtype=inputs.dtype, scale=steps, double_scale=scale, block_sizes={-1: block_size}
    )
