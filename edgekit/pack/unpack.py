"""A pack becomes an engine or a stage in a store: checked byte by byte, whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from edgekit.engine import (
    MANIFEST_FILE,
    STAGE_FILE,
    Manifest,
    build_lock,
    device_cache,
    open_manifest,
    read_manifest,
    remove_leftovers,
)
from edgekit.errors import EngineError, InputError, StorageError, storage_errors
from edgekit.pack.index import PackIndex, place_of
from edgekit.pack.read import PackReader
from edgekit.progress import Progress, no_progress
from edgekit.scratch import scratch_directory, sha256_file
from edgekit.units import format_bytes

_DISK_BLOCK_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpacked:
    """Where an engine or a stage lies now, and whether it did before."""

    path: Path
    index: PackIndex
    manifest: Manifest
    was_there: bool


def unpack(
    file: BinaryIO,
    name: str,
    *,
    store: Path,
    out: Path | None = None,
    size_bytes: int | None = None,
    force: bool = False,
    report: Progress = no_progress,
) -> Unpacked:
    """Read a pack into `out`, or into its place in `store`. `size_bytes`: of a file, not a pipe.

    Written beside and renamed when every byte was found right; whatever is wrong, nothing is left.
    Raises `EngineError` for a pack that is cut off, damaged or none, `StaleEngineError` for one of
    another format, `InputError` where something else lies there, `StorageError`.
    """
    reader = PackReader(file, name, size_bytes=size_bytes)
    index = reader.index
    final = store / index.place if out is None else out
    with _alone(store, is_needed=out is None):
        if manifest := _same(final, index):
            return Unpacked(path=final, index=index, manifest=manifest, was_there=True)
        _require_free(final, force=force)
        require_space(final, index)
        with scratch_directory(final) as scratch:
            _write(reader, scratch, report=report)
            manifest = _require_manifest(scratch, index, name)
        shutil.rmtree(device_cache(final), ignore_errors=True)  # of an engine that was there
    return Unpacked(path=final, index=index, manifest=manifest, was_there=False)


def _require_free(final: Path, *, force: bool) -> None:
    """Raises `InputError` where something lies that may not be replaced: anything but an engine or
    a stage, and those without `force`."""
    if not final.exists() or (final.is_dir() and not any(final.iterdir())):
        return
    if not any((final / name).is_file() for name in (MANIFEST_FILE, STAGE_FILE)):
        raise InputError(
            f"something lies there that is no engine: {final}", hint="move it away first"
        )
    if not force:
        raise InputError(
            f"something else lies there: {final}",
            hint="`--force` replaces it, `--out DIR` unpacks elsewhere",
        )


def require_space(final: Path, index: PackIndex) -> None:
    """Raises `StorageError` where the disk has less left than the pack holds."""
    needed = sum(
        -(-file.size_bytes // _DISK_BLOCK_BYTES) * _DISK_BLOCK_BYTES for file in index.files
    )
    absolute = final.absolute()
    place = next(parent for parent in absolute.parents if parent.is_dir())
    with storage_errors(place):
        free = shutil.disk_usage(place).free
    if free < needed:
        raise StorageError(
            f"unpacking takes {format_bytes(needed)}, and {format_bytes(free)} are free on the "
            f"disk of: {place}",
            hint="free some space, or choose another disk with `--store`",
        )


def _write(reader: PackReader, scratch: Path, *, report: Progress) -> None:
    done, total = 0, reader.index.content_bytes
    for file in reader.index.files:
        path = scratch / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as target:
            for data in reader.read(file):
                target.write(data)
                done += len(data)
                report("unpack", done, total + 1)
    reader.finish()
    report("unpack", total, total)


def _require_manifest(directory: Path, index: PackIndex, name: str) -> Manifest:
    """The manifest that arrived. Raises `EngineError` where it is not that of the files beside it,
    or of another place: the index is only the pack's word."""
    manifest = read_manifest(directory, file=index.manifest_file)
    others = [file for file in index.files if file.path != index.manifest_file]
    if (
        manifest.files != {file.path: file.sha256 for file in others}
        or manifest.file_bytes != {file.path: file.size_bytes for file in others}
        or place_of(manifest, index.kind) != index.place
    ):
        raise EngineError(f"the index and the manifest of the pack differ: {name}")
    return manifest


def _same(final: Path, index: PackIndex) -> Manifest | None:
    """The manifest of what lies at `final` if that is what was packed, and whole."""
    file = index.manifest_file
    [own] = [entry for entry in index.files if entry.path == file]
    try:
        if (final / file).is_file() and sha256_file(final / file) == own.sha256:
            return open_manifest(final, full=True, file=file)
    except (EngineError, OSError):
        pass
    return None


@contextmanager
def _alone(store: Path, *, is_needed: bool) -> Iterator[None]:
    """As in a build: nobody else writes in the store, and what was killed there is removed."""
    if not is_needed:
        yield
        return
    with build_lock(store):
        remove_leftovers(store)
        yield
