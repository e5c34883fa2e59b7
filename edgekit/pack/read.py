"""Reading a pack: every byte of it is either as its index says or refused."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterator
from typing import BinaryIO

from edgekit.errors import EngineError
from edgekit.pack.frames import CutOffError, FrameReader
from edgekit.pack.index import (
    BLOCK_BYTES,
    END,
    INDEX_FILE,
    MAX_INDEX_BYTES,
    PackedFile,
    PackIndex,
    member_header,
    padding,
)

_CHUNK_BYTES = 1024**2
_AGAIN = "copy it again: `rsync --append-verify` goes on where it stopped"


class PackReader:
    """A pack, read once from its beginning to its end.

    `size_bytes` is how long the file is where it is one. Raises `EngineError` at the first byte
    that is missing or wrong; `index` is known, and right, before any file is read.
    """

    def __init__(self, file: BinaryIO, name: str, *, size_bytes: int | None = None) -> None:
        self._name = name
        self._frames = FrameReader(file, name)
        self._done_bytes = 0
        self._size_bytes = size_bytes
        try:
            self.index = self._read_index()
        except CutOffError as exc:
            raise EngineError(f"the pack ends before its index does: {name}", hint=_AGAIN) from exc
        self._require_length()

    def read(self, file: PackedFile) -> Iterator[bytes]:
        """The bytes of the next file of the index; after the last of them it is as it was packed.

        Each file must be read to its end, in the order of the index.
        """
        digest, left = hashlib.sha256(), file.size_bytes
        try:
            self._require(member_header(file.path, file.size_bytes), file.path)
            while left:
                data = self._frames.read(min(left, _CHUNK_BYTES))
                if not data:
                    raise CutOffError
                digest.update(data)
                left -= len(data)
                self._done_bytes += len(data)
                yield data
            self._require(padding(file.size_bytes), file.path)
        except CutOffError as exc:
            raise self._cut_off(file.path) from exc
        if digest.hexdigest() != file.sha256:
            raise self._damaged(file.path)

    def finish(self) -> None:
        """Read the end, behind which nothing may be."""
        try:
            self._require(END, "the end")
            if self._frames.read(1):
                raise EngineError(f"there is more than the index says: {self._name}")
        except CutOffError as exc:
            raise self._cut_off("the end") from exc
        said, read = self.index.packed_bytes, self._frames.pulled_bytes
        if said is not None and read != said:
            raise EngineError(f"{self._name} has {read} bytes, its index says {said}")

    def _read_index(self) -> PackIndex:
        header = self._exactly(BLOCK_BYTES)
        try:
            size = tarfile.TarInfo.frombuf(header, "utf-8", "strict").size
        except (tarfile.HeaderError, ValueError) as exc:
            raise self._foreign() from exc
        if not 0 < size <= MAX_INDEX_BYTES or header != member_header(INDEX_FILE, size):
            raise self._foreign()
        index = PackIndex.from_bytes(self._exactly(size), self._name)
        self._require(padding(size), "its index")
        return index

    def _require_length(self) -> None:
        """A file is known to be cut off before any of it is unpacked."""
        said, size = self.index.packed_bytes, self._size_bytes
        if said is None or size is None or said == size:
            return
        if size > said:
            raise EngineError(
                f"{self._name} has {size} bytes, its index says {said}: {size - said} too many",
                hint="copy it again, from its beginning",
            )
        raise EngineError(
            f"{self._name} is cut off: {size} of {said} bytes are here, {said - size} are missing",
            hint=_AGAIN,
        )

    def _exactly(self, count: int) -> bytes:
        parts: list[bytes] = []
        while count and (data := self._frames.read(count)):
            parts.append(data)
            count -= len(data)
        if count:
            raise CutOffError
        return b"".join(parts)

    def _require(self, expected: bytes, where: str) -> None:
        if self._exactly(len(expected)) != expected:
            raise self._damaged(where)

    def _foreign(self) -> EngineError:
        return EngineError(
            f"not written by `edgekit pack`: {self._name}",
            hint="make one with `edgekit pack` on the machine that has the engine",
        )

    def _damaged(self, where: str) -> EngineError:
        return EngineError(
            f"damaged in {where}, which differs from what was packed: {self._name}",
            hint="copy it again, from its beginning, or pack it again",
        )

    def _cut_off(self, where: str) -> EngineError:
        if self._size_bytes is not None and self.index.packed_bytes is not None:
            return self._damaged(where)  # it is as long as it should be
        total = self.index.content_bytes
        return EngineError(
            f"{self._name} is cut off in {where}: {self._done_bytes} of {total} bytes of its "
            f"contents arrived, {total - self._done_bytes} are missing",
            hint=_AGAIN,
        )
