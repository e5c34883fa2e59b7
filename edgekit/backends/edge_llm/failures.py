"""Why Edge-LLM failed to build, in our words: known errors, each with its remedy."""

from __future__ import annotations

from pathlib import Path

from edgekit.backends.build_failure import DISK_FULL, Failure, explain
from edgekit.backends.edge_llm.log import BuildLog
from edgekit.backends.edge_llm.runtime import INSTALL, OPTION, VERSION
from edgekit.errors import (
    BackendError,
    BudgetError,
    EdgekitError,
    InputError,
    MissingBackendError,
    StaleEngineError,
    StorageError,
)

_ON_THE_DEVICE = (
    "build on the device that the engine is for; `--stage checkpoint` makes everything up to there"
)
_PLATFORMS = (
    "it runs on Jetson Thor with JetPack 7.0 to 7.2 and on Jetson Orin with JetPack 7.2, with CUDA "
    "13; `edgekit doctor` says what is here"
)
_MORE_MEMORY = (
    "close other programs, or build with a smaller `--context`, `--batch` or `--precision`: it "
    "takes 3 to 4 times the model's memory (NVIDIA/TensorRT-Edge-LLM#30)"
)
_FREE_CACHE = "`sudo sync && sudo sysctl vm.drop_caches=3` gives the page cache back"

