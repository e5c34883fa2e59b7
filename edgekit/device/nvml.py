"""A card while it works: energy, memory of processes, what slows it down. NVML, asked as it runs.

What the driver refuses is `None`: Jetsons refuse all of it but the memory of processes, cards
before Volta the energy.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import suppress
from types import MappingProxyType
from typing import Any, Self

SLOWDOWNS = MappingProxyType(
    {
        0x0000000000000004: "power limit",
        0x0000000000000008: "hardware slowdown",
        0x0000000000000020: "too hot (driver)",
        0x0000000000000040: "too hot (hardware)",
        0x0000000000000080: "power brake",
    }
)
"""Bits of NVML's `ClocksEventReasons` that mean less than full speed under load."""


class CardWatch:
    """One GPU of this machine. Close it."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        """`nvml` is the module `pynvml`, started; `handle` is the GPU's."""
        self._nvml, self._handle = nvml, handle

    @classmethod
    def open(cls, uuid: str | None) -> Self | None:
        """The GPU of that UUID, or the only one; `None` where there is none to ask."""
        try:
            import pynvml
        except ImportError:
            return None
        return cls.of(pynvml, uuid)

    @classmethod
    def of(cls, nvml: Any, uuid: str | None) -> Self | None:
        """The same over a module."""
        try:
            nvml.nvmlInit()
            if uuid is not None:
                return cls(nvml, nvml.nvmlDeviceGetHandleByUUID(uuid))
            if nvml.nvmlDeviceGetCount() == 1:
                return cls(nvml, nvml.nvmlDeviceGetHandleByIndex(0))
        except Exception:  # the border: no driver, no library, no such GPU
            return None
        return None

    def joules(self) -> float | None:
        """Since the driver was loaded: it only grows."""
        millijoules = self._ask(
            lambda: self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)
        )
        return None if millijoules is None else int(millijoules) / 1000

    def used_bytes(self, pids: Collection[int]) -> int | None:
        """Device memory of these processes together; `None` where the driver does not say, or knows
        none of them, as in a container."""
        rows = self._ask(lambda: self._nvml.nvmlDeviceGetComputeRunningProcesses(self._handle))
        known = [row.usedGpuMemory for row in rows or () if row.pid in pids]
        return None if not known or None in known else int(sum(known))

    def slowdowns(self) -> set[str] | None:
        """What slows it down now, in words."""
        bits = self._ask(lambda: self._nvml.nvmlDeviceGetCurrentClocksThrottleReasons(self._handle))
        if bits is None:
            return None
        return {text for bit, text in SLOWDOWNS.items() if int(bits) & bit}

    def temperature_c(self) -> float | None:
        """Of the GPU."""
        said = self._ask(lambda: self._nvml.nvmlDeviceGetTemperature(self._handle, 0))
        return None if said is None else float(said)

    def close(self) -> None:
        """Safe to call twice."""
        with suppress(Exception):
            self._nvml.nvmlShutdown()

    @staticmethod
    def _ask(question: Callable[[], Any]) -> Any:
        try:
            return question()
        except Exception:  # the border: what a driver lacks is an error of NVML's
            return None
