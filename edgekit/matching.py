"""Which profile a machine has: the shipped one of its board or GPU, or one made for the GPU.

A GPU is known by the name that its driver gives it and by its memory: two cards are called
RTX 3080, and two boards AGX Orin.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from types import MappingProxyType

from edgekit.device import Device, Gpu
from edgekit.errors import InputError
from edgekit.profile import Profile, load_profiles
from edgekit.units import format_bytes

MEMORY_TOLERANCE = 0.1
"""How far a memory may be from the profile's: drivers and firmware take a few percent."""
OLDEST_SM = 75
"""Turing: nothing that edgekit drives has kernels for older GPUs."""
_ONNXRUNTIME_SM = frozenset({75, 80, 86, 89, 90, 120})
"""With kernels in the CUDA provider of onnxruntime-gpu 1.31.1 for x86-64, as its file says; no
Jetson is among them."""
_EVERY_GPU = ("fp16", "int8", "int4_awq")
"""Precisions that ONNX Runtime has on all of them."""


def is_gpu(profile: Profile, gpu: Gpu) -> bool:
    """Is that the GPU that the profile describes?"""
    names = {_short(name) for name in profile.gpu_names}
    return _short(gpu.name) in names and _is_near(profile.memory_bytes, gpu.memory_bytes)


def is_board(profile: Profile, device: Device) -> bool:
    """Is this machine the Jetson that the profile describes?"""
    if device.jetson is None or device.jetson.board is None:
        return False
    names = {name.lower() for name in profile.board_names}
    return device.jetson.board.lower() in names and _is_near(
        profile.memory_bytes, device.memory_bytes
    )


def matching_profile(device: Device, profiles: Iterable[Profile]) -> Profile | None:
    """The profile of this machine's board, else of its first GPU that has one; `None`: neither.

    Of several the one nearest in memory is taken.
    """
    known = list(profiles)
    boards = [profile for profile in known if is_board(profile, device)]
    if boards:
        return _nearest(boards, device.memory_bytes)
    for gpu in device.gpus:
        if cards := [profile for profile in known if is_gpu(profile, gpu)]:
            return _nearest(cards, gpu.memory_bytes)
    return None


def profile_here(device: Device, profiles: Sequence[Profile]) -> Profile | None:
    """The profile of this machine, or one made for its first GPU that has none; `None`: it has no
    GPU. Raises `InputError` where nothing has kernels for the GPUs that it has."""
    if (found := matching_profile(device, profiles)) is not None:
        return found
    refusals = []
    for gpu in device.gpus:
        try:
            return profile_of_gpu(gpu, profiles)
        except InputError as exc:
            refusals.append(exc)
    if refusals:
        raise refusals[0]
    return None


def profile_of_gpu(gpu: Gpu, profiles: Sequence[Profile] | None = None) -> Profile:
    """A profile for a GPU that has none, from `profiles` (default: all that can be found).

    Precisions, storage and refusals are those of the profile of the same architecture that is
    nearest in memory; memory and bandwidth are the GPU's own. An architecture without a profile
    gets ONNX Runtime alone. Raises `InputError` for a GPU that nothing here has kernels for.
    """
    if profiles is None:
        profiles, _ = load_profiles()
    cards = [p for p in profiles if p.sm is not None and p.is_memory_unified == gpu.is_integrated]
    _require_kernels(gpu, cards)
    same = [profile for profile in cards if profile.sm == gpu.sm]
    base = _nearest(same, gpu.memory_bytes) if same else _only_onnxruntime(gpu, cards)
    memory = "memory unknown" if gpu.memory_bytes is None else format_bytes(gpu.memory_bytes)
    if gpu.bandwidth_bytes_per_s is None:
        bandwidth = "bandwidth unknown"
    else:
        per_s = round(gpu.bandwidth_bytes_per_s / 1e9)
        bandwidth = f"{per_s} GB/s from bus width and memory clock"
    return replace(
        base,
        name=_slug(gpu),
        summary=f"{gpu.name}, {memory}, {bandwidth}; otherwise as `{base.name}`",
        sm=gpu.sm,
        gpu_names=(gpu.name,),
        board_names=(),
        memory_bytes=gpu.memory_bytes or None,
        bandwidth_bytes_per_s=gpu.bandwidth_bytes_per_s or None,
        power_modes=(),
        sources=MappingProxyType(
            {"memory_bytes": "NVML", "bandwidth_bytes_per_s": "NVML: 2 x clock x bus width / 8"}
        ),
    )


def _require_kernels(gpu: Gpu, cards: Sequence[Profile]) -> None:
    if gpu.sm is None:
        reason = f"the driver does not say which architecture {gpu.name} has"
    elif gpu.sm < OLDEST_SM:
        reason = (
            f"{gpu.name} is sm_{gpu.sm}: nothing that edgekit drives has kernels for GPUs "
            f"older than sm_{OLDEST_SM}"
        )
    elif gpu.sm not in _ONNXRUNTIME_SM and gpu.sm not in {profile.sm for profile in cards}:
        reason = f"{gpu.name} is sm_{gpu.sm}: no profile or backend of this version knows it"
    else:
        return
    raise InputError(reason, hint="use `--profile cpu`")


def _only_onnxruntime(gpu: Gpu, cards: Sequence[Profile]) -> Profile:
    """A profile for a GPU of an architecture that no profile has."""
    able = [card for card in cards if {*_EVERY_GPU} <= {*card.precisions} and "fp16" in card.kv]
    if not able:
        raise InputError(
            f"no profile here describes a GPU like {gpu.name}", hint="use `--profile cpu`"
        )
    base = _nearest(able, gpu.memory_bytes)
    order = tuple(name for name in base.precisions if name in _EVERY_GPU)
    return replace(
        base,
        backends=("onnxruntime",),
        precisions=order,
        storage=MappingProxyType({name: base.storage[name] for name in order}),
        kv=MappingProxyType({"fp16": replace(base.kv["fp16"], not_with=(), reason="")}),
        refused=MappingProxyType({}),
    )


def _nearest(profiles: Sequence[Profile], memory_bytes: int | None) -> Profile:
    if memory_bytes is None:
        return profiles[0]
    return min(profiles, key=lambda profile: abs((profile.memory_bytes or 0) - memory_bytes))


def _is_near(expected: int | None, found: int | None) -> bool:
    """Unknown memory contradicts nothing."""
    if expected is None or found is None:
        return True
    return abs(found - expected) <= MEMORY_TOLERANCE * expected


def _short(name: str) -> str:
    """Drivers before 470 leave out `NVIDIA`."""
    return name.lower().removeprefix("nvidia ").strip()


def _slug(gpu: Gpu) -> str:
    """Fit for a directory: `"NVIDIA GeForce RTX 3060"` with 12 GiB -> `rtx-3060-12gb`."""
    words = _short(gpu.name).removeprefix("geforce ")
    slug = re.sub(r"[^a-z0-9]+", "-", words).strip("-") or "gpu"
    return slug if gpu.memory_bytes is None else f"{slug}-{round(gpu.memory_bytes / 1024**3)}gb"