FAILURES = (
    DISK_FULL,
    Failure(
        name="no-permission",
        pattern=r"\[errno (13|30)\]|read-only file system|permission denied",
        error=StorageError,
        message="Edge-LLM may not write the engine",
        hint="choose a writable place with `--store`",
    ),
    Failure(
        name="mixed-gpus",
        pattern=r"visible cuda devices must use one architecture",
        error=MissingBackendError,
        message="Edge-LLM refuses GPUs of different kinds beside each other",
        hint="show it one of them: `export CUDA_VISIBLE_DEVICES=0`",
    ),
    Failure(
        name="no-gpu",
        pattern=r"no cuda device is visible|no cuda-capable device|cannot load the cuda driver|"
        r"cuda driver initialization failed|cudaerrornodevice|cuda_error_no_device",
        error=MissingBackendError,
        message="Edge-LLM finds no NVIDIA GPU, and compiles only on the one it is for",
        hint=_ON_THE_DEVICE,
    ),
    Failure(
        name="tensorrt-missing",
        pattern=r"tensorrtdependencyerror|no module named '?tensorrt'?$|libnvinfer\.so|"
        r"libnvonnxparser\.so|required system library 'nvinfer'",
        error=MissingBackendError,
        message="the TensorRT that Edge-LLM needs is not in its environment",
        hint="on a Jetson it comes with JetPack: `sudo apt install nvidia-jetpack`, and an "
        "environment made with `python3 -m venv --system-site-packages` sees it; elsewhere "
        "pip install tensorrt==10.16.0.72 --extra-index-url https://pypi.nvidia.com",
    ),
    Failure(
        name="cuda-missing",
        pattern=r"required system library|libcudart\.so|libnvrtc\.so",
        error=MissingBackendError,
        message="a library of CUDA 13 that Edge-LLM needs is not installed",
        hint="on a Jetson it comes with JetPack: `sudo apt install nvidia-jetpack`",
    ),
    Failure(
        name="wrong-platform",
        pattern=r"nativeselectionerror|nativedetectionerror|cannot identify a supported platform|"
        r"no native payload manifest",
        error=MissingBackendError,
        message="Edge-LLM has no build for this GPU, system, CUDA and TensorRT together",
        hint=_PLATFORMS,
    ),
    Failure(
        name="damaged-install",
        pattern=r"nativeloaderror|native payload|edgellm_plugin_path conflicts",
        error=MissingBackendError,
        message="the installed Edge-LLM does not load",
        hint=f"install it again: {INSTALL}",
    ),
    Failure(
        name="plugin",
        pattern=r"plugin library not found|cannot open plugin library|"
        r"getplugincreator could not find|plugin not found",
        error=BackendError,
        message="Edge-LLM's plugin for TensorRT is missing, or is of another build",
        hint=f"install it again: {INSTALL}",
    ),
    Failure(
        name="int4-kernels",
        pattern=r"int4groupwisegemmpluginv2|cute dsl kernel module .* failed",
        error=BackendError,
        message="this build of Edge-LLM lacks the kernels for 4-bit weights "
        "(NVIDIA/TensorRT-Edge-LLM#209)",
        hint=f"use the released wheel, {INSTALL}; one built from source needs its CuTe DSL group "
        "for int4",
    ),
    Failure(
        name="nvmap",
        pattern=r"nvmapmemalloc\w*.*error 12|nvmap.*error 12",
        error=BudgetError,
        message="the GPU's memory is in pieces too small to build the engine",
        hint=f"restart the board, or {_FREE_CACHE}",
    ),
    Failure(
        name="memory",
        pattern=r"outofmemory|out of memory|cudaerrormemoryallocation|memoryerror|std::bad_alloc|"
        r"cannot allocate memory|errno 12\b|requested amount of gpu memory|"
        r"user allocator error allocating",
        error=BudgetError,
        message="this device has not enough free memory to build the engine",
        hint=f"{_MORE_MEMORY}; {_FREE_CACHE}",
    ),
    Failure(
        name="other-version",
        pattern=r"version tag does not match|serializationcheck|different compute capability|"
        r"incompatible device",
        error=StaleEngineError,
        message="a file was made by another TensorRT or on another GPU",
        hint="build it again on this one: `edgekit build`",
    ),
    Failure(
        name="precision-not-on-gpu",
        pattern=r"not supported on (this|sm)|(fp8|fp4|nvfp4|mxfp8)\b.*(requires|not supported)|"
        r"no kernel image is available|unsupported sm",
        error=BackendError,
        message="this precision has no kernels on this GPU",
        hint="choose another `--precision` or `--kv`: `edgekit profiles show` has those it has",
    ),
    Failure(
        name="sizes",
        pattern=r"must remain int32|fit a positive int32|"
        r"cannot be greater than max_kv_cache_capacity",
        error=InputError,
        message="Edge-LLM builds no engine of these sizes",
        hint="build with a smaller `--context` or `--batch`",
    ),
    Failure(
        name="unknown-flag",
        pattern=r"error: (unrecognized arguments|argument |the following arguments|no such option)",
        error=BackendError,
        message="this Edge-LLM does not know a flag that edgekit gives it",
        hint=f"use Edge-LLM {VERSION}: `{OPTION}` names its interpreter",
    ),
    Failure(
        name="old-export",
        pattern=r"re-export the model|failed to open config file|no version in config",
        error=BackendError,
        message="the ONNX folder is not one that this Edge-LLM builds from",
        hint="export it again with the Edge-LLM that builds: `edgekit build --stage checkpoint`",
    ),
    Failure(
        name="checkpoint",
        pattern=r"^valueerror|^keyerror|safetensorerror|unexpected keyword argument|"
        r"unsupported quant",
        error=BackendError,
        message="this Edge-LLM does not read the checkpoint",
        hint=f"use Edge-LLM {VERSION}, and make the checkpoint again with `edgekit build`",
    ),
    Failure(
        name="environment",
        pattern=r"modulenotfounderror|importerror|no module named|undefined symbol|"
        r"cannot open shared object file",
        error=MissingBackendError,
        message="the environment of Edge-LLM is incomplete or mixed up",
        hint=f"install it again: {INSTALL}",
    ),
)
"""Narrower rows stand before wider ones."""


def explain_failure(returncode: int, log: BuildLog, path: Path) -> EdgekitError:
    """The error for a builder that ended so; `path` is where its whole log lies."""
    return explain(
        FAILURES,
        returncode,
        log,
        path,
        compiler="Edge-LLM's builder",
        no_memory="this device has not enough memory to build the engine",
        more_memory=_MORE_MEMORY,
    )
