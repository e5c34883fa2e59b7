"""A diagnosis in words."""

from __future__ import annotations

from edgekit.device import Device, Gpu, Jetson
from edgekit.doctor import Diagnosis
from edgekit.units import format_bytes


def describe(diagnosis: Diagnosis) -> str:
    """Several lines, for `edgekit doctor`."""
    rows = _machine(diagnosis.device)
    rows.append(("profile", f"{diagnosis.profile}: {diagnosis.profile_summary}"))
    free = diagnosis.free_bytes
    room = "unknown" if free is None else f"{format_bytes(free)} free"
    rows.append(("store", f"{diagnosis.store}, {room}"))
    lines = [f"{name:<9}{text}" for name, text in rows]
    lines += ["", "backends"]
    for state in diagnosis.backends:
        verdict = "yes" if state.reason is None else f"no: {state.reason}"
        lines.append(f"  {state.name} for {state.profile}: {verdict}")
    lines += ["", "packages"]
    width = max(map(len, diagnosis.versions)) + 1
    lines += [f"  {name:<{width}}{v or 'not installed'}" for name, v in diagnosis.versions.items()]
    for title, texts in (("to install", diagnosis.install), ("advice", diagnosis.advice)):
        if texts:
            lines += ["", title, *(f"  {text}" for text in texts)]
    return "\n".join(lines)


def _machine(device: Device) -> list[tuple[str, str]]:
    total, available = format_bytes(device.memory_bytes), format_bytes(device.available_bytes)
    rows = [
        ("cpu", f"{device.cpu}, {device.cores} cores"),
        ("memory", f"{total}, {available} available"),
    ]
    rows += [(f"gpu {gpu.index}", _gpu(gpu)) for gpu in device.gpus]
    if not device.gpus:
        rows.append(("gpu", device.gpu_problem or "no NVIDIA GPU"))
    if device.jetson is not None:
        rows.append(("jetson", _jetson(device.jetson)))
    return rows


def _gpu(gpu: Gpu) -> str:
    parts = [gpu.name]
    if gpu.sm is not None:
        parts.append(f"sm_{gpu.sm}")
    if gpu.memory_bytes is not None:
        shared = " shared with the processor" if gpu.is_integrated else ""
        parts.append(format_bytes(gpu.memory_bytes) + shared)
    if gpu.free_bytes is not None:
        parts.append(f"{format_bytes(gpu.free_bytes)} free")
    if gpu.bandwidth_bytes_per_s is not None:
        parts.append(f"{gpu.bandwidth_bytes_per_s / 1e9:.0f} GB/s")
    if gpu.has_display:
        parts.append("drives a display")
    if gpu.driver is not None:
        parts.append(f"driver {gpu.driver}")
    if gpu.cuda is not None:
        parts.append(f"CUDA {gpu.cuda}")
    return ", ".join(parts)


def _jetson(jetson: Jetson) -> str:
    parts = [jetson.board or "unknown board"]
    if jetson.jetpack is not None:
        parts.append(f"JetPack {jetson.jetpack}")
    if jetson.l4t is not None:
        parts.append(f"L4T {jetson.l4t}")
    if jetson.power_mode is not None:
        number = "" if jetson.power_mode_id is None else f" ({jetson.power_mode_id})"
        parts.append(f"power mode {jetson.power_mode}{number}")
    if jetson.clocks_locked is None:
        parts.append("clocks unknown (root sees them)")
    else:
        parts.append("clocks locked" if jetson.clocks_locked else "clocks not locked")
    return ", ".join(parts)
