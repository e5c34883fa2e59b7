"""What is refused before any work, in one sentence with the nearest thing that works."""

from __future__ import annotations

import math
from importlib.util import find_spec
from typing import Literal, NoReturn

from edgekit.backends import Backend, BackendInfo, find_backend, list_backends
from edgekit.checkpoint import Checkpoint
from edgekit.errors import BudgetError, InputError, MissingBackendError
from edgekit.footprint import fitting_group
from edgekit.model import ModelSpec
from edgekit.plan import Plan, require_fit
from edgekit.precision import find_precision
from edgekit.profile import Profile, Storage
from edgekit.reference import KNOWN_TOKENS, SAMPLE_TOKENS
from edgekit.steps import STEP_REMEDIES
from edgekit.units import format_bytes


def require_original(checkpoint: Checkpoint) -> None:
    """Raises `InputError` for a checkpoint that is quantized already."""
    if checkpoint.is_quantized:
        raise InputError(
            f"this checkpoint is quantized already: {checkpoint.path}",
            hint="use `edgekit compile`, or give the original checkpoint",
        )


def require_room(plan: Plan, name: Literal["quantize", "compile"]) -> None:
    """Raises `BudgetError` when a step of the build does not fit, though the engine may."""
    step = plan.steps[name]
    if not step.fits:
        raise BudgetError(
            f"the {name} step needs {format_bytes(step.peak_bytes)} of memory, which is not there "
            f"({step.where})",
            hint=STEP_REMEDIES[name],
        )


def require_target(made_for: str, backend: str) -> None:
    """Raises `InputError` for a checkpoint that was quantized for another backend alone."""
    if made_for not in ("", backend):
        raise InputError(
            f"this checkpoint was quantized for {made_for} alone: each of its layers has an input "
            f"scale of its own, which {backend} has no kernels for",
            hint=f"use `--backend {made_for}`, or quantize again with `--backend {backend}`",
        )


def require_zero_points(checkpoint: Checkpoint, backend: Backend) -> None:
    """Raises `InputError` for weights with zero points where the kernels have none."""
    if checkpoint.has_zero_points:
        _require_zero_points("this checkpoint's weights have", backend.info)


def require_storage(storage: Storage, profile: Profile, backend: str) -> None:
    """Raises `InputError` where the profile asks of a backend what its kernels have not."""
    info = next((info for info in list_backends() if info.name == backend), None)
    if storage.has_zero_points and info is not None:
        _require_zero_points(f"the profile `{profile.name}` has", info)


def _require_zero_points(who_has: str, info: BackendInfo) -> None:
    if not info.has_zero_points:
        other = next(other.name for other in list_backends() if other.has_zero_points)
        raise InputError(
            f"{who_has} zero points, which the kernels of {info.name} have not",
            hint=f"use `--backend {other}`, or quantize with the profile of the device",
        )


def require_stage(backend: Backend) -> None:
    """Raises `InputError` for a backend without a stage before the engine."""
    if not backend.info.has_stage:
        raise InputError(
            f"the backend `{backend.info.name}` has no stage before the engine: it compiles here",
            hint="leave `--stage` out",
        )


def require_shape(spec: ModelSpec, plan: Plan, profile: Profile) -> None:
    """Raises `InputError` for a model whose layers the plan's backend does not take."""
    info = _info(plan)
    precision = plan.precision
    if precision == "fp16" or info is None:
        return
    storage = profile.storage_for(precision, spec.size_params)
    require_storage(storage, profile, info.name)
    group = _group(spec, storage)
    qkv = (spec.q_size + 2 * spec.kv_size,) if info.merges_layers else (spec.kv_size,)
    for width in (spec.hidden_size, *qkv, spec.q_size, spec.intermediate_size):
        if width % info.width_multiple:
            _refuse(
                f"at {precision} no layer of width {width}: its kernels take multiples of "
                f"{info.width_multiple}",
                profile,
                info,
            )
    is_free = not find_precision(precision).is_group_fixed
    if group is not None and is_free and info.groups and group not in info.groups:
        groups = " and ".join(map(str, info.groups))
        _refuse(f"kernels for groups of {groups} weights, this model takes {group}", profile, info)


def _group(spec: ModelSpec, storage: Storage) -> int | None:
    """The group size that the model gets, or would get of kernels that had it; `None`: none."""
    if storage.group_size is None:
        return None
    is_fixed = storage.keeps_undivided
    found = fitting_group(spec, storage.group_size, is_fixed=is_fixed)
    return found or fitting_group(spec, storage.group_size)


def require_slots(spec: ModelSpec, plan: Plan) -> None:
    """Raises `InputError` where the KV caches of several conversations cannot lie side by side."""
    info = _info(plan)
    if info is None:
        return
    token_bytes = spec.kv_size * 2
    if plan.batch == 1 or plan.context_tokens * token_bytes % info.slot_alignment == 0:
        return
    step = info.slot_alignment // math.gcd(token_bytes, info.slot_alignment)
    context = plan.context_tokens // step * step or step
    raise InputError(
        f"with several conversations the context must be a multiple of {step} tokens for this "
        f"model, asked for {plan.context_tokens}",
        hint=f"use `--context {context}`",
    )


def _info(plan: Plan) -> BackendInfo | None:
    """Of the plan's backend; `None`: planned for, not part of this version."""
    return next((info for info in list_backends() if info.name == plan.backend), None)


def _refuse(what: str, profile: Profile, info: BackendInfo) -> NoReturn:
    others = [name for name in ("tensorrt-rtx", "onnxruntime") if name in profile.backends]
    ways = ["`--precision fp16`, which has no such limit"] if "fp16" in profile.precisions else []
    ways += [f"`--backend {name}`" for name in others if name != info.name]
    raise InputError(
        f"the backend `{info.name}` has {what}",
        hint=f"use {', or '.join(ways or ['`--profile cpu`'])}",
    )


def require_possible(
    plan: Plan,
    profile: Profile,
    spec: ModelSpec | None = None,
    *,
    is_staged: bool = False,
) -> Backend:
    """The plan's backend. Raises, before any work, what would otherwise end a build hours later.

    `spec` is left out where the shape has been looked at already; `is_staged`: what the backend
    compiles is there.
    """
    require_fit(plan)
    backend = find_backend(plan.backend)
    if spec is not None:
        require_shape(spec, plan, profile)
        require_slots(spec, plan)
    if plan.precision not in backend.info.precisions:
        raise InputError(
            f"the backend `{plan.backend}` has no {plan.precision}",
            hint=f"it has {', '.join(sorted(backend.info.precisions))}",
        )
    exports_graph = backend.info.consumes.endswith("-graph") and not is_staged
    if exports_graph and find_spec("onnx") is None:
        raise MissingBackendError(
            "compiling needs a package that is not installed: onnx",
            hint="pip install 'edgekit[build]'",
        )
    if plan.context_tokens < SAMPLE_TOKENS + KNOWN_TOKENS:
        raise InputError(
            f"checking an engine takes {SAMPLE_TOKENS + KNOWN_TOKENS} tokens of context, "
            f"asked for {plan.context_tokens}",
            hint=f"use `--context {SAMPLE_TOKENS + KNOWN_TOKENS}` or more",
        )
    return backend
