"""Processor and memory, with a container's limits taken off."""

from __future__ import annotations

import math
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
_QUOTA_FILES = (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"))
"""Time of processors per period, and the period: version 2 in one file, version 1 in two. Source:
Documentation/admin-guide/cgroup-v2.rst and Documentation/scheduler/sched-bwc.rst of Linux."""


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


def count_cores(cgroup: Path = CGROUP) -> int:
    """Physical cores that this process may use, or logical ones where that is not known.

    Less where the process is bound to fewer processors, or a container has a quota of their time:
    one of 1.5 is 2 cores.
    """
    import psutil

    physical = psutil.cpu_count(logical=False) or psutil.cpu_count() or 1
    return min([physical, *_limits(cgroup)])


def is_confined(cgroup: Path = CGROUP) -> bool:
    """Whether this process may not use all processors of the machine."""
    import psutil

    logical = psutil.cpu_count() or 1
    return any(limit < logical for limit in _limits(cgroup))


def _limits(cgroup: Path) -> list[int]:
    """How many processors a process may use at most, by each of the rules that say so."""
    import psutil

    limits = []
    if hasattr(psutil.Process, "cpu_affinity"):
        limits.append(len(psutil.Process().cpu_affinity()))
    for names in _QUOTA_FILES:
        words = [word for name in names for word in _words(cgroup / name)]
        # no limit: "max", or -1
        if len(words) == 2 and all(word.isdecimal() for word in words) and int(words[1]):
            limits.append(max(1, math.ceil(int(words[0]) / int(words[1]))))
    return limits


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


def _words(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return []


def _entry(path: Path, key: str) -> int:
    try:
        words = [line.split() for line in path.read_text(encoding="ascii").splitlines()]
        return next(int(row[1]) for row in words if row[:1] == [key])
    except (OSError, ValueError, IndexError, StopIteration):
        return 0
