"""The data file of an exported graph: tensors appended one after the other, each written once.

ONNX external data: an initializer names a file, an offset and a length, so that several graphs
(and several initializers of different shape) can share the same bytes. Large tensors begin on a
page, which lets the reader map them instead of copying. A tensor comes in chunks of rows, so that
the largest one never has to be in memory whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import CheckpointError

if TYPE_CHECKING:
    import onnx

Array = NDArray[Any]
Chunks = Callable[[], Iterable[Array]]
"""Called once, when the tensor is not stored yet; yields its rows from first to last."""

ONNX_ONLY = ("INT4", "FLOAT8E4M3FN")
"""Types that numpy has not, by their ONNX names: stored as bytes, two INT4 values in each, the low
nibble first."""
_PAGE_BYTES = 4096
_LINE_BYTES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """Where a tensor lies in the data file."""

    dtype: str
    """A numpy name: `"float16"`, `"uint8"`, …, or one of `ONNX_ONLY`."""
    shape: tuple[int, ...]
    offset: int
    num_bytes: int


class TensorStore:
    """Appends tensors to one file and remembers where each lies."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO = path.open("wb")
        self._tensors: dict[str, StoredTensor] = {}

    def add(self, name: str, dtype: str, shape: tuple[int, ...], chunks: Chunks) -> str:
        """Store a tensor unless one of that name is there. Returns the name."""
        if name in self._tensors:
            return name
        num_bytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        step = _PAGE_BYTES if num_bytes >= _PAGE_BYTES else _LINE_BYTES
        offset = -(-self._file.tell() // step) * step
        self._file.seek(offset)
        for chunk in chunks():
            rows = np.ascontiguousarray(chunk)
            if rows.dtype != np.dtype(dtype):
                raise ValueError(f"{name}: chunk of {rows.dtype}, expected {dtype}")
            self._file.write(rows.reshape(-1).view(np.uint8).data)
        written = self._file.tell() - offset
        if written != num_bytes:
            raise ValueError(f"{name}: {written} bytes in chunks, {num_bytes} in {shape}")
        self._tensors[name] = StoredTensor(
            dtype=dtype, shape=shape, offset=offset, num_bytes=num_bytes
        )
        return name

    def add_array(self, name: str, array: Array) -> str:
        """Store a tensor that is in memory already."""
        return self.add(name, array.dtype.name, array.shape, lambda: [array])

    def alias(self, name: str, of: str, shape: tuple[int, ...], *, dtype: str = "") -> str:
        """The same bytes as `of` under another name, shape and perhaps type. Returns the name."""
        source = self._tensors[of]
        kind = dtype or source.dtype
        if kind not in ONNX_ONLY:
            num_bytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(kind).itemsize
            if num_bytes != source.num_bytes:
                raise ValueError(f"{name}: {num_bytes} bytes in {shape}, {of}: {source.num_bytes}")
        self._tensors[name] = StoredTensor(
            dtype=kind,
            shape=shape,
            offset=source.offset,
            num_bytes=source.num_bytes,
        )
        return name

    def __getitem__(self, name: str) -> StoredTensor:
        return self._tensors[name]

    def initializer(self, name: str) -> onnx.TensorProto:
        """An ONNX initializer that points at the stored tensor."""
        import onnx

        tensor = self._tensors[name]
        if tensor.dtype in ONNX_ONLY:
            data_type = onnx.TensorProto.DataType.Value(tensor.dtype)
        else:
            data_type = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype))
        proto = onnx.TensorProto(
            name=name,
            dims=tensor.shape,
            data_type=data_type,
            data_location=onnx.TensorProto.EXTERNAL,
        )
        for key, value in (
            ("location", self.path.name),
            ("offset", str(tensor.offset)),
            ("length", str(tensor.num_bytes)),
        ):
            proto.external_data.add(key=key, value=value)
        return proto

    def close(self) -> None:
        """Finish the file. Safe to call twice."""
        self._file.close()


def to_float16(array: Array, name: str) -> NDArray[np.float16]:
    """Round to fp16. Raises `CheckpointError` where a finite weight would become infinite."""
    if array.dtype == np.float16:
        return array
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    if not np.isfinite(half).all():
        largest = float(np.abs(array).max())
        raise CheckpointError(f"a weight of {name} is beyond the range of fp16: {largest:g}")
    return half
