"""What is refused before any work, in one sentence with the nearest thing that works."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal

from edgekit.backends import Backend, find_backend
from edgekit.checkpoint import Checkpoint
from edgekit.errors import BudgetError, InputError, MissingBackendError
from edgekit.plan import Plan, require_fit
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


def require_possible(plan: Plan) -> Backend:
    """The plan's backend. Raises, before any work, what would otherwise end a build hours later."""
    require_fit(plan)
    backend = find_backend(plan.backend)
    if plan.precision not in backend.info.precisions:
        raise InputError(
            f"the backend `{plan.backend}` has no {plan.precision}",
            hint=f"it has {', '.join(sorted(backend.info.precisions))}",
        )
    if backend.info.consumes.endswith("-graph") and find_spec("onnx") is None:
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
