"""Files and directories that exist whole or not at all: written beside, then renamed."""

from __future__ import annotations

import ctypes
import errno
import gc
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from edgekit import interrupts
from edgekit.errors import storage_errors

SCRATCH_PREFIX = ".building-"


def write_beside(path: Path, text: str) -> None:
    """Replace a text file in one step. Raises `StorageError`."""
    scratch = path.with_name(f"{SCRATCH_PREFIX}{path.name}")
    with storage_errors(path):
        try:
            scratch.write_text(text, encoding="utf-8")
            scratch.replace(path)
        except BaseException:
            scratch.unlink(missing_ok=True)
            raise


def link_or_copy(source: Path, target: Path) -> None:
    """The same file at another place; a copy where the file system has no links."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


@contextmanager
def scratch_file(final: Path) -> Iterator[Path]:
    """Yield the path of a file beside `final` that takes its place when the body succeeds.

    A body that raises leaves nothing behind. Raises `StorageError`.
    """
    scratch = final.with_name(f"{SCRATCH_PREFIX}{final.name}")
    with storage_errors(final):
        try:
            yield scratch
            scratch.replace(final)
        except BaseException:
            with interrupts.ignored():
                scratch.unlink(missing_ok=True)
            raise


@contextmanager
def scratch_directory(final: Path) -> Iterator[Path]:
    """Yield an empty directory beside `final` that takes its place when the body succeeds.

    What was at `final` is removed only after the new one is complete. A body that raises leaves
    nothing behind, nor the directories made for it; one that is killed leaves a directory that
    `remove_scratch` finds. Raises `StorageError` for a full or unwritable disk.
    """
    scratch = final.with_name(f"{SCRATCH_PREFIX}{final.name}")
    parents = [parent for parent in final.parents if not parent.exists()]
    with storage_errors(final):
        if final.exists() and not final.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(final))
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            if scratch.exists():
                shutil.rmtree(scratch)
            scratch.mkdir()
            yield scratch
            _replace_directory(scratch, final)
        except BaseException:
            with interrupts.ignored():
                shutil.rmtree(scratch, ignore_errors=True)
                with suppress(OSError):  # not empty: someone else uses it
                    for parent in parents:
                        parent.rmdir()
            raise


def _replace_directory(scratch: Path, final: Path) -> None:
    if not final.exists():
        scratch.rename(final)
        return
    # rename cannot replace a directory that holds files: move the old one aside first
    old = final.with_name(f"{SCRATCH_PREFIX}old-{final.name}")
    if old.exists():
        shutil.rmtree(old)
    final.rename(old)
    try:
        scratch.rename(final)
    except BaseException:
        if not final.exists():
            old.rename(final)
        raise
    shutil.rmtree(old, ignore_errors=True)


def remove_scratch(directory: Path) -> list[Path]:
    """Delete what interrupted builds left in `directory`; returns what was deleted.

    A directory that was moved aside, and whose replacement never came, is moved back.
    """
    left = sorted(directory.glob(f"{SCRATCH_PREFIX}*"))
    for path in left:
        old_name = path.name.removeprefix(f"{SCRATCH_PREFIX}old-")
        if old_name != path.name and not path.with_name(old_name).exists():
            path.rename(path.with_name(old_name))
        elif path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return left


def exists(path: Path) -> bool:
    """Whether there is such a path; a text that cannot be one at all is not there either."""
    try:
        return path.exists()
    except (OSError, ValueError):  # too long, or with a NUL
        return False


def sha256_file(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def give_memory_back() -> None:
    """What was freed goes back to the system, where its C library can do that: the next step of a
    build needs it, and allocators keep gigabytes otherwise."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
