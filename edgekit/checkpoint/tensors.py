"""Read single tensors of a checkpoint into memory.

With plain file reads, not a memory map: pages of a map count as resident until the kernel takes
them back, and a step that walks through 16 GB of weights would look as if it held them all.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from edgekit.checkpoint.safetensors import DTYPE_BYTES, TensorInfo
from edgekit.errors import CheckpointError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_NUMPY_DTYPES = {
    "BOOL": "?",
    "U8": "<u1",
    "I8": "<i1",
    "F8_E4M3": "<u1",
    "F8_E5M2": "<u1",
    "U16": "<u2",
    "I16": "<i2",
    "F16": "<f2",
    "BF16": "<u2",
    "U32": "<u4",
    "I32": "<i4",
    "F32": "<f4",
    "U64": "<u8",
    "I64": "<i8",
    "F64": "<f8",
}


def read_tensor(info: TensorInfo) -> NDArray[Any]:
    """The whole tensor, writable, in `info.shape`.

    BF16 comes as float32 (exact); the two FP8 kinds come as uint8 bit patterns, since numpy has
    none of the three. Raises `CheckpointError` when the file ends too early.
    """
    import numpy as np

    count = info.num_bytes // DTYPE_BYTES[info.dtype]
    dtype = np.dtype(_NUMPY_DTYPES[info.dtype])
    try:
        array = np.fromfile(info.path, dtype=dtype, count=count, offset=info.offset)
    except FileNotFoundError as exc:
        raise CheckpointError(f"the checkpoint has lost a file: {info.path}") from exc
    if array.size != count:
        raise CheckpointError(
            f"{info.path} ends in the middle of {info.name}", hint="download or copy it again"
        )
    if info.dtype == "BF16":
        # bfloat16 is the upper half of a float32
        array = (array.astype(np.uint32) << 16).view(np.float32)
    return array.reshape(info.shape)


def read_rows(info: TensorInfo, start: int, stop: int) -> NDArray[Any]:
    """Rows `start` to `stop` (exclusive) of a tensor `[rows, columns]`; dtypes as `read_tensor`.

    Reads nothing else of the file. Raises `ValueError` for a range outside the tensor.
    """
    if len(info.shape) != 2 or not 0 <= start <= stop <= info.shape[0]:
        raise ValueError(f"no rows {start} to {stop} in {info.name} of shape {info.shape}")
    columns = info.shape[1]
    row_bytes = columns * DTYPE_BYTES[info.dtype]
    rows = replace(
        info,
        shape=(stop - start, columns),
        offset=info.offset + start * row_bytes,
        num_bytes=(stop - start) * row_bytes,
    )
    return read_tensor(rows)
