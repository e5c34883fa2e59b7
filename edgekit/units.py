"""Bytes and durations, read and written in one way everywhere."""

from __future__ import annotations

from collections.abc import Iterable

KIB = 1024
MIB = 1024**2
GIB = 1024**3


def format_bytes(count: int) -> str:
    """`1610612736` -> `"1.50 GiB"`; binary units, two decimals."""
    for unit, size in (("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if abs(count) >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count} B"


def format_duration(seconds: float) -> str:
    """`95.2` -> `"1 min 35 s"`; under ten seconds one decimal."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def join_words(words: Iterable[str]) -> str:
    """`["a", "b", "c"]` -> `"a, b and c"`."""
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last
