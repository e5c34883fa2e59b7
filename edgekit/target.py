"""The device that an engine is for, and what of it is free: this machine, or one by name.

A named device is planned from its profile: what programs see of its memory, less what the system
and a desktop take. Where the device is this machine, what is free now counts, and nothing is
guessed.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from importlib import metadata
from importlib.util import find_spec
from types import MappingProxyType

from edgekit.backends import list_backends, missing_packages, missing_runtime, unfit_runtime
from edgekit.device import Device, Gpu, is_older
from edgekit.errors import InputError, MissingBackendError
from edgekit.footprint import find_footprint
from edgekit.matching import is_board, is_gpu, matching_profile, profile_of_gpu
from edgekit.model import ModelSpec
from edgekit.profile import DEFAULT_PROFILE, Profile, find_profile, load_profiles
from edgekit.steps import Budget
from edgekit.units import MIB, format_bytes

_LOG = logging.getLogger(__name__)
_DRAFTS_ABOVE = "edgekit drafts for it while it answers"
_NO_DRAFTS = "edgekit has no way to tell its engines to draft"
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
    found = matching_profile(device, profiles)
    if found is not None:
        return found
    refusals = []
    for gpu in device.gpus:
        try:
            return profile_of_gpu(gpu, profiles)
        except InputError as exc:
            refusals.append(exc)
    if refusals:
        raise refusals[0]
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
    own = _own_gpu(profile, device)
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


def choose_backend(
    profile: Profile,
    wanted: str,
    device: Device,
    *,
    is_needed: bool,
    precision: str = "auto",
    kv_precision: str = "auto",
    others: Sequence[Profile] = (),
    to_stage: bool = False,
    spec: ModelSpec | None = None,
    speculation: str = "none",
    asks_runtime: bool = False,
) -> str:
    """The backend to plan for, or, with `is_needed`, to build with here.

    `auto` passes over backends that have not the precision, the cache or the way to draft that is
    wished for, or take no model of that shape; with `asks_runtime` also over those that need
    another version of the runtime which is named here.
    Raises `InputError` for one that the profile does not have, `MissingBackendError` when it, or
    with `auto` every one of them, is not real on this machine.
    """
    if wanted not in ("auto", *profile.backends):
        why = profile.why_not_backend(wanted)
        raise InputError(
            f"the profile `{profile.name}` has no backend {wanted}" + (f": {why}" if why else ""),
            hint=f"it has {', '.join(profile.backends)}",
        )
    names = profile.backends if wanted == "auto" else (wanted,)
    if speculation != "none":
        names = _that_draft(names, speculation)
    if others:
        names = _shared(profile, others, names)
    precision = profile.aliases.get(precision, precision)
    rows = {name: find_footprint(name, profile) for name in names}
    able = tuple(
        name
        for name, row in rows.items()
        if precision in ("auto", *row.precisions) and kv_precision in ("auto", *row.kv_precisions)
    )
    names = able or names
    if to_stage:
        names = _with_stage(profile, names)
    refusals = {name: why_not_shape(name, spec) for name in names}
    names = tuple(name for name in names if refusals[name] is None)
    if not names:
        told = "; ".join(f"{name} takes {reason}" for name, reason in refusals.items())
        anything = {info.name for info in list_backends() if info.takes_any_shape}
        ways = [name for name in profile.backends if why_not_shape(name, spec) is None]
        ways.sort(key=lambda name: name not in anything)
        way = f"use `--backend {ways[0]}`" if ways else "use `--profile cpu`"
        if others and ways:
            way = f"build for each alone: `--profile {profile.name} --backend {ways[0]}`"
        raise InputError(f"no engine of this model for `{profile.name}`: {told}", hint=way)
    if not is_needed:
        fit = [n for n in names if asks_runtime and unfit_runtime(n) is None]
        return (fit or names)[0]
    reasons = {}
    for name in names:
        if (reason := why_not_here(name, profile, device, to_stage=to_stage)) is None:
            return name
        reasons[name] = reason
    raise MissingBackendError(
        f"`{profile.name}` cannot be built for on this machine: "
        + "; ".join(f"{name}: {reason}" for name, reason in reasons.items()),
        hint=_remedy(names, is_alone=not others),
    )


def _that_draft(names: Sequence[str], speculation: str) -> tuple[str, ...]:
    """Those whose engines draft in that way. Raises `InputError`."""
    known = {info.name: info for info in list_backends()}
    if able := tuple(n for n in names if n in known and speculation in known[n].speculation):
        return able
    told = []
    for name in names:
        info = known.get(name)
        own = info.no_speculation.get(speculation) if info is not None else None
        above = _DRAFTS_ABOVE if info is not None and info.exposes_logits else _NO_DRAFTS
        told.append(f"{name}: {own or above}")
    having = [info.name for info in list_backends() if speculation in info.speculation]
    raise InputError(
        f"no engine that drafts by {speculation} itself: {'; '.join(told)}",
        hint="leave `--speculation` out"
        + (f", or use `--backend {having[0]}` on a device that has it" if having else ""),
    )


def _remedy(names: Sequence[str], *, is_alone: bool) -> str:
    """What to install for the first of these backends that can be installed, or another way."""
    known = {info.name: info for info in list_backends()}
    for name in names:
        if name in known and known[name].compiles_ahead and missing_packages(name):
            return f"pip install {known[name].install}"
    other = "use `--profile cpu --backend auto` to build for this machine's processor, or "
    return (other if is_alone else "") + "`edgekit doctor` says what to install"


def why_not_shape(backend: str, spec: ModelSpec | None) -> str | None:
    """What a backend takes instead of a model of that shape; `None`: it takes it, or is not known
    yet."""
    info = {info.name: info for info in list_backends()}.get(backend)
    if info is None or spec is None:
        return None
    if info.families is not None and spec.family not in info.families:
        return f"{' and '.join(sorted(info.families))} models, not {spec.family}"
    has_bias = spec.has_qkv_bias or spec.has_o_bias or spec.has_mlp_bias
    if info.families is not None and has_bias and not info.takes_biases:
        return "no biases in linear layers"
    if info.head_sizes is not None and spec.head_dim not in info.head_sizes:
        sizes = info.head_sizes
        return (
            f"attention heads of {sizes[0]} to {sizes[-1]} in steps of {sizes.step}, not of "
            f"{spec.head_dim}"
        )
    return None


def _with_stage(profile: Profile, names: Sequence[str]) -> tuple[str, ...]:
    """Those with a stage that can be carried to the device. Raises `InputError`."""
    known = {info.name for info in list_backends() if info.has_stage}
    if able := tuple(name for name in names if name in known):
        return able
    raise InputError(
        f"no stage before the engine for `{profile.name}` with {', '.join(names)}",
        hint="leave `--stage` out: its engines are compiled where they are built",
    )


def _shared(profile: Profile, others: Sequence[Profile], names: Sequence[str]) -> tuple[str, ...]:
    """The backends that make one engine for all these devices. Raises `InputError`."""
    every = (profile, *others)
    devices = ", ".join(each.name for each in every)
    able = tuple(
        name
        for name in names
        if find_footprint(name, profile).builds_ahead
        and all(name in each.backends for each in every)
    )
    if not able:
        raise InputError(
            f"no backend makes one engine for all of {devices}",
            hint="build for each alone, with `--profile`; RTX cards can share one by "
            "`--backend tensorrt-rtx`",
        )
    return able


def why_not_here(
    backend: str, profile: Profile, device: Device, *, to_stage: bool = False
) -> str | None:
    """Why a backend cannot build for that profile on this machine; `None`: it can.

    `to_stage`: only up to the stage that is carried to the device.
    """
    known = {info.name: info for info in list_backends()}
    if backend not in known:
        return "not part of this version of edgekit"
    if missing := missing_packages(backend):
        return f"needs {', '.join(missing)}, which is not installed"
    lacking = [name for name in known[backend].on_gpu if not _is_importable(name)]
    if lacking and _own_gpu(profile, device) is not None:
        return f"needs {', '.join(lacking)} for the GPU here, which is not installed"
    if profile.sm is None or known[backend].compiles_ahead:
        return None
    if to_stage:
        return unfit_runtime(backend)
    if _own_gpu(profile, device) is None:
        staged = "; `--stage checkpoint` makes everything up to there"
        return (
            f"its engines are checked on the GPU, and no {profile.name} is here"
            f"{staged if known[backend].has_stage else ''}"
        )
    if (old := why_jetpack(profile, device)) is not None:
        return old
    if lacks := missing_runtime(backend):
        return lacks
    package = known[backend].gpu_package
    if package is not None and not _is_installed(package):
        return f"needs {package} to use the GPU"
    return None


def why_jetpack(profile: Profile, device: Device) -> str | None:
    """That the JetPack here is too old for that board; `None`: it is not, or is not known."""
    here = None if device.jetson is None else device.jetson.jetpack
    if profile.min_jetpack is None or here is None or not is_older(here, profile.min_jetpack):
        return None
    return f"{profile.name} needs JetPack {profile.min_jetpack} or later, this is {here}"


def _is_importable(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # its parent is not there
        return False


def _is_installed(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


def _own_gpu(profile: Profile, device: Device) -> Gpu | None:
    """The GPU of this machine that the profile describes."""
    return next((gpu for gpu in device.gpus if is_gpu(profile, gpu)), None)
