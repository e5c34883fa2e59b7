"""Under which conditions a number was measured: read from the system, or None, never guessed."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from edgekit.device import Jetson
from edgekit.device.power import read_gpu_clock, read_hottest_c
from edgekit.profile import Profile

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
    """`governor` and `current_mhz`, of a Jetson `gpu_mhz`, `gpu_max_mhz` and `locked` (by
    `jetson_clocks`) as well, where readable."""
    temperature_c: dict[str, float] | None
    """Of the hottest sensor, at `start` and `end`."""
    throttling: list[str] | None = None
    """What held the device back meanwhile; empty: nothing did; `None`: it does not say."""


def read_conditions(
    *,
    threads: int,
    temperature_start_c: float | None = None,
    jetson: Jetson | None = None,
    throttling: list[str] | None = None,
) -> Conditions:
    """To be read at the end of a measurement."""
    temperature_c = None
    end_c = hottest_c(is_jetson=jetson is not None)
    if temperature_start_c is not None and end_c is not None:
        temperature_c = {"start": temperature_start_c, "end": end_c}
    return Conditions(
        threads=threads,
        power_mode=power_mode(jetson),
        clocks=clocks(jetson),
        temperature_c=temperature_c,
        throttling=throttling,
    )


def power_mode(jetson: Jetson | None = None) -> str | None:
    """The mode that `nvpmodel` reports on a Jetson, or the ACPI platform profile of a laptop."""
    if jetson is not None:
        return jetson.power_mode
    return _read_line(_PLATFORM_PROFILE)


def slow_settings(profile: Profile, jetson: Jetson | None) -> list[str]:
    """How a Jetson is set to run slower than it can, each with the way out; what it does not say
    is not held against it."""
    found = []
    modes = profile.power_modes
    fastest = max(modes, key=lambda mode: mode.watts or sys.maxsize, default=None)
    known = {mode.name: mode for mode in modes}
    mode = known.get(jetson.power_mode or "") if jetson is not None else None
    if fastest is not None and mode is not None and mode != fastest:
        found.append(
            f"the power mode is {mode.name}, not the fastest, {fastest.name}: "
            f"`sudo nvpmodel -m {fastest.id}`"
        )
    if jetson is not None and jetson.clocks_locked is False:
        found.append("clocks are not locked at their highest: `sudo jetson_clocks`")
    return found


def clocks(jetson: Jetson | None = None, root: Path = Path("/")) -> dict[str, Any] | None:
    """Governor and current clock of the processor, and clocks of a Jetson's GPU."""
    known: dict[str, Any] = {}
    if jetson is not None:
        known |= read_gpu_clock(root) or {}
        if jetson.clocks_locked is not None:
            known["locked"] = jetson.clocks_locked
    if governor := _read_line(_GOVERNOR):
        known["governor"] = governor
    frequency = psutil.cpu_freq() if hasattr(psutil, "cpu_freq") else None
    if frequency is not None and frequency.current:
        known["current_mhz"] = round(frequency.current)
    return known or None


def hottest_c(*, is_jetson: bool = False) -> float | None:
    """The highest temperature of any sensor; of a Jetson of any thermal zone, its GPU's too."""
    if is_jetson:
        return read_hottest_c(Path("/"))
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
