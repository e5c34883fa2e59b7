"""The kernels that TensorRT-RTX compiled on this GPU, kept in a file between runs.

Without the file the first pass of every shape waits for the compiler. It is only ever a shortcut:
one that cannot be read or written costs a line in the log. The library refuses, by itself, a file
of another version, GPU or driver.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from edgekit.scratch import SCRATCH_PREFIX

_SAVE_AFTER = 8
"""Passes over shapes that are all known by then: the prompt and the first steps have compiled, and
a process that is killed later has not compiled for nothing."""
_logger = logging.getLogger(__name__)


class KernelCache:
    """An `IRuntimeCache` and the file it comes from."""

    def __init__(self, inner: Any, path: Path) -> None:
        self._inner = inner
        self._path = path
        self._known: set[Any] = set()
        self._is_saved = True
        self._passes = 0

    def load(self) -> None:
        """Take over what the file holds, if it is there and fits."""
        try:
            blob = self._path.read_bytes()
        except FileNotFoundError:
            return
        except OSError as exc:
            _logger.warning("compiled kernels cannot be read from %s: %s", self._path, exc)
            return
        try:
            fits = bool(blob) and self._inner.deserialize(blob)
        except Exception as exc:  # the border: a damaged file, in the vendor's words
            _logger.warning("compiled kernels in %s are damaged: %s", self._path, exc)
            return
        if not fits:
            _logger.info("compiled kernels in %s are of another GPU, driver or version", self._path)

    def ran(self, shapes: Any) -> None:
        """Take note of a pass; some passes after a new shape, write the file."""
        self._passes += 1
        if shapes not in self._known:
            self._known.add(shapes)
            self._is_saved = False
            self._passes = 0
        elif not self._is_saved and self._passes >= _SAVE_AFTER:
            self.save()

    def save(self) -> None:
        """Write the file beside and rename it, unless it holds all already. Never raises."""
        if self._is_saved:
            return
        self._is_saved = True  # also when it fails: once is enough
        # of this process: two chats may end at once
        scratch = self._path.with_name(f"{SCRATCH_PREFIX}{os.getpid()}-{self._path.name}")
        try:
            blob = bytes(memoryview(self._inner.serialize()))
            self._path.parent.mkdir(parents=True, exist_ok=True)
            scratch.write_bytes(blob)
            scratch.replace(self._path)
        except Exception as exc:  # the border: a full disk, or a cache that cannot be serialized
            _logger.warning("compiled kernels cannot be kept in %s: %s", self._path, exc)
            with suppress(OSError):
                scratch.unlink(missing_ok=True)
