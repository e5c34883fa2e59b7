"""The index of a pack: what it is and every file in it, checked before anything is believed."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

from edgekit import __version__
from edgekit.engine import MANIFEST_FILE, STAGE_FILE, Manifest, engine_path, stage_path
from edgekit.errors import EngineError, StaleEngineError
from edgekit.pack.names import find_clash, why_not_name, why_not_path

PACK_FORMAT = 1
INDEX_FILE = "edgekit-pack.json"
MAX_INDEX_BYTES = 16 * 1024**2
"""Of 100,000 files with long names."""
BLOCK_BYTES = tarfile.BLOCKSIZE
END = bytes(2 * BLOCK_BYTES)
"""How an archive ends."""
_MAX_FILE_BYTES = 2**60
MANIFESTS: Mapping[str, str] = {"engine": MANIFEST_FILE, "stage": STAGE_FILE}
Kind = Literal["engine", "stage"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedFile:
    """One file of a pack."""

    path: str
    """Below the directory that was packed, with `/`."""
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PackIndex:
    """What a pack says of itself, first of all."""

    format: int = PACK_FORMAT
    edgekit_version: str = __version__
    kind: Kind
    model: str
    profile: str
    precision: str
    backend: str
    place: str
    """In a store: `<model>/<profile>/<precision>-<backend>`, and `.stage` behind that of one."""
    packed_bytes: int | None
    """How long the file is; `None`: written to a pipe, when that was not known yet."""
    files: tuple[PackedFile, ...]
    """In the order in which they follow: sorted by path."""

    @property
    def manifest_file(self) -> str:
        """The file that says what the directory is."""
        return MANIFESTS[self.kind]

    @property
    def content_bytes(self) -> int:
        """Of all files together."""
        return sum(file.size_bytes for file in self.files)

    def to_bytes(self) -> bytes:
        """As text, as long whatever `packed_bytes` is: that is filled in when all is written."""
        longest = replace(self, packed_bytes=_MAX_FILE_BYTES)
        return self._text().ljust(len(longest._text())) + b"\n"

    def _text(self) -> bytes:
        data = asdict(self)
        data["index_sha256"] = _digest_of(data)
        return json.dumps(data, indent=1, sort_keys=True).encode("ascii")

    @classmethod
    def from_bytes(cls, text: bytes, name: str) -> Self:
        """What `to_bytes` wrote, in the file of that `name`.

        Raises `StaleEngineError` for another format, `EngineError` for anything that `pack` does
        not write: a changed index, and names that would not stay below their directory.
        """
        try:
            data = json.loads(text)
            if not isinstance(data, dict):
                raise ValueError("not an object")
        except (ValueError, RecursionError) as exc:
            raise EngineError(f"the index of the pack is damaged: {name}") from exc
        if data.get("format") != PACK_FORMAT:
            raise StaleEngineError(
                f"{name} has format {data.get('format')!r:.40}, this edgekit reads {PACK_FORMAT}",
                hint="have the same edgekit on both machines, and pack again",
            )
        if data.pop("index_sha256", None) != _digest_of(data):
            raise EngineError(f"the index of the pack was changed: {name}")
        try:
            files = tuple(PackedFile(**entry) for entry in data.pop("files"))
            index = cls(**data, files=files)
            _check(index)
            is_same = index.to_bytes() == text
        except (TypeError, ValueError, KeyError) as exc:
            raise EngineError(f"the index of the pack is none: {name} ({exc})") from exc
        if not is_same:
            raise EngineError(f"the index of the pack is not as `edgekit pack` writes it: {name}")
        return index


def make_index(manifest: Manifest, kind: Kind, manifest_bytes: bytes) -> PackIndex:
    """The index of an engine or stage with that manifest, whose text is `manifest_bytes`.

    Raises `EngineError` for names that other systems cannot hold.
    """
    own = PackedFile(
        path=MANIFESTS[kind],
        size_bytes=len(manifest_bytes),
        sha256=hashlib.sha256(manifest_bytes).hexdigest(),
    )
    files = [own] + [
        PackedFile(path=path, size_bytes=manifest.file_bytes[path], sha256=sha256)
        for path, sha256 in manifest.files.items()
    ]
    index = PackIndex(
        kind=kind,
        model=manifest.model,
        profile=manifest.profile,
        precision=manifest.precision,
        backend=manifest.backend["name"],
        place=place_of(manifest, kind),
        packed_bytes=None,
        files=tuple(sorted(files, key=lambda file: file.path)),
    )
    try:
        _check(index)
    except ValueError as exc:
        raise EngineError(f"cannot be carried to every machine: {exc}") from exc
    return index


def place_of(manifest: Manifest, kind: Kind) -> str:
    """Where an engine or stage lies in a store, with `/`."""
    engine = engine_path(
        Path(),
        model=manifest.model,
        profile="+".join(manifest.plan.get("devices") or [manifest.profile]),
        precision=manifest.precision,
        backend=manifest.backend["name"],
    )
    return (engine if kind == "engine" else stage_path(engine)).as_posix()


def member_header(path: str, size_bytes: int) -> bytes:
    """What stands before a file in the archive: blocks that its name and size decide alone."""
    member = tarfile.TarInfo(path)
    member.size = size_bytes
    return member.tobuf(tarfile.GNU_FORMAT, "utf-8", "strict")


def padding(size_bytes: int) -> bytes:
    """What stands behind a file, up to the next block."""
    return bytes(-size_bytes % BLOCK_BYTES)


def _digest_of(data: Mapping[str, Any]) -> str:
    text = json.dumps({k: v for k, v in data.items() if k != "index_sha256"}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _check(index: PackIndex) -> None:
    """Raises `ValueError` or `TypeError` for what no index can say."""
    if index.kind not in MANIFESTS:
        raise ValueError(f"unknown kind {index.kind!r:.40}")
    words = (index.edgekit_version, index.model, index.profile, index.precision, index.backend)
    if not all(isinstance(word, str) for word in words):
        raise TypeError("a name is no text")
    _check_size(index.packed_bytes if index.packed_bytes is not None else 0)
    names = index.place.split("/") if isinstance(index.place, str) else []
    reasons = [why_not_name(name) for name in names]
    if len(names) != 3 or any(reasons) or any(name.startswith(".") for name in names):
        raise ValueError(f"no place in a store: {index.place!r:.200}")
    for file in index.files:
        if reason := why_not_path(file.path):
            raise ValueError(f"{reason}: {file.path!r:.200}")
        _check_size(file.size_bytes)
        if not isinstance(file.sha256, str) or len(file.sha256) != 64:
            raise ValueError(f"no digest of {file.path!r:.200}")
    paths = [file.path for file in index.files]
    if paths != sorted(set(paths)):
        raise ValueError("a file is there twice, or not in its order")
    if clash := find_clash(paths):
        raise ValueError(f"some systems take {clash[0]!r:.200} and {clash[1]!r:.200} for one")
    if index.manifest_file not in paths:
        raise ValueError(f"no {index.manifest_file}")


def _check_size(size: object) -> None:
    if type(size) is not int or not 0 <= size <= _MAX_FILE_BYTES:
        raise ValueError(f"no size of a file: {size!r:.40}")
