"""Watches the device while a benchmark runs: energy, memory, heat, throttling.

A thread reads power ten times a second, a few small files, and the rest twice; where there is
nothing to read, as on most processors, there is no thread.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter_ns
from typing import Self

import psutil

from edgekit.bench.energy import Energy, Sample, TestEnergy, spent_joules, spent_watts
from edgekit.bench.measure import TestResult
from edgekit.device import Device
from edgekit.device.nvml import CardWatch
from edgekit.device.power import PowerMeter, find_power_meter, read_throttling

_EVERY_S = 0.1
_SLOW_TICKS = 5
"""Who uses how much memory, and what is too hot, is asked less often: it takes longer."""
NO_SENSOR = "no sensor of power can be read here"
TOO_SHORT = "the runs are too short for the sensor; more tokens (`-n`, `-p`) take longer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensors:
    """What there is to read on this machine."""

    meter: PowerMeter | None = None
    """Of a Jetson."""
    card: CardWatch | None = None
    root: Path | None = None
    """Holds the /sys of a Jetson, where throttling is told."""

    @classmethod
    def find(cls, device: Device, *, uses_gpu: bool, uuid: str | None) -> Self:
        """Those of the board, else those of the GPU that the engine runs on."""
        if device.jetson is not None:
            root = Path("/")
            card = CardWatch.open(uuid) if uses_gpu else None
            return cls(meter=find_power_meter(root), card=card, root=root)
        return cls(card=CardWatch.open(uuid) if uses_gpu else None)


class Watch:
    """Reads sensors from entering to leaving it."""

    def __init__(
        self,
        sensors: Sensors,
        *,
        every_s: float = _EVERY_S,
        pids: Callable[[], set[int]] | None = None,
    ) -> None:
        """`pids`: of the processes whose device memory counts; this one and its children."""
        self._sensors, self._every_s = sensors, every_s
        self._pids = pids or _own_pids
        self._samples: list[Sample] = []
        self._counts_joules = False
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._before: Mapping[str, int] | None = None
        self._causes: set[str] = set()
        self._knows_throttling = False
        self.peak_device_bytes: int | None = None

    def __enter__(self) -> Self:
        sensors = self._sensors
        if sensors.root is not None:
            self._before = read_throttling(sensors.root)
        if sensors.meter is not None or sensors.card is not None:
            self._thread = threading.Thread(target=self._run, name="bench-watch", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        for each in (self._sensors.meter, self._sensors.card):
            if each is not None:
                each.close()

    def energy(self, results: Sequence[TestResult]) -> Energy | str:
        """What each test took, or why that is not known. After leaving it."""
        if not self._samples:
            return NO_SENSOR
        spent = spent_joules if self._counts_joules else spent_watts
        tests = {}
        for result in results:
            parts = [spent(self._samples, begin, end) for begin, end in result.spans_ns]
            known = [part for part in parts if part is not None]
            if parts and len(known) == len(parts):
                joules = sum(known)
                if joules > 0:
                    tests[result.test.name] = TestEnergy(joules=joules, tokens=result.tokens)
        return Energy(source=self._source(), tests=tests) if tests else TOO_SHORT

    def throttling(self) -> list[str] | None:
        """What held the device back meanwhile; `None` where it does not say. After leaving it."""
        causes, knows = set(self._causes), self._knows_throttling
        if self._sensors.root is not None and self._before is not None:
            after = read_throttling(self._sensors.root) or {}
            knows = True
            for name, value in after.items():
                if name.startswith("over-current") and value > self._before.get(name, 0):
                    causes.add(f"{name}, {value - self._before.get(name, 0)} times")
        return sorted(causes) if knows else None

    def _source(self) -> str:
        meter = self._sensors.meter
        return "NVML, the GPU alone" if self._counts_joules or meter is None else meter.source

    def _run(self) -> None:
        tick = 0
        while True:
            self._read(reads_all=tick % _SLOW_TICKS == 0)
            tick += 1
            if self._stop.wait(self._every_s):
                self._read(reads_all=True)
                return

    def _read(self, *, reads_all: bool) -> None:
        sensors = self._sensors
        if sensors.meter is not None:
            self._keep(sensors.meter.watts())
        elif sensors.card is not None and (joules := sensors.card.joules()) is not None:
            self._counts_joules = True
            self._keep(joules)
        if sensors.card is not None:
            slow = sensors.card.slowdowns()
            self._knows_throttling = self._knows_throttling or slow is not None
            self._causes |= slow or set()
            if reads_all and (used := sensors.card.used_bytes(self._pids())) is not None:
                self.peak_device_bytes = max(used, self.peak_device_bytes or 0)
        if sensors.root is not None and reads_all:
            now = read_throttling(sensors.root) or {}
            self._causes |= {k for k, v in now.items() if k.endswith("too hot") and v}

    def _keep(self, value: float | None) -> None:
        if value is not None:
            self._samples.append(Sample(at_ns=perf_counter_ns(), value=value))


def _own_pids() -> set[int]:
    try:
        children = psutil.Process().children(recursive=True)
    except psutil.Error:
        children = []
    return {os.getpid(), *(child.pid for child in children)}
