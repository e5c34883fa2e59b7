"""Why an engine cannot run here, in our words: before it is loaded, and as TensorRT-RTX says it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from edgekit.backends.tensorrt_rtx.layout import EngineLayout
from edgekit.errors import (
    BackendError,
    BudgetError,
    EdgekitError,
    EngineError,
    MissingBackendError,
    StaleEngineError,
)

PACKAGES = ("tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu13-libs")
_BUILD_AGAIN = "build it again with `edgekit build`"
_NEW_DRIVER = "install a newer NVIDIA driver, 580 or later for CUDA 13"


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """One flag of `EngineInvalidityDiagnostics`."""

    name: str
    """Of the enum's member."""
    flag: int
    error: type[EdgekitError]
    message: str
    hint: str


DIAGNOSES = (
    Diagnosis(
        name="MALFORMED_ENGINE",
        flag=32,
        error=EngineError,
        message="engine.plan is damaged, or not an engine of TensorRT-RTX",
        hint=_BUILD_AGAIN,
    ),
    Diagnosis(
        name="VERSION_MISMATCH",
        flag=1,
        error=StaleEngineError,
        message="this engine was built by another version of TensorRT-RTX",
        hint=_BUILD_AGAIN,
    ),
    Diagnosis(
        name="UNSUPPORTED_CC",
        flag=2,
        error=StaleEngineError,
        message="this engine holds no code for the compute capability of this GPU",
        hint=_BUILD_AGAIN,
    ),
    Diagnosis(
        name="OLD_CUDA_DRIVER",
        flag=4,
        error=MissingBackendError,
        message="the NVIDIA driver is too old for this TensorRT-RTX",
        hint=_NEW_DRIVER,
    ),
    Diagnosis(
        name="OLD_CUDA_RUNTIME",
        flag=8,
        error=MissingBackendError,
        message="the CUDA runtime is too old for this engine",
        hint="pip install --force-reinstall 'edgekit[rtx]'",
    ),
    Diagnosis(
        name="CUDA_ERROR",
        flag=64,
        error=MissingBackendError,
        message="CUDA does not work here",
        hint="restart the machine, or " + _NEW_DRIVER,
    ),
    Diagnosis(
        name="INSUFFICIENT_GPU_MEMORY",
        flag=16,
        error=BudgetError,
        message="the GPU has not enough memory for this engine",
        hint="close other programs that use the GPU, or build with a smaller `--precision`",
    ),
)
"""In the order in which they are told: a cause before what may follow from it."""


def require_valid(verdict: str, flags: int, said: str = "") -> None:
    """Raise what `Runtime.get_engine_validity` means.

    `verdict` is the name of the `EngineValidity`, `flags` the diagnostics, `said` the vendor's own
    last lines. `SUBOPTIMAL` runs. Raises `EngineError`, `StaleEngineError`, `BudgetError`,
    `BackendError`, `MissingBackendError`.
    """
    if verdict != "INVALID":
        return
    for row in DIAGNOSES:
        if flags & row.flag:
            raise row.error(_with(row.message, said), hint=row.hint)
    raise BackendError(
        _with(f"TensorRT-RTX cannot run this engine here (diagnostics {flags})", said),
        hint="`edgekit doctor` says what is on this machine",
    )


def require_version(layout: EngineLayout, installed: str) -> None:
    """Raises `StaleEngineError` unless the engine was built by the installed TensorRT-RTX."""
    if layout.version != installed:
        pinned = " ".join(f"{package}=={layout.version}" for package in PACKAGES)
        raise StaleEngineError(
            f"this engine was built by TensorRT-RTX {layout.version} and runs on no other "
            f"version, here is {installed}",
            hint=f"{_BUILD_AGAIN}, or `pip install {pinned}`",
        )


def require_capability(capabilities: Collection[int], present: Collection[int]) -> None:
    """Raises `StaleEngineError` unless the engine holds code for one of the GPUs `present`."""
    if set(capabilities) & set(present):
        return
    held, here = _names(capabilities), _names(present)
    noun = "GPU here is" if len(set(present)) == 1 else "GPUs here are"
    raise StaleEngineError(
        f"this engine holds {held}, the {noun} {here}",
        hint="build it again for this GPU: `edgekit build`",
    )


def _names(capabilities: Collection[int]) -> str:
    """`[86, 89, 120]` -> `"sm_86, sm_89 and sm_120"`."""
    *rest, last = [f"sm_{sm}" for sm in sorted(set(capabilities))]
    return f"{', '.join(rest)} and {last}" if rest else last


def _with(message: str, said: str) -> str:
    return f"{message}: {said}" if said else message
