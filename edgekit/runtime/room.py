"""Is there room for an engine now? Asked before its weights are loaded, not in the middle."""

from __future__ import annotations

from edgekit.device import Device
from edgekit.engine import Manifest
from edgekit.errors import BudgetError, ProfileError
from edgekit.plan import SMALLEST_CONTEXT_TOKENS
from edgekit.profile import find_profile
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
    try:
        profile = find_profile(manifest.profile)
    except ProfileError:  # made for this GPU, or one that did not travel with the engine
        profile = find_target(None, device)
    budget = device_budget(profile, device)
    kv_bytes_per_token = plan["kv_cache_bytes"] / (plan["context_tokens"] * plan["batch"])
    fixed = plan["weights_bytes"] + plan["workspace_bytes"] + plan["runtime_bytes"]
    needed = int(fixed + kv_bytes_per_token * context_tokens * num_slots)
    if needed <= budget.bytes:
        return
    room = int((budget.bytes - fixed) / (kv_bytes_per_token * num_slots))
    smaller = min(room // _STEP_TOKENS * _STEP_TOKENS, context_tokens)
    hint = "stop other programs, or build it at a smaller precision"
    if smaller >= SMALLEST_CONTEXT_TOKENS:
        hint = f"use `--context {smaller}`, or stop other programs"
    raise BudgetError(
        f"loading this engine takes {format_bytes(needed)} with {context_tokens} tokens of "
        f"context, there are {format_bytes(budget.bytes)} ({budget.where})",
        hint=hint,
    )
