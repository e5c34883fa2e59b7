"""Which variables TensorRT-LLM's programs are started with, and which are kept from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType

SET: Mapping[str, str] = MappingProxyType(
    {
        "PYTHONUNBUFFERED": "1",  # lines of the log come when they are written
        "PYTHONIOENCODING": "utf-8:backslashreplace",
        "PYTHONSAFEPATH": "1",  # `-m` would look for modules in the working directory first
        "HF_HUB_OFFLINE": "1",  # all that it needs is in the checkpoint
        "TRANSFORMERS_OFFLINE": "1",
    }
)
CLEARED: Mapping[str, str] = MappingProxyType(
    {
        "TLLM_LOG_LEVEL": "it overrides `--log_level`, and progress is read from the log",
        "BUILDER_FORCE_NUM_PROFILES": "it changes the engine behind the command's back",
        "TRT_LLM_NO_LIB_INIT": "without its libraries there are no plugins",
    }
)
"""Variable -> why no program of TensorRT-LLM may see it."""
FOREIGN: Mapping[str, str] = MappingProxyType(
    {
        "PYTHONHOME": "another interpreter has its own standard library",
        "PYTHONPATH": "packages of this environment do not belong in the other one",
        "PYTHONSTARTUP": "of this environment",
        "VIRTUAL_ENV": "of this environment",
        "__PYVENV_LAUNCHER__": "of this environment",
    }
)
"""The same for programs of another interpreter."""
LAUNCHERS = ("OMPI_", "PMI_", "PMIX_", "SLURM_")
"""Variables that begin so make it believe it is one rank of a larger job, and wait for the rest."""


def settings(*, gpu_index: int | None = None) -> dict[str, str]:
    """What is set. `gpu_index` counts as the driver does: the build takes the first GPU it sees."""
    if gpu_index is None:
        return dict(SET)
    return {**SET, "CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": str(gpu_index)}


def cleared(environ: Mapping[str, str], *, is_own: bool) -> Iterator[str]:
    """Names in `environ` that are kept back; `is_own`: from this very interpreter."""
    for name in sorted(environ):
        is_foreign = name in FOREIGN and not is_own
        if name in CLEARED or is_foreign or name.startswith(LAUNCHERS):
            yield name


def child_environment(
    environ: Mapping[str, str], *, is_own: bool, gpu_index: int | None = None
) -> dict[str, str]:
    """All variables for a program of TensorRT-LLM that runs in an interpreter on this machine."""
    gone = set(cleared(environ, is_own=is_own))
    kept = {name: value for name, value in environ.items() if name not in gone}
    return {**kept, **settings(gpu_index=gpu_index)}
