"""The two kinds of engine that TensorRT-LLM has had, as data.

    tensorrt-llm           up to 1.2: `trtllm-build` compiles for the GPU that it runs on
    tensorrt-llm-pytorch   from 1.3: there is no builder any more; its PyTorch backend takes
                           ModelOpt's unified checkpoint, and that is the engine

The version that is found on a machine decides which of them is real there. Worker, session,
interpreter and container are the same for both.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

from edgekit.backends.base import BackendInfo
from edgekit.backends.tensorrt_llm.runtime import (
    FIRST_WITH_ENGINES,
    FIRST_WITHOUT_ENGINES,
    INSTALL,
    OPTION,
    VERSION,
    VERSION_WITHOUT_ENGINES,
    Runtime,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of engine: which versions have it, and what it is bound to."""

    info: BackendInfo
    loads: Literal["tensorrt", "pytorch"]
    """The backend of TensorRT-LLM's LLM API."""
    first: tuple[int, int]
    """The first release that has it …"""
    before: tuple[int, int] | None
    """… and the first that has it no more."""
    binding: tuple[str, ...]
    """Fields of `Identity`: a difference in one of these keeps it from opening."""
    why_not: str
    """Said of a version that has it not."""
    remedy: str

    def is_of(self, runtime: Runtime) -> bool:
        """Whether that TensorRT-LLM has this kind."""
        return self.first <= runtime.release and (
            self.before is None or runtime.release < self.before
        )


ENGINE = Kind(
    info=BackendInfo(
        name="tensorrt-llm",
        summary="TensorRT-LLM 1.2: compiled on the GPU that it runs on, in its own Python",
        precisions=frozenset({"fp16", "int8", "int4_awq", "fp8"}),
        requires=("numpy",),
        install="'edgekit[build]'",
        runtime_install=INSTALL.format(VERSION),
        runtime_option=(OPTION, "trtllm"),
        consumes="tensorrt-llm-checkpoint",
        exposes_logits=False,
        has_stage=True,
        families=frozenset({"llama"}),
        width_multiple=64,
        groups=(64, 128),
        no_speculation=MappingProxyType(
            {
                "ngram": "drafts by n-gram are of TensorRT-LLM's PyTorch backend (1.3 and later); "
                "its engines have lookahead decoding, which edgekit does not build"
            }
        ),
    ),
    loads="tensorrt",
    first=FIRST_WITH_ENGINES,
    before=FIRST_WITHOUT_ENGINES,
    binding=("gpu", "sm", "tensorrt", "tensorrt_llm"),
    why_not="builds and runs no engines any more (`--backend tensorrt-llm-pytorch` is for it)",
    remedy=f"use `--backend tensorrt-llm-pytorch`, or name TensorRT-LLM {VERSION} with `{OPTION}`",
)
CHECKPOINT = Kind(
    info=replace(
        ENGINE.info,
        name="tensorrt-llm-pytorch",
        summary="TensorRT-LLM 1.3 and later: its PyTorch backend over a quantized checkpoint",
        runtime_install=INSTALL.format(VERSION_WITHOUT_ENGINES),
        consumes="unified-checkpoint",
        speculation=frozenset({"ngram"}),
        no_speculation=MappingProxyType({}),
    ),
    loads="pytorch",
    first=FIRST_WITHOUT_ENGINES,
    before=None,
    # its kernels are chosen when it loads: by the GPU's generation, not by its name
    binding=("sm", "tensorrt_llm"),
    why_not="is used through the engines that it builds (`--backend tensorrt-llm` is for it)",
    remedy=f"use `--backend tensorrt-llm`, or name TensorRT-LLM 1.3 or later with `{OPTION}`",
)
KINDS = (ENGINE, CHECKPOINT)


def kind_of(runtime: Runtime) -> Kind:
    """The kind that a TensorRT-LLM has; every one from 1.0 on has one."""
    return next(kind for kind in KINDS if kind.is_of(runtime))
