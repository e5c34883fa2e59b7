"""An engine or a stage becomes one file; what is damaged is found on the way, in one reading."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from edgekit.engine import MANIFEST_FILE, STAGE_FILE, find_engine, read_manifest, require_sizes
from edgekit.errors import EngineError, InputError
from edgekit.pack.frames import FrameWriter
from edgekit.pack.index import (
    END,
    INDEX_FILE,
    MANIFESTS,
    Kind,
    PackedFile,
    PackIndex,
    make_index,
    member_header,
    padding,
    place_of,
)
from edgekit.progress import Progress, no_progress
from edgekit.scratch import exists, scratch_file

_CHUNK_BYTES = 1024**2


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """What was packed, and how long the file is that holds it."""

    index: PackIndex
    packed_bytes: int


def pack_to(
    directory: Path, out: Path, *, force: bool = False, report: Progress = no_progress
) -> Packed:
    """Write the pack of an engine or stage to the file `out`, whole or not at all.

    Raises `InputError` where there is something already, what `pack` raises, `StorageError`.
    """
    if exists(out) and not force:
        raise InputError(
            f"there is something already: {out}", hint="choose another `-o`, or use `--force`"
        )
    if not out.absolute().parent.is_dir():
        raise InputError(f"no such directory: {out.parent}", hint="make it first")
    with scratch_file(out) as scratch, scratch.open("w+b") as file:
        packed = pack(directory, file, report=report)
        # the index is as long as it was: only now it is known how long the file is
        index = replace(packed.index, packed_bytes=packed.packed_bytes)
        file.seek(0)
        FrameWriter(file).store(_index_member(index))
    return replace(packed, index=index)


def pack(directory: Path, out: IO[bytes], *, report: Progress = no_progress) -> Packed:
    """Write the pack of an engine or stage to a file or pipe.

    Raises `EngineError` for a directory that is neither, and for a file in it that is missing,
    differs from what was built, or is none of it.
    """
    kind = kind_of(directory)
    manifest_file = MANIFESTS[kind]
    manifest = read_manifest(directory, file=manifest_file)
    require_sizes(directory, manifest)
    index = make_index(manifest, kind, (directory / manifest_file).read_bytes())
    writer, done, total = FrameWriter(out), 0, index.content_bytes
    writer.store(_index_member(index))
    for file in index.files:
        writer.write(member_header(file.path, file.size_bytes))
        for data in _read(directory, file):
            writer.write(data)
            done += len(data)
            report("pack", done, total + 1)
        writer.write(padding(file.size_bytes))
        writer.end_frame()
    writer.write(END)
    writer.end_frame()
    report("pack", total, total)
    return Packed(index=index, packed_bytes=writer.written_bytes)


def find_packable(store: Path, name: str | None) -> Path:
    """An engine or a stage: by its directory, or by its name in the store, as `find_engine` does;
    of a stage the last parts of its name are enough.

    Raises `InputError`, `EngineError`.
    """
    stages = [path.parent for path in sorted(store.glob(f"[!.]*/*/*/{STAGE_FILE}"))]
    if name is not None:
        for path in (Path(name), store / name):
            if exists(path / STAGE_FILE) and not exists(path / MANIFEST_FILE):
                return path
        found = [path for path in stages if f"/{path.relative_to(store)}".endswith(f"/{name}")]
        if len(found) == 1:
            return found[0]
    try:
        return find_engine(store, name)
    except InputError as exc:
        if not stages:
            raise
        listed = ", ".join(str(path.relative_to(store)) for path in stages)
        raise InputError(str(exc), hint=f"{exc.hint}; stages are {listed}") from exc


def kind_of(directory: Path) -> Kind:
    """Whether a directory is an engine or a stage. Raises `EngineError` for neither."""
    if exists(directory / MANIFEST_FILE):
        return "engine"
    if exists(directory / STAGE_FILE):
        return "stage"
    raise EngineError(
        f"neither an engine nor a stage: {directory}",
        hint="list your engines with `edgekit engines`, or make a stage with "
        "`edgekit build --stage checkpoint`",
    )


def default_name(directory: Path) -> str:
    """What the file is called where nobody says: `<model>-<profile>-<precision>-<backend>.tar.zst`,
    with `.stage` for one."""
    kind = kind_of(directory)
    manifest = read_manifest(directory, file=MANIFESTS[kind])
    return place_of(manifest, kind).replace("/", "-") + ".tar.zst"


def _index_member(index: PackIndex) -> bytes:
    text = index.to_bytes()
    return member_header(INDEX_FILE, len(text)) + text + padding(len(text))


def _read(directory: Path, file: PackedFile) -> Iterator[bytes]:
    """The bytes of a file; after the last of them it has been found to be as it was built."""
    digest, left = hashlib.sha256(), file.size_bytes
    with (directory / file.path).open("rb") as source:
        while left and (data := source.read(min(left, _CHUNK_BYTES))):
            digest.update(data)
            left -= len(data)
            yield data
    if left or digest.hexdigest() != file.sha256:
        raise EngineError(
            f"engine file differs from what was built: {directory / file.path}",
            hint="build it again with `edgekit build`",
        )
