"""NVIDIA GPUs: `record` asks the driver's library NVML, `make_gpus` understands what it said.

Between the two lies plain JSON, so that what a real device answered can be kept and read again:

    {"driver": "580.82.09", "cuda": 13000,
     "gpus": [{"name": "NVIDIA GeForce RTX 4090", "capability": [8, 9],
               "memory": {"total": 25756696576, "free": 25755648000},
               "max_memory_clock_mhz": 10501, "bus_width_bits": 384,
               "display_active": 0, "addressing_mode": 0}]}

What NVML refuses is `{"error": "NotSupported"}` in its place, and no record is too strange to read:
drivers for Jetsons answer with errors, zeros and `[N/A]` where a card answers with numbers.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_TRACES = (
    "proc/driver/nvidia",
    "dev/nvidiactl",
    "dev/dxg",  # Windows Subsystem for Linux
    "dev/nvgpu",
    "dev/nvhost-ctrl-gpu",
    "sys/module/nvgpu",  # Jetson Orin and older
)
"""Where none of these exists there is no NVIDIA driver, and its library is not even loaded."""
_ADDRESSING_MODE_ATS = 2
"""`NVML_DEVICE_ADDRESSING_MODE_ATS`: the GPU walks the processor's page tables."""
_UNKNOWN = {"", "n/a", "not supported", "unknown"}
_PROBLEMS = {
    "NotInstalled": "an NVIDIA driver is here, but not the package that reads it: "
    "`pip install nvidia-ml-py`",
    "LibraryNotFound": "an NVIDIA driver is here, but not its library libnvidia-ml.so.1: "
    "in a container, start it with `--gpus all`",
    "DriverNotLoaded": "the NVIDIA driver is installed but not loaded: restart the machine",
    "LibRmVersionMismatch": "the NVIDIA kernel module and its libraries are of different versions, "
    "as after an update: restart the machine",
    "NoPermission": "this user may not use the NVIDIA driver",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One NVIDIA GPU. `None` is what the driver does not say."""

    index: int
    name: str
    """As NVML gives it, e.g. `"NVIDIA GeForce RTX 3070"`."""
    uuid: str | None = None
    """`"GPU-…"`: the same from NVML and from CUDA, which count in different orders."""
    sm: int | None = None
    """Compute capability, major * 10 + minor: 86 for 8.6."""
    memory_bytes: int | None = None
    """Of an integrated GPU: what the whole machine has."""
    free_bytes: int | None = None
    """Of an integrated GPU: what a new program can have without swapping."""
    bandwidth_bytes_per_s: int | None = None
    """Peak of its own memory: 2 x clock x bus width / 8, two transfers per clock."""
    is_integrated: bool = False
    """It shares the processor's memory."""
    has_display: bool | None = None
    driver: str | None = None
    cuda: str | None = None
    """The newest CUDA that the driver runs."""


def read_record(root: Path = Path("/")) -> dict[str, Any] | None:
    """What NVML says on this machine; `None` where there is no NVIDIA driver."""
    is_windows = sys.platform == "win32"
    if not is_windows and not any((root / trace).exists() for trace in _TRACES):
        return None
    try:
        import pynvml
    except ImportError:
        return {"error": "NotInstalled"}
    said = record(pynvml)
    return None if is_windows and said == {"error": "LibraryNotFound"} else said


def record(nvml: Any) -> dict[str, Any]:
    """Ask `nvml` (the module `pynvml`) for everything, each value or its error. Never raises."""
    started = _ask(nvml, "nvmlInit")
    if isinstance(started, dict):
        return started
    try:
        count = _ask(nvml, "nvmlDeviceGetCount")
        return {
            "driver": _ask(nvml, "nvmlSystemGetDriverVersion"),
            "cuda": _ask(nvml, "nvmlSystemGetCudaDriverVersion_v2"),
            "gpus": [_record_gpu(nvml, i) for i in range(count)] if type(count) is int else count,
        }
    finally:
        _ask(nvml, "nvmlShutdown")


def _record_gpu(nvml: Any, index: int) -> dict[str, Any]:
    handle = _ask(nvml, "nvmlDeviceGetHandleByIndex", index)
    if isinstance(handle, dict):
        return handle
    memory = _ask(nvml, "nvmlDeviceGetMemoryInfo", handle)
    if not isinstance(memory, dict):
        memory = {"total": int(memory.total), "free": int(memory.free)}
    capability = _ask(nvml, "nvmlDeviceGetCudaComputeCapability", handle)
    return {
        "name": _ask(nvml, "nvmlDeviceGetName", handle),
        "uuid": _ask(nvml, "nvmlDeviceGetUUID", handle),
        "capability": capability if isinstance(capability, dict) else list(capability),
        "memory": memory,
        "max_memory_clock_mhz": _ask(
            nvml, "nvmlDeviceGetMaxClockInfo", handle, getattr(nvml, "NVML_CLOCK_MEM", 2)
        ),
        "bus_width_bits": _ask(nvml, "nvmlDeviceGetMemoryBusWidth", handle),
        "display_active": _ask(nvml, "nvmlDeviceGetDisplayActive", handle),
        "addressing_mode": _ask(nvml, "nvmlDeviceGetAddressingMode", handle),
    }


def _ask(nvml: Any, function: str, *arguments: Any) -> Any:
    try:
        said = getattr(nvml, function)(*arguments)
    except Exception as exc:  # the border: an old driver or library lacks functions and values
        return {"error": type(exc).__name__.removeprefix("NVMLError_")}
    return said.decode(errors="replace") if isinstance(said, bytes) else said


def find_problem(record: Mapping[str, Any] | None) -> str | None:
    """Why there is a driver but no GPU, in one sentence; `None` where all is well or no driver."""
    if record is None:
        return None
    gpus = record.get("gpus")
    error = _error(record) or _error(gpus)
    if error is not None:
        return _PROBLEMS.get(error, f"the NVIDIA driver does not answer: {error}")
    if not isinstance(gpus, list) or not gpus:
        driver = _text(record.get("driver"))
        named = f"NVIDIA driver {driver}" if driver else "NVIDIA driver"
        return f"the {named} is loaded but finds no GPU: `sudo dmesg | grep NVRM` says more"
    if lost := [error for gpu in gpus if (error := _error(gpu)) is not None]:
        return f"the NVIDIA driver does not answer for {len(lost)} of {len(gpus)} GPUs: {lost[0]}"
    return None


def make_gpus(
    record: Mapping[str, Any] | None,
    *,
    memory_bytes: int,
    available_bytes: int,
    is_jetson: bool = False,
) -> tuple[Gpu, ...]:
    """The GPUs of a record, on a machine with that much memory. Never raises."""
    rows = record.get("gpus") if record is not None else None
    if record is None or not isinstance(rows, list):
        return ()
    driver, cuda = _text(record.get("driver")), _cuda_version(record.get("cuda"))
    found = []
    for index, row in enumerate(rows):
        if not isinstance(row, Mapping) or _error(row) is not None:
            continue
        name = _text(row.get("name")) or "NVIDIA GPU"
        total, free = _own_memory(row.get("memory"))
        is_integrated = (
            name.endswith("(nvgpu)")
            or (is_jetson and total is None)
            # a Grace Hopper has ATS too, and memory of its own
            or (
                row.get("addressing_mode") == _ADDRESSING_MODE_ATS
                and (total is None or total >= 0.9 * memory_bytes)
            )
        )
        if is_integrated:
            total, free = memory_bytes, available_bytes
        display = row.get("display_active")
        found.append(
            Gpu(
                index=index,
                name=name,
                uuid=_text(row.get("uuid")),
                sm=_sm(row.get("capability")),
                memory_bytes=total,
                free_bytes=free,
                bandwidth_bytes_per_s=_bandwidth(row),
                is_integrated=is_integrated,
                has_display=bool(display) if isinstance(display, int) else None,
                driver=driver,
                cuda=cuda,
            )
        )
    return tuple(found)


def visible_gpus(gpus: tuple[Gpu, ...], named: str) -> tuple[Gpu, ...]:
    """Those that `named`, the value of CUDA_VISIBLE_DEVICES, has by UUID (its beginning is enough),
    in that order; all where it counts them, for NVML does not know in which order CUDA counts."""
    wanted = [name.strip() for name in named.split(",")]
    if not all(name.startswith("GPU-") for name in wanted) or None in {gpu.uuid for gpu in gpus}:
        return gpus
    return tuple(gpu for name in wanted for gpu in gpus if str(gpu.uuid).startswith(name))


def _own_memory(said: Any) -> tuple[int | None, int | None]:
    if not isinstance(said, Mapping) or (total := _positive(said.get("total"))) is None:
        return None, None
    free = said.get("free")
    return total, free if type(free) is int and 0 <= free <= total else None


def _bandwidth(row: Mapping[str, Any]) -> int | None:
    """RTX 3070: 2 x 7001 MHz x 256 bit / 8 = 448 GB/s."""
    clock_mhz = _positive(row.get("max_memory_clock_mhz"))
    bits = _positive(row.get("bus_width_bits"))
    if clock_mhz is None or bits is None:
        return None
    return 2 * clock_mhz * 1_000_000 * bits // 8


def _sm(said: Any) -> int | None:
    with suppress(TypeError, ValueError):
        major, minor = said
        if type(major) is int and type(minor) is int and 0 < major < 100 and 0 <= minor < 10:
            return major * 10 + minor
    return None


def _cuda_version(said: Any) -> str | None:
    """`12040` -> `"12.4"`."""
    number = _positive(said)
    return None if number is None else f"{number // 1000}.{number % 1000 // 10}"


def _positive(said: Any) -> int | None:
    return said if type(said) is int and said > 0 else None


def _text(said: Any) -> str | None:
    text = said.strip() if isinstance(said, str) else ""
    return None if text.strip("[]").lower() in _UNKNOWN else text


def _error(said: Any) -> str | None:
    error = said.get("error") if isinstance(said, Mapping) else None
    return None if error is None else str(error)
