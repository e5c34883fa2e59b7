"""What this machine is. Reads, never guesses: what cannot be read is `None`."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_CGROUP_LIMITS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
    ),
)


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


def read_device() -> Device:
    """Look at this machine; takes a few milliseconds."""
    import psutil

    memory = psutil.virtual_memory()
    total, available = memory.total, memory.available
    for limit_path, used_path in _CGROUP_LIMITS:
        limit, used = _number(Path(limit_path)), _number(Path(used_path))
        if limit is not None and used is not None and limit < total:
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


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
