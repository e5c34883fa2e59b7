"""Processor and memory, with a container's limits taken off."""

from __future__ import annotations

import platform
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
_CGROUP_FILES = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    (
        "memory/memory.limit_in_bytes",
        "memory/memory.usage_in_bytes",
        "memory/memory.stat",
        "total_inactive_file",
    ),
)
"""Limit, use, and where in which file the page cache is counted: version 2, version 1."""


def read_memory(root: Path, cgroup: Path) -> tuple[int, int]:
    """Bytes that programs here may use at most, and that a new one can have without swapping.

    The second is `MemAvailable`, not `MemFree`: files that were read give way when needed.
    """
    meminfo = root / "proc/meminfo"
    total, available = _entry(meminfo, "MemTotal:") * 1024, _entry(meminfo, "MemAvailable:") * 1024
    if not total or not available:  # not Linux, or an old one
        import psutil

        memory = psutil.virtual_memory()
        total = total or memory.total
        available = min(total, available or memory.available)
    for limit_file, used_file, stat_file, cache_key in _CGROUP_FILES:
        limit, used = _number(cgroup / limit_file), _number(cgroup / used_file)
        if limit is not None and used is not None and limit < total:
            # files that were read count as used, but give way to whoever needs the memory
            used -= _entry(cgroup / stat_file, cache_key)
            total, available = limit, min(available, max(0, limit - used))
    return total, available


def count_cores() -> int:
    """Physical cores that this process may use, or logical ones where that is not known."""
    import psutil

    allowed = len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else 0
    physical = psutil.cpu_count(logical=False) or psutil.cpu_count() or 1
    return min(physical, allowed) if allowed else physical


def read_cpu_name(root: Path) -> str:
    """What the kernel calls the processor, or its architecture."""
    try:
        text = (root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    for line in text.splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):  # absent, or "max": no limit
        return None


def _entry(path: Path, key: str) -> int:
    try:
        words = [line.split() for line in path.read_text(encoding="ascii").splitlines()]
        return next(int(row[1]) for row in words if row[:1] == [key])
    except (OSError, ValueError, IndexError, StopIteration):
        return 0
