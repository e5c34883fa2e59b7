"""Why TensorRT-LLM failed, in our words: the errors that it is known for, each with its remedy."""

from __future__ import annotations

from pathlib import Path

from edgekit.backends.build_failure import DISK_FULL, Failure, explain
from edgekit.backends.tensorrt_llm.log import BuildLog
from edgekit.backends.tensorrt_llm.runtime import IMAGE, OPTION, VERSION
from edgekit.errors import (
    BackendError,
    BudgetError,
    EdgekitError,
    MissingBackendError,
    StaleEngineError,
    StorageError,
)

_ON_THE_CARD = (
    "build on the machine with the GPU that the engine is for; `--stage checkpoint` makes "
    "everything up to there"
)
_INSTALL_AGAIN = (
    f"pip install --force-reinstall tensorrt-llm=={VERSION} "
    f"--extra-index-url https://pypi.nvidia.com in its environment, or `{OPTION} docker:{IMAGE}`"
)
_RIGHT_VERSION = f"use TensorRT-LLM {VERSION}: `{OPTION}` names its interpreter or image"
_HOST_MEMORY = "this machine has not enough memory (RAM) to build the engine"
_MORE_RAM = "close other programs or add swap; trtllm-build holds the weights in RAM more than once"


FAILURES = (
    DISK_FULL,
    Failure(
        name="no-permission",
        pattern=r"\[errno (13|30)\]|read-only file system",
        error=StorageError,
        message="TensorRT-LLM may not write the engine",
        hint="choose a writable place with `--store`",
    ),
    Failure(
        name="old-driver",
        pattern=r"cuda driver version is insufficient|nvidia driver on your system is too old|"
        r"cudaErrorInsufficientDriver|unsatisfied condition: cuda>=",
        error=MissingBackendError,
        message="the NVIDIA driver is too old for this TensorRT-LLM",
        hint="install a newer NVIDIA driver, 580 or later for CUDA 13",
    ),
    Failure(
        name="no-gpu",
        pattern=r"max_workers must be greater than 0|no cuda gpus are available|"
        r"no cuda-capable device|found no nvidia driver|libcuda\.so|libnvidia-ml\.so|"
        r"cudaErrorNoDevice|cuda_error_no_device|torch not compiled with cuda|"
        r"could not select device driver|unresolvable cdi devices|nvidia-container-cli",
        error=MissingBackendError,
        message="TensorRT-LLM finds no NVIDIA GPU, and compiles only on the one it is for",
        hint=_ON_THE_CARD,
    ),
    Failure(
        name="precision-not-on-gpu",
        pattern=r"(quantization|smoothquant|scaling) is not supported on sm|"
        r"activation type must equal the scale, bias and output types on ampere",
        error=BackendError,
        message="this precision has no kernels on this GPU",
        hint="choose another `--precision` or `--kv`",
    ),
    Failure(
        name="other-gpu",
        pattern=r"generated on an incompatible device|different compute capability",
        error=StaleEngineError,
        message="a file was made on another GPU",
        hint="build it again on this one: `edgekit build`",
    ),
    Failure(
        name="unsupported-sm",
        pattern=r"unsupported (cuda )?arch|no kernel image is available|"
        r"target gpu sm \d+ is not supported|sm_?\d+ is not (supported|compatible)|"
        r"unsupported sm\b",
        error=MissingBackendError,
        message="this TensorRT-LLM holds no kernels for this GPU",
        hint="it knows sm_80, sm_86, sm_89, sm_90, sm_100 and sm_120; "
        "`--backend tensorrt-rtx` and `--backend onnxruntime` know more",
    ),
    Failure(
        name="other-version",
        pattern=r"version tag does not match|magictag|serialization (error|failed).*version|"
        r"serializationcheck",
        error=StaleEngineError,
        message="a file was made by another version of TensorRT",
        hint="build it again with `edgekit build`: an engine runs on the version that built it",
    ),
    Failure(
        name="gpu-memory",
        pattern=r"outofmemory|cuda runtime \(out of memory\)|cuda out of memory|"
        r"cudaErrorMemoryAllocation|cuda_error_out_of_memory|cuda error: out of memory|"
        r"requested amount of gpu memory|user allocator error allocating|"
        r"cuda error 2 allocating|cuda error in allocate",
        error=BudgetError,
        message="the GPU has not enough free memory to build the engine",
        hint="close other programs that use the GPU, or build with a smaller `--context`, "
        "`--batch` or `--precision`",
    ),
    Failure(
        name="host-memory",
        pattern=r"memoryerror|std::bad_alloc|cannot allocate memory|errno 12\b|"
        r"can't allocate memory|not enough memory: you tried to allocate",
        error=BudgetError,
        message=_HOST_MEMORY,
        hint=_MORE_RAM,
    ),
    Failure(
        name="plugin",
        pattern=r"supportsformatcombination|could not find any supported formats|"
        r"getplugincreator could not find|plugin.*(unsupported|not support|not found)|"
        r"unsupported (data ?type|dtype)",
        error=BackendError,
        message="TensorRT-LLM has no plugin for a data type of this checkpoint",
        hint=f"choose another `--precision` or `--kv`; {_RIGHT_VERSION}",
    ),
    Failure(
        name="unknown-flag",
        pattern=r"error: (unrecognized arguments|argument |the following arguments)",
        error=BackendError,
        message="this trtllm-build does not know a flag that edgekit gives it",
        hint=_RIGHT_VERSION,
    ),
    Failure(
        name="checkpoint",
        pattern=r"unexpected keyword argument|required but not provided tensors|"
        r"provided but not expected tensors|provided tensor names are different|"
        r"unsupported model architecture|validationerror|^keyerror|safetensorerror",
        error=BackendError,
        message="this TensorRT-LLM does not read the checkpoint, which is laid out for 1.2",
        hint=f"{_RIGHT_VERSION}; then make the checkpoint again with `edgekit build`",
    ),
    Failure(
        name="mpi",
        pattern=r"libmpi|mpi4py|orte_init|ompi_",
        error=MissingBackendError,
        message="TensorRT-LLM needs Open MPI, which is not installed or does not start",
        hint="sudo apt-get install libopenmpi-dev openmpi-bin",
    ),
    Failure(
        name="environment",
        pattern=r"modulenotfounderror|importerror|no module named|"
        r"cannot open shared object file|undefined symbol|decoding operators failed to load",
        error=MissingBackendError,
        message="the environment of TensorRT-LLM is incomplete or mixed up",
        hint=_INSTALL_AGAIN,
    ),
    Failure(
        name="container",
        pattern=r"^docker: |^error: .*(container|runtime|image)|no such image",
        error=BackendError,
        message="the container of TensorRT-LLM does not start",
        hint=f"look at the image: `{OPTION} docker:{IMAGE}`",
    ),
)
"""Narrower rows stand before wider ones."""


def explain_failure(returncode: int, log: BuildLog, path: Path) -> EdgekitError:
    """The error for a `trtllm-build` that ended so; `path` is where its whole log lies."""
    return explain(
        FAILURES,
        returncode,
        log,
        path,
        compiler="trtllm-build",
        no_memory=_HOST_MEMORY,
        more_memory=_MORE_RAM,
    )
