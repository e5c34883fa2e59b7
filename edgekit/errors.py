"""Every failure edgekit can explain, and the exit code it ends with.

    EdgekitError                 1  base; the CLI prints it without a traceback
    ├── InputError               2  a file or flag the user gave is wrong
    │   ├── CheckpointError         not a checkpoint that edgekit reads
    │   └── ProfileError            not a valid profile
    ├── BudgetError              3  the plan does not fit the device
    ├── BackendError             4  a backend failed
    │   ├── MissingBackendError     its package or device is not on this machine
    │   └── QualityError            the engine's answers differ too much from the checkpoint's
    │       └── PromptError         only what follows prompts in kernels of their own does
    ├── EngineError              5  an engine directory is damaged or foreign
    │   └── StaleEngineError        built for another device, backend version or format
    ├── RemoteError              1  another machine cannot be reached, or was lost on the way
    └── StorageError             1  the disk is full or may not be written

130 is Ctrl-C. An exception outside this tree is a bug of ours and keeps its traceback.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar


class EdgekitError(Exception):
    """A failure with a cause that the user can act on."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class InputError(EdgekitError):
    """A file or flag the user gave is wrong."""

    exit_code = 2


class CheckpointError(InputError):
    """Not a checkpoint that edgekit reads."""


class ProfileError(InputError):
    """A profile is missing, malformed, or has an unknown key."""


class BudgetError(EdgekitError):
    """The plan needs more memory than the device gives."""

    exit_code = 3


class BackendError(EdgekitError):
    """A backend failed."""

    exit_code = 4


class MissingBackendError(BackendError):
    """A package or device that a backend needs is not on this machine."""


class QualityError(BackendError):
    """The engine's answers differ too much from the checkpoint's."""


class PromptError(QualityError):
    """Only what follows prompts that go through kernels of their own differs too much."""


class EngineError(EdgekitError):
    """An engine directory is damaged or foreign."""

    exit_code = 5


class StaleEngineError(EngineError):
    """An engine was built for another device, backend version or format."""


class RemoteError(EdgekitError):
    """Another machine cannot be reached, or the connection to it broke."""


class StorageError(EdgekitError):
    """The disk is full, or a directory may not be written."""


_STORAGE_CAUSES = {
    errno.ENOSPC: ("no space left on the disk of", "free some space"),
    errno.EDQUOT: ("disk quota used up for", "free some space"),
    errno.EROFS: ("read-only file system", "choose a writable place with `--store`"),
    errno.EACCES: ("permission denied", "choose a writable place with `--store`"),
    errno.EPERM: ("operation not permitted", "choose a writable place with `--store`"),
    errno.EFBIG: ("file size limit reached for", "raise the limit: `ulimit -f unlimited`"),
    errno.ENOTDIR: ("a file is where a directory must be", "move it away, or change `--store`"),
    errno.EEXIST: ("a file is where a directory must be", "move it away, or change `--store`"),
}


_RUST_ERRNO = re.compile(r"\(os error (\d+)\)")
"""safetensors and tokenizers raise classes of their own, with the system's error in the text."""


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn a full disk or a missing permission below `path` into a `StorageError`."""
    try:
        yield
    except EdgekitError:
        raise
    except Exception as exc:
        number, filename = None, None
        if isinstance(exc, OSError):
            number, filename = exc.errno, exc.filename
        elif match := _RUST_ERRNO.search(str(exc)):
            number = int(match[1])
        if number not in _STORAGE_CAUSES:
            raise
        cause, hint = _STORAGE_CAUSES[number]
        raise StorageError(f"{cause}: {filename or path}", hint=hint) from exc
