"""The header of a GGUF file: metadata and where the tensors lie. Loads no weight.

Ours rather than `gguf.GGUFReader`: that one maps the whole file into memory and, on a damaged
length, loops or allocates without end. Layout: docs/gguf.md of ggml.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from edgekit.errors import CheckpointError, InputError

_SCALARS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_STRING, _ARRAY = 8, 9
_VERSIONS = (2, 3)
_MAX_STRING_BYTES = 64 * 1024**2
_MAX_ARRAY_ITEMS = 16 * 1024**2
_MAX_DIMENSIONS = 4
_AGAIN = "download or copy the file again"


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufTensor:
    """Where one tensor lies, and how its rows are packed."""

    name: str
    quant_type: str
    """As ggml spells it: `"F32"`, `"Q4_1"`, `"Q6_K"`, ..."""
    shape: tuple[int, ...]
    """Row-major, so the reverse of what the file says: `[out, in]` for a linear layer."""
    offset: int
    """Bytes from the start of the file."""
    row_bytes: int
    """Bytes of one row, that is of the last axis."""

    @property
    def num_rows(self) -> int:
        """Rows of all axes but the last."""
        return math.prod(self.shape[:-1])

    @property
    def num_bytes(self) -> int:
        """Stored bytes of the whole tensor."""
        return self.num_rows * self.row_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufFile:
    """A parsed header."""

    path: Path
    metadata: Mapping[str, Any]
    """Scalars, strings, and lists of them."""
    tensors: Mapping[str, GgufTensor]


def read_gguf(path: Path) -> GgufFile:
    """Read the header of a little-endian GGUF file, version 2 or 3.

    Raises `CheckpointError` for anything else, for a part of a split model, and for a file that
    is shorter than its header says.
    """
    with path.open("rb") as file:
        reader = _Reader(file, path)
        num_tensors, num_pairs = _read_preamble(reader, path)
        metadata: dict[str, Any] = {}
        for _ in range(num_pairs):
            key = reader.string()
            if key in metadata:
                raise CheckpointError(f"the GGUF header has {key} twice: {path}", hint=_AGAIN)
            metadata[key] = reader.value(reader.scalar("<I"))
        _refuse_split(metadata, path)
        entries = [_read_entry(reader) for _ in range(num_tensors)]
        start, alignment = file.tell(), _alignment(metadata, path)
        start += -start % alignment
        tensors = [_tensor(entry, path, start, reader.file_bytes) for entry in entries]
    if len({tensor.name for tensor in tensors}) != len(tensors):
        raise CheckpointError(f"the GGUF header has a tensor twice: {path}", hint=_AGAIN)
    return GgufFile(path=path, metadata=metadata, tensors={t.name: t for t in tensors})


class _Reader:
    """Reads from a file that may lie about lengths."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file = file
        self._path = path
        self.file_bytes = path.stat().st_size

    def take(self, count: int) -> bytes:
        if count > self.file_bytes - self._file.tell():
            raise CheckpointError(f"the GGUF file is truncated: {self._path}", hint=_AGAIN)
        return self._file.read(count)

    def scalar(self, code: str) -> Any:
        return struct.unpack(code, self.take(struct.calcsize(code)))[0]

    def string(self) -> str:
        length = self.scalar("<Q")
        if length > _MAX_STRING_BYTES:
            raise self.damaged()
        try:
            return self.take(length).decode("utf-8")
        except UnicodeDecodeError as exc:
            raise self.damaged() from exc

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self._array()
        if kind not in _SCALARS:
            raise self.damaged()
        return self.scalar(_SCALARS[kind])

    def _array(self) -> list[Any]:
        kind, count = self.scalar("<I"), self.scalar("<Q")
        if count > _MAX_ARRAY_ITEMS:
            raise self.damaged()
        if kind == _STRING:
            return [self.string() for _ in range(count)]
        if kind not in _SCALARS:
            raise self.damaged()
        code = _SCALARS[kind][1]
        return list(struct.unpack(f"<{count}{code}", self.take(count * struct.calcsize(code))))

    def damaged(self) -> CheckpointError:
        return CheckpointError(f"the GGUF header is damaged: {self._path}", hint=_AGAIN)


def _read_preamble(reader: _Reader, path: Path) -> tuple[int, int]:
    """Number of tensors and of metadata pairs."""
    if reader.file_bytes < 24 or reader.take(4) != b"GGUF":
        raise CheckpointError(f"not a GGUF file: {path}")
    version = reader.scalar("<I")
    if version & 0xFFFF == 0:
        raise CheckpointError(f"a big-endian GGUF file: {path}", hint="get the usual one")
    if version not in _VERSIONS:
        raise CheckpointError(f"GGUF version {version} instead of 2 or 3: {path}")
    num_tensors, num_pairs = reader.scalar("<Q"), reader.scalar("<Q")
    # a tensor entry has at least 24 bytes, a pair 13
    if num_tensors * 24 + num_pairs * 13 > reader.file_bytes:
        raise reader.damaged()
    return num_tensors, num_pairs


def _refuse_split(metadata: Mapping[str, Any], path: Path) -> None:
    parts = metadata.get("split.count", 0)
    if parts not in (0, 1):
        raise CheckpointError(
            f"the model is split into {parts} GGUF files, of which this is one: {path}",
            hint="join them first: `llama-gguf-split --merge FIRST_PART JOINED.gguf`",
        )


def _alignment(metadata: Mapping[str, Any], path: Path) -> int:
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise CheckpointError(f"the GGUF alignment is not a power of two: {path}", hint=_AGAIN)
    return alignment


def _read_entry(reader: _Reader) -> tuple[str, tuple[int, ...], int, int]:
    """Name, row-major shape, number of the quant type, offset into the data."""
    name = reader.string()
    num_dimensions = reader.scalar("<I")
    if not 1 <= num_dimensions <= _MAX_DIMENSIONS:
        raise reader.damaged()
    shape = tuple(reader.scalar("<Q") for _ in range(num_dimensions))[::-1]
    return name, shape, reader.scalar("<I"), reader.scalar("<Q")


def _tensor(
    entry: tuple[str, tuple[int, ...], int, int], path: Path, start: int, file_bytes: int
) -> GgufTensor:
    name, shape, number, offset = entry
    sizes = _quant_sizes()
    if number not in sizes:
        raise CheckpointError(f"{name} has an unknown quant type, number {number}: {path}")
    quant_type, block_size, block_bytes = sizes[number]
    if shape[-1] % block_size:
        raise CheckpointError(f"the rows of {name} are not whole {quant_type} blocks: {path}")
    tensor = GgufTensor(
        name=name,
        quant_type=quant_type,
        shape=shape,
        offset=start + offset,
        row_bytes=shape[-1] // block_size * block_bytes,
    )
    if tensor.offset + tensor.num_bytes > file_bytes:
        raise CheckpointError(
            f"the GGUF file is truncated: {name} ends at byte {tensor.offset + tensor.num_bytes}, "
            f"the file at {file_bytes}",
            hint=_AGAIN,
        )
    return tensor


def _quant_sizes() -> dict[int, tuple[str, int, int]]:
    """Quant type number -> name, elements per block, bytes per block."""
    try:
        from gguf.constants import GGML_QUANT_SIZES
    except ImportError as exc:
        raise InputError(
            "reading a GGUF file needs the package `gguf`",
            hint="`pip install edgekit[build]`, or give a checkpoint directory",
        ) from exc
    return {int(kind): (kind.name, *sizes) for kind, sizes in GGML_QUANT_SIZES.items()}
