"""Under which conditions a number was measured: read from the system, or None, never guessed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from edgekit.device.jetson import read_power_mode

_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
_PLATFORM_PROFILE = Path("/sys/firmware/acpi/platform_profile")
_STATUS = Path("/proc/self/status")
BUSY_PERCENT = 15
"""More than this share of the processor used by others disturbs a measurement."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """What a reader needs to repeat a measurement."""

    threads: int
    power_mode: str | None
    """Of a Jetson or a laptop."""
    clocks: dict[str, Any] | None
    """`governor` and `current_mhz`, where readable."""
    temperature_c: dict[str, float] | None
    """Of the hottest sensor, at `start` and `end`."""


def read_conditions(*, threads: int, temperature_start_c: float | None = None) -> Conditions:
    """To be read at the end of a measurement."""
    temperature_c = None
    if temperature_start_c is not None and (end_c := hottest_c()) is not None:
        temperature_c = {"start": temperature_start_c, "end": end_c}
    return Conditions(
        threads=threads,
        power_mode=power_mode(),
        clocks=clocks(),
        temperature_c=temperature_c,
    )


def power_mode() -> str | None:
    """The mode that `nvpmodel` reports on a Jetson, or the ACPI platform profile of a laptop."""
    name, _ = read_power_mode()
    return name or _read_line(_PLATFORM_PROFILE)


def clocks() -> dict[str, Any] | None:
    """Governor and current clock of the processor."""
    known: dict[str, Any] = {}
    if governor := _read_line(_GOVERNOR):
        known["governor"] = governor
    frequency = psutil.cpu_freq() if hasattr(psutil, "cpu_freq") else None
    if frequency is not None and frequency.current:
        known["current_mhz"] = round(frequency.current)
    return known or None


def hottest_c() -> float | None:
    """The highest temperature of any sensor."""
    if not hasattr(psutil, "sensors_temperatures"):  # Linux and FreeBSD have it
        return None
    groups = psutil.sensors_temperatures().values()
    return max((sensor.current for group in groups for sensor in group), default=None)


def busy_percent(seconds: float = 0.5) -> float:
    """Share of the whole processor that is in use now, before edgekit does anything."""
    return float(psutil.cpu_percent(interval=seconds))


def peak_rss_bytes() -> int:
    """Largest resident set of this process until now; the present one where no peak is kept."""
    if _STATUS.is_file():
        for line in _STATUS.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    memory = psutil.Process().memory_info()
    return int(getattr(memory, "peak_wset", memory.rss))  # `peak_wset` on Windows


def _read_line(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except OSError:
        return None
