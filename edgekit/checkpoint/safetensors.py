"""The header of a safetensors file: read with the standard library, trusted in nothing.

A file is 8 bytes little-endian header length, the header as JSON (tensor name ->
`{dtype, shape, data_offsets}`, plus `__metadata__`), then the data. Offsets count from the end
of the header (format section of the safetensors README).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from edgekit.errors import CheckpointError

DTYPE_BYTES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "U16": 2,
    "I16": 2,
    "F16": 2,
    "BF16": 2,
    "U32": 4,
    "I32": 4,
    "F32": 4,
    "U64": 8,
    "I64": 8,
    "F64": 8,
}
"""Bytes of one element, by the dtype's name in the header."""
MAX_HEADER_BYTES = 100_000_000
"""The limit that the safetensors library sets as well."""
_MAX_DIMENSIONS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    """Where one tensor lies. Holds no data."""

    name: str
    dtype: str
    """As safetensors spells it: `"F16"`, `"BF16"`, `"F32"`, `"I8"`, `"U8"`, ..."""
    shape: tuple[int, ...]
    path: Path
    offset: int
    """Bytes from the start of the file."""
    num_bytes: int


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Every tensor of one file, in the order of its data.

    Raises `CheckpointError` for whatever is not a whole and consistent safetensors file, and
    reads no more than the header to find that out.
    """
    with path.open("rb") as file:
        file_bytes = path.stat().st_size
        prefix = file.read(8)
        header_bytes = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or header_bytes > min(file_bytes - 8, MAX_HEADER_BYTES):
            raise CheckpointError(
                f"not a safetensors file, or its start is damaged: {path}", hint=_AGAIN
            )
        header = _parse(file.read(header_bytes), path)
    start = 8 + header_bytes
    infos = [
        _tensor(name, entry, path, start=start, file_bytes=file_bytes)
        for name, entry in header.items()
        if name != "__metadata__"
    ]
    infos.sort(key=lambda info: (info.offset, info.num_bytes))
    for before, after in pairwise(infos):
        if before.offset + before.num_bytes > after.offset:
            raise CheckpointError(
                f"tensors {before.name} and {after.name} overlap in {path}", hint=_AGAIN
            )
    return {info.name: info for info in infos}


def encode_header(tensors: Mapping[str, tuple[int, ...]], dtype: str | Mapping[str, str]) -> bytes:
    """The first bytes of a file that holds `tensors` (name -> shape) in order, of one dtype or of
    one each.

    Padded with spaces so that the data starts at a multiple of 8 bytes.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in tensors.items():
        kind = dtype if isinstance(dtype, str) else dtype[name]
        begin, end = end, end + math.prod(shape) * DTYPE_BYTES[kind]
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


_AGAIN = "download or copy the file again"


def _parse(text: bytes, path: Path) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(found := dict(pairs)) != len(pairs):
            raise CheckpointError(f"the header names a tensor twice: {path}", hint=_AGAIN)
        return found

    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as exc:
        raise CheckpointError(f"the header is not JSON: {path}", hint=_AGAIN) from exc
    if not isinstance(header, dict):
        raise CheckpointError(f"the header is not a JSON object: {path}", hint=_AGAIN)
    return header


def _tensor(name: str, entry: Any, path: Path, *, start: int, file_bytes: int) -> TensorInfo:
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(begin), int(end)]}:
            pass
        case _:
            raise CheckpointError(f"malformed header entry for {name} in {path}", hint=_AGAIN)
    if dtype not in DTYPE_BYTES:
        raise CheckpointError(
            f"{name} in {path} has an unsupported dtype: {dtype}",
            hint=f"supported are {', '.join(DTYPE_BYTES)}",
        )
    if len(shape) > _MAX_DIMENSIONS or not all(_is_size(size) for size in shape):
        raise CheckpointError(f"{name} in {path} has a malformed shape", hint=_AGAIN)
    if not 0 <= begin <= end or math.prod(shape) * DTYPE_BYTES[dtype] != end - begin:
        raise CheckpointError(f"the offsets of {name} in {path} do not fit its shape", hint=_AGAIN)
    if start + end > file_bytes:
        raise CheckpointError(
            f"{path} is truncated: {name} ends at byte {start + end}, the file at {file_bytes}",
            hint=_AGAIN,
        )
    return TensorInfo(
        name=name,
        dtype=dtype,
        shape=tuple(shape),
        path=path,
        offset=start + begin,
        num_bytes=end - begin,
    )


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63
