"""What a Jetson draws, how hot it is, whether it is held back: from /sys, or from tegrastats.

- INA3221 chips measure three rails each, as mV and mA; the INA238 of an AGX Thor the board's input,
  as µW (https://github.com/rbonghi/jetson_stats/pull/900).
- One rail is the whole input where there is such a one (`VIN`, `VDD_IN`). An AGX Orin has none: the
  sum of its rails is the module alone, less than what the power supply gives.
- NVML answers for no Jetson (https://github.com/HazyResearch/intelligence-per-watt/issues/40).
"""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Protocol

WHOLE = ("VIN", "VDD_IN", "POM_5V_IN")
"""Rails that are the whole input, the first choice first."""
_UNUSED = re.compile(r"^NC$|sum of shunt", re.IGNORECASE)
_LABEL = re.compile(r"in(\d+)_label")
_TEGRASTATS_RAIL = re.compile(r"\b([A-Z][A-Z0-9_]*) (\d+)mW(?:/\d+mW)?")
_TEGRASTATS = ("tegrastats", "--interval", "100")
_STALE_S = 1.0


class PowerMeter(Protocol):
    """Something that tells how much power is drawn now."""

    @property
    def source(self) -> str:
        """Which rails, and of what, in words."""
        ...

    def watts(self) -> float | None:
        """`None`: it does not say now."""
        ...

    def close(self) -> None:
        """Stop measuring. Safe to call twice."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Rail:
    """One rail of a chip: a file with µW, or two with mV and mA."""

    name: str
    chip: str
    files: tuple[Path, ...]

    def watts(self) -> float | None:
        """`None`: it cannot be read."""
        values = [read_number(path) for path in self.files]
        if None in values:
            return None
        if len(values) == 1:
            return values[0] / 1e6  # type: ignore[operator]  # none is None
        return values[0] * values[1] / 1e6  # type: ignore[operator]


class RailMeter:
    """The rails of one board, from /sys. Needs no rights."""

    def __init__(self, rails: Sequence[Rail]) -> None:
        """`rails` are what `find_rails` gives, one at least."""
        by_name = {rail.name: rail for rail in rails}
        self._rails = [by_name[name] for name in choose_rails(list(by_name))]

    @property
    def source(self) -> str:
        """Which rails, and whether they are the whole input."""
        chips = " and ".join(sorted({rail.chip.upper() for rail in self._rails}))
        return f"{describe_rails([rail.name for rail in self._rails])} ({chips})"

    def watts(self) -> float | None:
        """Their sum; `None` where one does not answer, for a part of a sum is no sum."""
        values = [rail.watts() for rail in self._rails]
        return None if None in values else sum(value for value in values if value is not None)

    def close(self) -> None:
        """Nothing to stop."""


class TegrastatsMeter:
    """The same rails as `tegrastats` prints them, where /sys does not show them."""

    def __init__(self, command: Sequence[str] = _TEGRASTATS) -> None:
        """Raises `OSError` when it does not start."""
        self._latest: tuple[float, dict[str, float]] | None = None
        self._process = subprocess.Popen(
            list(command), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self._thread = threading.Thread(target=self._read, name="tegrastats", daemon=True)
        self._thread.start()

    @property
    def source(self) -> str:
        """Which rails, and whether they are the whole input."""
        names = choose_rails(list(self._latest[1])) if self._latest else []
        return f"{describe_rails(names)} (tegrastats)"

    def watts(self) -> float | None:
        """Of the last line, unless it is old."""
        latest = self._latest
        if latest is None or monotonic() - latest[0] > _STALE_S:
            return None
        return sum(latest[1][name] for name in choose_rails(list(latest[1])))

    def close(self) -> None:
        """End it. Safe to call twice."""
        self._process.kill()
        self._process.wait()
        self._thread.join(timeout=1)

    def _read(self) -> None:
        assert self._process.stdout is not None
        with suppress(OSError, ValueError), self._process.stdout as lines:
            for line in lines:
                if rails := parse_tegrastats(line.decode(errors="replace")):
                    self._latest = (monotonic(), rails)


def find_power_meter(root: Path = Path("/")) -> PowerMeter | None:
    """What measures this board; `None` where nothing does."""
    if rails := find_rails(root):
        return RailMeter(rails)
    if root == Path("/") and shutil.which(_TEGRASTATS[0]):
        with suppress(OSError):
            return TegrastatsMeter()
    return None


def find_rails(root: Path) -> list[Rail]:
    """Every rail that an INA chip of this machine measures and that can be read now."""
    rails = []
    for chip in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        name = read_text(chip / "name")
        if not name.startswith("ina"):
            continue
        found = []
        for label in sorted(chip.glob("in*_label")):
            number = _LABEL.fullmatch(label.name)
            said = read_text(label)
            if number is None or not said or _UNUSED.search(said):
                continue
            files = (chip / f"in{number[1]}_input", chip / f"curr{number[1]}_input")
            found.append(Rail(name=said, chip=name, files=files))
        if not found:  # the one of an AGX Thor has no label
            found = [Rail(name="VIN", chip=name, files=(chip / "power1_input",))]
        rails += [rail for rail in found if rail.watts() is not None]
    return rails


def choose_rails(names: Sequence[str]) -> list[str]:
    """The one that is the whole input, else all of them."""
    whole = [name for name in WHOLE if name in names]
    return whole[:1] or sorted(names)


def describe_rails(names: Sequence[str]) -> str:
    """As the source of a figure."""
    if len(names) == 1 and names[0] in WHOLE:
        return f"{names[0]}, the whole board"
    return f"{' + '.join(names)}, the module without its supply"


def parse_tegrastats(line: str) -> dict[str, float]:
    """`"… VDD_GPU 2377mW/2377mW VIN 22688mW/22688mW"` -> watts of each rail at this moment."""
    rails = {name: int(milliwatts) / 1000 for name, milliwatts in _TEGRASTATS_RAIL.findall(line)}
    return {name: watts for name, watts in rails.items() if not _UNUSED.search(name)}


def read_hottest_c(root: Path) -> float | None:
    """The hottest thermal zone. One whose part is switched off does not answer, and is left out."""
    zones = (root / "sys/class/thermal").glob("thermal_zone*/temp")
    values = [value / 1000 for zone in zones if (value := read_number(zone)) is not None]
    return max((value for value in values if -40 < value < 150), default=None)


def read_gpu_clock(root: Path) -> dict[str, int] | None:
    """`gpu_mhz` and `gpu_max_mhz` of the integrated GPU; `None` where its clock is not shown."""
    for device in sorted((root / "sys/class/devfreq").glob("*")):
        name = device.name.lower()
        if not any(part in name for part in (".gpu", "gpu-gpc", "ga10b", "gv11b")):
            continue
        now, most = read_number(device / "cur_freq"), read_number(device / "max_freq")
        if now is not None and most is not None:
            return {"gpu_mhz": round(now / 1e6), "gpu_max_mhz": round(most / 1e6)}
    return None


def read_throttling(root: Path) -> Mapping[str, int] | None:
    """What has held, or holds, the board back: counters of over-current events, which only grow,
    and alerts of parts that are too hot, 1 while they are; `None` where neither can be read."""
    found: dict[str, int] = {}
    for chip in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        if read_text(chip / "name") == "soctherm_oc":
            for counter in sorted(chip.glob("oc*_event_cnt")):
                if (value := read_number(counter)) is not None:
                    found[f"over-current {counter.name.split('_')[0]}"] = value
    for device in sorted((root / "sys/class/thermal").glob("cooling_device*")):
        kind = read_text(device / "type")
        if kind.endswith("throttle-alert") and (
            (value := read_number(device / "cur_state")) is not None
        ):
            found[f"{kind.removesuffix('-throttle-alert')} too hot"] = value
    return found or None


def read_text(path: Path) -> str:
    """Without its line end; empty where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0\n ")
    except OSError:
        return ""


def read_number(path: Path) -> int | None:
    """The number in a file; `None` where there is none, or it cannot be read."""
    try:
        return int(read_text(path))
    except ValueError:
        return None
