"""What this machine is. Reads, never guesses: what cannot be read is `None`."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """The machine that edgekit runs on."""

    cpu: str
    cores: int
    """Physical cores that this process may use, or logical ones where that is not known."""
    memory_bytes: int
    """Installed, or what the container may use."""
    available_bytes: int
    """What a new program can have without swapping."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


def read_device(*, cgroup: Path = CGROUP) -> Device:
    """Look at this machine, and for a container's limits in `cgroup`. Takes a few milliseconds."""
    import psutil

    memory = psutil.virtual_memory()
    total, available = memory.total, memory.available
    for limit_file, used_file, stat_file, cache_key in _CGROUP_FILES:
        limit, used = _number(cgroup / limit_file), _number(cgroup / used_file)
        if limit is not None and used is not None and limit < total:
            # files that were read count as used, but give way to whoever needs the memory
            used -= _entry(cgroup / stat_file, cache_key)
            total, available = limit, min(available, max(0, limit - used))
    allowed = len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else 0
    physical = psutil.cpu_count(logical=False) or psutil.cpu_count() or 1
    return Device(
        cpu=_cpu_name(),
        cores=min(physical, allowed) if allowed else physical,
        memory_bytes=total,
        available_bytes=available,
    )


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


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
