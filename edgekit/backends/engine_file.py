"""`engine.json`: what edgekit says of an engine, beside the files of its compiler."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgekit.errors import EngineError
from edgekit.scratch import write_beside

LAYOUT_FILE = "engine.json"


def write_layout(directory: Path, fields: Mapping[str, Any]) -> None:
    """Write the file. Raises `StorageError`."""
    text = json.dumps(dict(fields), indent=2, sort_keys=True)
    write_beside(directory / LAYOUT_FILE, text + "\n")


@contextmanager
def read_layout(directory: Path, *, number: int | None = None) -> Iterator[dict[str, Any]]:
    """Its fields, to be made into something within the `with`; `number` is its format's.

    Raises `EngineError` for a file that cannot be read, and for fields that something raises
    `ValueError`, `KeyError`, `TypeError` or `AttributeError` for.
    """
    path = directory / LAYOUT_FILE
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if number is not None and data.pop("format") != number:
            raise ValueError("another format")
        yield data
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise EngineError(
            f"unreadable {path}: {exc}", hint="build it again with `edgekit build`"
        ) from exc
