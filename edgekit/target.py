"""The device that an engine is for, and what of it is free: this machine, or one by name.

A named device is planned from its profile: what programs see of its memory, less what the system
and a desktop take. Where the device is this machine, what is free now counts, and nothing is
guessed.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from types import MappingProxyType

from edgekit.device import Device, Gpu
from edgekit.errors import InputError
from edgekit.footprint import find_footprint
from edgekit.matching import is_board, is_gpu, profile_here
from edgekit.profile import DEFAULT_PROFILE, Profile, find_profile, load_profiles
from edgekit.steps import Budget
from edgekit.units import MIB, format_bytes

_LOG = logging.getLogger(__name__)
_RAM_RESERVE_BYTES = 512 * MIB
"""Left to the rest of the building machine."""


def find_target(name: str | None, device: Device) -> Profile:
    """The profile of that name, or of this machine: of its board, of its first GPU that has one,
    one made for its first GPU, or `cpu` where there is no GPU.

    A profile that cannot be read is no obstacle to the others; `edgekit profiles` says what is
    wrong with it. Raises `ProfileError`; `InputError` for a GPU that nothing here has kernels for.
    """
    if name is not None:
        return find_profile(name)
    profiles, _ = load_profiles()
    if (found := profile_here(device, profiles)) is not None:
        return found
    if device.gpu_problem is not None:
        _LOG.warning("%s; taking the processor", device.gpu_problem)
    return find_profile(DEFAULT_PROFILE)


def find_targets(name: str | None, names: Sequence[str], device: Device) -> list[Profile]:
    """The profile to plan for and the others that the same engine is for.

    It is the one of that `name`, else the one of `names` with the least memory. Raises
    `ProfileError`; `InputError` for names that have nothing to share.
    """
    if not names:
        return [find_target(name, device)]
    found = {each: find_profile(each) for each in dict.fromkeys(names)}
    for profile in found.values():
        if profile.sm is None:
            raise InputError(
                f"`{profile.name}` is no GPU: one engine for several devices is for NVIDIA GPUs",
                hint="leave it out of `--for`, and build for it alone",
            )
    if name is None:
        name = min(found, key=lambda each: found[each].memory_bytes or 0)
    first = found.pop(name, None) or find_profile(name)
    return [first, *found.values()]


def with_storage(profile: Profile, backend: str) -> Profile:
    """The profile, with what the backend stores in its own way on every device."""
    own = find_footprint(backend, profile).storage
    rows = {name: own.get(name, row) for name, row in profile.storage.items()}
    return replace(profile, storage=MappingProxyType(rows))


def device_budget(profile: Profile, device: Device, *, is_headless: bool = False) -> Budget:
    """What a running engine may use on the target."""
    own = own_gpu(profile, device)
    is_here = is_board(profile, device) or (profile.is_memory_unified and own is not None)
    if is_here or (profile.memory_bytes is None and profile.sm is None):
        free = device.available_bytes - profile.reserved_bytes
        reserve = format_bytes(profile.reserved_bytes)
        return Budget(
            bytes=max(0, free),
            where="this machine's memory",
            detail=f"free on this machine now, less {reserve} for the rest of the system",
        )
    if own is not None and own.free_bytes is not None:
        # the driver counts some memory as free that no program gets
        visible = profile.memory_bytes or own.free_bytes
        most = max(0, visible - profile.reserved_bytes)
        return Budget(
            bytes=min(own.free_bytes, most),
            where=f"GPU {own.index}",
            detail=f"free now on GPU {own.index}, {own.name}",
            is_device=True,
            is_here=True,
        )
    if profile.memory_bytes is None:
        raise InputError(
            f"how much memory `{profile.name}` has is not known: its driver does not say",
            hint="use `--profile cpu`, or a profile of your own with `memory_bytes`: start from "
            "`edgekit profiles show rtx-4090`",
        )
    less = {"reserved": profile.reserved_bytes}
    if not is_headless:
        less["for a desktop, unless `--headless`"] = profile.desktop_bytes
    taken = [f"{format_bytes(size)} {what}" for what, size in less.items() if size]
    said = f"{format_bytes(profile.memory_bytes)} visible"
    return Budget(
        bytes=max(0, profile.memory_bytes - sum(less.values())),
        where=f"{profile.name}'s memory",
        detail=f"{said}, less {' and '.join(taken)}" if taken else said,
        is_device=not profile.is_memory_unified,
    )


def host_budget(profile: Profile, device: Device) -> Budget:
    """RAM for the steps that run beside the GPU, on the machine where they are run: this one."""
    reserve = profile.reserved_bytes if profile.memory_bytes is None else _RAM_RESERVE_BYTES
    return Budget(bytes=max(0, device.available_bytes - reserve), where="this machine's RAM")


def own_gpu(profile: Profile, device: Device) -> Gpu | None:
    """The GPU of this machine that the profile describes."""
    return next((gpu for gpu in device.gpus if is_gpu(profile, gpu)), None)
