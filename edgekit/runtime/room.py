"""Is there room for an engine now? Asked before its weights are loaded, not in the middle."""

from __future__ import annotations

from edgekit.device import Device
from edgekit.engine import Manifest
from edgekit.errors import BudgetError, InputError, ProfileError
from edgekit.footprint import find_footprint
from edgekit.matching import is_gpu
from edgekit.plan import SMALLEST_CONTEXT_TOKENS
from edgekit.profile import DEFAULT_PROFILE, Profile, find_profile
from edgekit.target import device_budget, find_target
from edgekit.units import format_bytes

_STEP_TOKENS = 256


def require_room_to_load(
    manifest: Manifest, device: Device, *, context_tokens: int, num_slots: int
) -> None:
    """Compare what the plan says with what is free now.

    Raises `BudgetError` with both numbers, and the context that would fit if there is one.
    """
    plan = manifest.plan
    profile = _profile(manifest, device)
    try:
        budget = device_budget(profile, device)
    except InputError:  # a GPU of unknown memory: nothing to compare with
        return
    is_fixed = find_footprint(manifest.backend["name"], profile).has_fixed_cache
    if is_fixed:
        context_tokens = manifest.context_tokens
    kv_bytes_per_token = plan["kv_cache_bytes"] / (plan["context_tokens"] * plan["batch"])
    fixed, work = plan["weights_bytes"] + plan["runtime_bytes"], plan["workspace_bytes"]
    if num_slots > 1:  # prompts go through the weights of the answers
        fixed -= plan.get("weights", {}).get("prompts", 0)
    cache = int(kv_bytes_per_token * context_tokens * num_slots)
    needed = fixed + max(cache + work, plan.get("loading_bytes", 0))
    if needed <= budget.bytes:
        return
    room = int((budget.bytes - fixed - work) / (kv_bytes_per_token * num_slots))
    if fixed + plan.get("loading_bytes", 0) > budget.bytes:
        room = 0  # no context is small enough to load it
    smaller = min(room // _STEP_TOKENS * _STEP_TOKENS, context_tokens)
    hint = "stop other programs, or build it at a smaller precision"
    if smaller >= SMALLEST_CONTEXT_TOKENS:
        hint = f"use `--context {smaller}`, or stop other programs"
        if is_fixed:  # the context is part of the engine
            hint = f"build it again with `--context {smaller}`, or stop other programs"
    raise BudgetError(
        f"loading this engine takes {format_bytes(needed)} with {context_tokens} tokens of "
        f"context, there are {format_bytes(budget.bytes)} ({budget.where})",
        hint=hint,
    )


def _profile(manifest: Manifest, device: Device) -> Profile:
    """The engine's own, of several the one of a GPU that is here; where it cannot be found (made
    for a GPU, or not copied with the engine), the processor's for an engine that ran there, else
    this machine's."""
    try:
        profiles = [find_profile(name) for name in manifest.plan.get("devices", [])]
        here = (p for p in profiles if any(is_gpu(p, gpu) for gpu in device.gpus))
        return next(here, None) or find_profile(manifest.profile)
    except ProfileError:
        return find_target(DEFAULT_PROFILE if manifest.ran_on_processor else None, device)
