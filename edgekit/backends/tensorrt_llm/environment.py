"""Which variables TensorRT-LLM's programs are started with, and which are kept from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType

from edgekit.backends.environment import SET, kept_back, without

CLEARED: Mapping[str, str] = MappingProxyType(
    {
        "TLLM_LOG_LEVEL": "it overrides `--log_level`, and progress is read from the log",
        "BUILDER_FORCE_NUM_PROFILES": "it changes the engine behind the command's back",
        "TRT_LLM_NO_LIB_INIT": "without its libraries there are no plugins",
    }
)
"""Variable -> why no program of TensorRT-LLM may see it."""
LAUNCHERS = ("OMPI_", "PMI_", "PMIX_", "SLURM_")
"""Variables that begin so make it believe it is one rank of a larger job, and wait for the rest."""


def settings(*, gpu_index: int | None = None) -> dict[str, str]:
    """What is set. `gpu_index` counts as the driver does: the build takes the first GPU it sees."""
    if gpu_index is None:
        return dict(SET)
    return {**SET, "CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": str(gpu_index)}


def cleared(environ: Mapping[str, str], *, is_own: bool) -> Iterator[str]:
    """Names in `environ` that are kept back; `is_own`: from this very interpreter."""
    return kept_back(environ, CLEARED, is_own=is_own, prefixes=LAUNCHERS)


def child_environment(
    environ: Mapping[str, str], *, is_own: bool, gpu_index: int | None = None
) -> dict[str, str]:
    """All variables for a program of TensorRT-LLM that runs in an interpreter on this machine."""
    kept = without(environ, cleared(environ, is_own=is_own))
    return {**kept, **settings(gpu_index=gpu_index)}
