"""The backend that an engine is built with: the profile's first that is real, or one by name.

What is refused is refused with its reason and the nearest that works.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata
from importlib.util import find_spec

from edgekit.backends import (
    list_backends,
    missing_packages,
    missing_runtime,
    runtime_install,
    runtime_option,
    unfit_runtime,
)
from edgekit.device import Device, is_older
from edgekit.errors import InputError, MissingBackendError
from edgekit.footprint import find_footprint
from edgekit.model import ModelSpec
from edgekit.profile import Profile
from edgekit.target import own_gpu

_DRAFTS_ABOVE = "edgekit drafts for it while it answers"
_NO_DRAFTS = "edgekit has no way to tell its engines to draft"


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
        hint=_remedy(names, profile, device, is_alone=not others),
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


def _remedy(names: Sequence[str], profile: Profile, device: Device, *, is_alone: bool) -> str:
    """What to install for the first of these backends that can be installed, or another way."""
    known = {info.name: info for info in list_backends()}
    ours = [name for name in names if name in known]
    for name in ours:
        if known[name].compiles_ahead and missing_packages(name):
            return f"pip install {known[name].install}"
    other = "use `--profile cpu --backend auto` to build for this machine's processor, or "
    other = other if is_alone else ""
    if own_gpu(profile, device) is not None:
        if why_jetpack(profile, device) is not None:
            return f"flash JetPack {profile.min_jetpack} or later"
        for name in ours:
            if (command := runtime_install(name)) and missing_runtime(name):
                told = runtime_option(name)
                return f"{command}; then `{told}`" if told else command
    elif is_alone and any(known[name].has_stage for name in ours):
        return f"{other}`--on USER@HOST` to have it compiled there"
    return f"{other}`edgekit doctor` says what to install"


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
    if lacking and own_gpu(profile, device) is not None:
        return f"needs {', '.join(lacking)} for the GPU here, which is not installed"
    if profile.sm is None or known[backend].compiles_ahead:
        return None
    if to_stage:
        return unfit_runtime(backend)
    if own_gpu(profile, device) is None:
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
