"""Paths that mean the same on every machine, and stay below the directory that they are for."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

_MAX_COMPONENT_BYTES = 255
"""Of one name, on ext4, XFS, APFS and NTFS alike."""
_MAX_PATH_BYTES = 1024
_FORBIDDEN = frozenset('\\:*?"<>|')
"""Separators, drive letters and streams of Windows, and what its names cannot hold."""


def why_not_name(name: object) -> str | None:
    """What is wrong with one component of a path; `None`: nothing."""
    if not isinstance(name, str) or name == "":
        return "it is empty"
    if name in (".", ".."):
        return "it leads out of the directory"
    if "/" in name or not _FORBIDDEN.isdisjoint(name):
        return "it holds a separator, a drive letter or a character that some systems refuse"
    if any(unicodedata.category(c) in ("Cc", "Cs") for c in name):
        return "it holds a control character"
    if name[-1] in ". ":
        return "it ends with a dot or a space, which some systems drop"
    if len(name.encode()) > _MAX_COMPONENT_BYTES:
        return f"it is longer than {_MAX_COMPONENT_BYTES} bytes"
    return None


def why_not_path(path: object) -> str | None:
    """What is wrong with a relative path of components joined by `/`; `None`: nothing."""
    if not isinstance(path, str):
        return "it is no text"
    for name in path.split("/"):
        if reason := why_not_name(name):
            return reason
    if len(path.encode()) > _MAX_PATH_BYTES:
        return f"it is longer than {_MAX_PATH_BYTES} bytes"
    return None


def find_clash(paths: Iterable[str]) -> tuple[str, str] | None:
    """Two paths that some file system takes for one, or of which one is a directory of the other.

    Case and Unicode's ways to write a letter do not tell files apart on macOS and Windows.
    """
    directories: dict[str, str] = {}
    files: dict[str, str] = {}
    for path in paths:
        parts = path.split("/")
        for depth in range(1, len(parts)):
            above = "/".join(parts[:depth])
            key = _folded(above)
            if key in files:
                return files[key], path
            if (other := directories.setdefault(key, above)) != above:
                return other, path
        key = _folded(path)
        if taken := files.get(key) or directories.get(key):
            return taken, path
        files[key] = path
    return None


def _folded(path: str) -> str:
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", path).casefold())
