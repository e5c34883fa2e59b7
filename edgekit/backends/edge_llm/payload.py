"""Which of the native libraries in its wheel Edge-LLM would load on a machine, if any.

Its own choice (`tensorrt_edgellm/_native/select.py`) is exact: Python, processor, the system that
it was built for, CUDA's and TensorRT's major versions and the GPU's compute capability must all be
those of one row, or nothing loads. A wheel has 200 to 450 MB, so it is better to know before.
"""

from __future__ import annotations

import json
import platform as _platform
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from edgekit.device import Device
from edgekit.errors import MissingBackendError

CUDA_MAJOR = 13
"""Of every row."""
PYTHONS = ("3.10", "3.11", "3.12")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One set of native libraries."""

    name: str
    machine: str
    system: str
    """`"l4t:R38.2"`, `"ubuntu:24.04"`, `"driveos:7.2"`, or `"model:"` and a part of its name."""
    tensorrt: int
    """Major version."""
    sm: int
    called: str
    """What people call the system."""


def _jetson(name: str, l4t: str, jetpack: str, sm: int) -> Row:
    return Row(name=name, machine="aarch64", system=f"l4t:{l4t}", tensorrt=10, sm=sm,
               called=f"JetPack {jetpack}")  # fmt: skip


def _ubuntu(release: str, sm: int, tensorrt: int) -> Row:
    name = f"x86-ubuntu{release.replace('.', '')}-cu13-sm{sm}"
    return Row(
        name=f"{name}-trt11" if tensorrt == 11 else name,
        machine="x86_64", system=f"ubuntu:{release}", tensorrt=tensorrt, sm=sm,
        called=f"Ubuntu {release}",
    )  # fmt: skip


ROWS = (
    _jetson("jetson-thor-jp70", "R38.2", "7.0", 110),
    _jetson("jetson-thor-jp71", "R38.4", "7.1", 110),
    _jetson("jetson-thor-jp72", "R39.2", "7.2", 110),
    _jetson("jetson-orin-jp72", "R39.2", "7.2", 87),
    Row(name="dgx-spark", machine="aarch64", system="model:dgx spark", tensorrt=10, sm=121,
        called="DGX Spark"),
    Row(name="drive-thor", machine="aarch64", system="driveos:7.2", tensorrt=10, sm=110,
        called="DriveOS 7.2"),
    Row(name="igx-thor", machine="aarch64", system="model:igx thor", tensorrt=10, sm=110,
        called="IGX Thor"),
    Row(name="igx-thor-sm120", machine="aarch64", system="model:igx thor", tensorrt=10, sm=120,
        called="IGX Thor"),
    _ubuntu("22.04", 80, 10),
    *(_ubuntu("24.04", sm, 10) for sm in (86, 100, 120)),
    *(_ubuntu("24.04", sm, 11) for sm in (80, 86, 100, 120)),
)  # fmt: skip
"""Of the wheels of 0.11.0: `tensorrt_edgellm/_native/variants.json`, x86_64 and aarch64. Names of
the rows for aarch64 are ours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What the choice is made from. `None` is what is not known: it is held against nobody."""

    machine: str
    python: str
    system: str | None
    sm: int | None
    cuda_major: int | None = None
    tensorrt_major: int | None = None
    board: str | None = None


def read_machine(
    device: Device, details: Mapping[str, str] | None = None, *, root: Path = Path("/")
) -> Machine:
    """This machine; `details` are a runtime's, whose Python counts."""
    said = details or {}
    gpus = {gpu.sm for gpu in device.gpus if gpu.sm is not None}
    cuda = next((gpu.cuda for gpu in device.gpus if gpu.cuda), None)
    jetson = device.jetson
    return Machine(
        machine=said.get("machine") or _platform.machine(),
        python=said.get("python") or f"{sys.version_info[0]}.{sys.version_info[1]}",
        system=_read_system(device, root),
        sm=gpus.pop() if len(gpus) == 1 else None,
        cuda_major=_major(cuda),
        tensorrt_major=_major(said.get("tensorrt")),
        board=None if jetson is None else jetson.board,
    )


def rows_of(details: Mapping[str, str]) -> tuple[Row, ...]:
    """Of the wheel that is installed, as it says itself; empty where it was built from sources."""
    try:
        found = json.loads(details.get("variants", "[]"))
        return tuple(row for each in found for row in _rows(each))
    except (ValueError, KeyError, TypeError, IndexError):
        return ()


def _rows(said: Mapping[str, Any]) -> list[Row]:
    """An entry of `variants.json`: a row for each name of its system."""
    kind = {"os-release": "", "l4t": "l4t:", "driveos": "driveos:", "device-model": "model:"}[
        said["platform_probe_source"]
    ]
    return [
        Row(
            name=str(said["variant_id"]),
            machine=str(said["cpu_arch"]),
            system=f"{kind}{value}" if kind != "model:" else f"model:{value.lower()}",
            tensorrt=int(said["tensorrt_runtime_soname"].rpartition(".")[2]),
            sm=int(said["gpu_sm"]),
            called=_say(f"{kind}{value}"),
        )
        for value in said["platform_probe_values"]
    ]


def find_row(machine: Machine, rows: Sequence[Row] = ROWS) -> Row:
    """The row that fits. Raises `MissingBackendError`, in one sentence, for the first thing that
    does not."""
    _require_python(machine)
    rows = [row for row in rows if row.machine == machine.machine]
    if not rows:
        _refuse(f"for {machine.machine}", "x86_64 and aarch64")
    if machine.sm is not None:
        fitting = [row for row in rows if row.sm == machine.sm]
        if not fitting:
            known = ", ".join(f"sm_{sm}" for sm in sorted({row.sm for row in rows}))
            _refuse(f"for a GPU of sm_{machine.sm} on {machine.machine}", known)
        rows = fitting
    fitting = [row for row in rows if _is_system(row, machine)]
    if not fitting:
        found = machine.system or "a system that does not say what it is"
        _refuse(f"for {_say(found)}", ", ".join(dict.fromkeys(row.called for row in rows)))
    rows = fitting
    if machine.cuda_major not in (None, CUDA_MAJOR):
        _refuse(f"for CUDA {machine.cuda_major}", f"CUDA {CUDA_MAJOR}")
    fitting = [row for row in rows if machine.tensorrt_major in (None, row.tensorrt)]
    if not fitting:
        known = " and ".join(str(row.tensorrt) for row in rows)
        _refuse(f"for TensorRT {machine.tensorrt_major}", f"TensorRT {known}")
    return fitting[0]


def _require_python(machine: Machine) -> None:
    if machine.python not in PYTHONS:
        raise MissingBackendError(
            f"Edge-LLM has no wheel for Python {machine.python}: only for {', '.join(PYTHONS)}",
            hint="sudo apt-get install python3.12-venv, then `edgekit doctor --install edge-llm`",
        )


def _is_system(row: Row, machine: Machine) -> bool:
    if row.system.startswith("model:"):
        return row.system.removeprefix("model:") in (machine.board or "").lower()
    return row.system == machine.system


def _refuse(what: str, known: str) -> NoReturn:
    raise MissingBackendError(
        f"Edge-LLM's wheel holds no libraries {what}: only for {known}",
        hint="flash a JetPack that it names, or build Edge-LLM from its sources and name its "
        "interpreter: `--edgellm-python`",
    )


def _say(system: str) -> str:
    """`"l4t:R36.4"` -> `"Jetson Linux R36.4"`."""
    kind, _, value = system.partition(":")
    return {"l4t": f"Jetson Linux {value}", "driveos": f"DriveOS {value}"}.get(
        kind, f"{kind} {value}".strip()
    )


def _read_system(device: Device, root: Path) -> str | None:
    """As Edge-LLM looks: Jetson Linux by its release, else the distribution."""
    if device.jetson is not None and device.jetson.l4t is not None:
        return "l4t:R" + ".".join(device.jetson.l4t.split(".")[:2])
    try:
        text = (root / "etc/os-release").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    found = dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', text, re.MULTILINE))
    return f"{found['ID']}:{found.get('VERSION_ID', '')}" if "ID" in found else None


def _major(version: str | None) -> int | None:
    found = re.match(r"\d+", version or "")
    return int(found[0]) if found else None
