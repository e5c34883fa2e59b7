"""What each backend needs beside weights and KV cache: one row each, with its source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from edgekit.errors import InputError
from edgekit.profile import Profile, Storage
from edgekit.units import MIB


def _nothing() -> Mapping[str, Any]:
    return MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Compilation:
    """What a compiler makes of one precision, and what it takes to."""

    ram_factor: float
    """Peak of the compiler, in multiples of the engine's weights, beside the fixed part."""
    twin_factor: float
    """The same of the twin, which is asked before, on a processor: it widens what it cannot run."""
    code_bytes: tuple[int, int]
    """Of the kernels in the engine: without layers, and for each layer …"""
    batch_code_bytes: tuple[int, int]
    """… and the same where several conversations decode at once."""
    layer_seconds: float
    """Time for a layer …"""
    gigabyte_seconds: float
    """… and for each 10^9 bytes of weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """What one backend needs beside weights and KV cache."""

    precisions: tuple[str, ...]
    """Precisions of weights that it runs."""
    kv_precisions: tuple[str, ...]
    """What its KV cache can be stored in."""
    runtime_bytes: int
    """Process, libraries, and on a GPU the context of its driver."""
    fixed_workspace_bytes: int
    """Workspace that does not depend on shapes."""
    chunk_tokens: int
    """Tokens of a prompt that go through at once."""
    activation_bits: int
    live_activations: int = 1
    """How many times the widest layer's values are alive at once."""
    shares_tied_tables: bool = True
    """A head that is tied to the embedding and stored like it lies in memory once."""
    page_tokens: int
    """Contexts are offered in steps of so many tokens …"""
    is_paged: bool = False
    """… and take whole pages of that size, however they begin."""
    spare_tokens: int = 0
    """What the cache of a conversation holds beyond its context."""
    compile_factor: float
    """Peak of the compile step, in multiples of the engine's weights …"""
    compile_fixed_bytes: int
    """… plus this."""
    compiles_on_device: bool
    """Whether that peak is in the device's memory; otherwise in the building machine's RAM."""
    compilations: Mapping[str, Compilation] = field(default_factory=_nothing)
    """Precision -> what was measured of its compilation, where `compile_factor` is not all."""
    storage: Mapping[str, Storage] = field(default_factory=_nothing)
    """Precision -> how this backend stores it on every device, where that is its own choice."""
    has_fixed_cache: bool = False
    """The context is part of the engine: opened with a smaller one it takes the same memory."""
    holds_all_heads: tuple[str, ...] = ()
    """Precisions where a prompt's attention holds K and V of the whole context once more, for every
    query head."""
    whole_prompts: frozenset[tuple[str, str]] = frozenset()
    """Pairs of weights and cache with which a prompt goes through at once, however long it is."""
    prefills_together: bool = False
    """The prompts of all conversations may go through in one pass."""
    builds_ahead: bool = False
    """It compiles for devices that are not at hand, several at once where they agree."""
    source: str


_RTX_STORAGE: Mapping[str, Storage] = MappingProxyType(
    {
        "fp16": Storage(linear_bits=16),
        # tables at 8 bits, a scale per token, save an 8B 1 GB: SmolLM2-135M at int4_awq has 1.180
        # times the original's perplexity with fp16 tables, 1.188 with these, 1.263 with a head at
        # 4 bits (groups of 64)
        "int8": Storage(linear_bits=8, head_bits=8, embedding_bits=8, is_head_apart=True),
        "fp8": Storage(linear_bits=8, head_bits=8, embedding_bits=8, is_head_apart=True),
        "int4_awq": Storage(
            linear_bits=4, group_size=128, head_bits=8, embedding_bits=8, is_head_apart=True
        ),
    }
)
_RTX_COMPILATIONS: Mapping[str, Compilation] = MappingProxyType(
    {
        "fp16": Compilation(
            ram_factor=2.9,
            twin_factor=2.9,
            code_bytes=(2_672_000, 522_200),
            batch_code_bytes=(2_633_000, 863_100),
            layer_seconds=0.24,
            gigabyte_seconds=7.3,
        ),
        "int8": Compilation(
            ram_factor=3.4,
            twin_factor=4.6,
            code_bytes=(3_135_000, 964_000),
            batch_code_bytes=(1_703_000, 1_602_000),
            layer_seconds=0.3,
            gigabyte_seconds=9.6,
        ),
        "fp8": Compilation(
            ram_factor=2.4,
            twin_factor=8.9,
            code_bytes=(1_361_000, 1_606_200),
            batch_code_bytes=(1_143_000, 1_864_100),
            layer_seconds=0.3,
            gigabyte_seconds=2.5,
        ),
        "int4_awq": Compilation(
            ram_factor=3.4,
            twin_factor=1.5,
            code_bytes=(2_285_000, 1_229_200),
            batch_code_bytes=(1_833_000, 1_590_600),
            layer_seconds=0.33,
            gigabyte_seconds=16.8,
        ),
    }
)
"""Fitted to engines of 1 to 32 layers with hidden sizes of 576 to 4096: code is within 2 % from
three layers on, whatever their size. The compiler writes fp8's scales of activations into kernels,
so that layers share fewer of them.

`twin_factor`: ONNX Runtime 1.32 on 150 to 2,100 MiB of weights; 0 to 20 % more than was measured
on 590 MiB and above."""
_LLM_PRECISIONS = ("fp16", "int8", "int4_awq", "fp8")
_WHOLE_PROMPTS = frozenset(
    {(weights, "int8") for weights in _LLM_PRECISIONS}
    | {(weights, "fp8") for weights in ("fp16", "int8", "int4_awq")}
)
"""Its paged context attention, which prompts in parts need, reads no int8 cache, and an fp8 one
only beside fp8 weights (tensorrt_llm/builder.py turns it off, gptAttentionCommon.cpp checks it)."""
_EDGE_WHOLE_PROMPTS = frozenset(
    (weights, kv)
    for weights in ("fp16", "int8_sq", "int4_awq", "fp8", "nvfp4")
    for kv in ("fp16", "fp8")
)
"""A longer prompt than the engine was built for is refused (EDGELLM_INPUT_TOO_LONG), so it is built
for whole contexts, and its passes for that many tokens of every conversation
(experimental/builder/core/ragged.py of 0.11.0: batch x max_input_len)."""
FOOTPRINTS: Mapping[str, Footprint] = MappingProxyType(
    {
        "onnxruntime": Footprint(
            precisions=("fp16", "int8", "int8_sq", "int4_awq"),
            kv_precisions=("fp32",),
            runtime_bytes=84 * MIB,
            fixed_workspace_bytes=0,
            chunk_tokens=256,
            activation_bits=32,
            shares_tied_tables=False,  # MatMulNBits packs the head for itself
            page_tokens=256,
            compile_factor=1.0,
            compile_fixed_bytes=256 * MIB,
            compiles_on_device=False,
            source="measured on x86-64 Linux with scripts/bench --memory: within 11 % of the peak",
        ),
        "onnxruntime-cuda": Footprint(
            precisions=("fp16", "int8", "int4_awq"),
            kv_precisions=("fp16",),
            runtime_bytes=700 * MIB,
            fixed_workspace_bytes=128 * MIB,
            chunk_tokens=256,
            activation_bits=16,
            live_activations=2,
            shares_tied_tables=False,  # MatMulNBits packs the head for itself
            page_tokens=256,
            compile_factor=1.0,
            compile_fixed_bytes=1024 * MIB,
            compiles_on_device=False,
            source="an allowance: a CUDA context of about 0.35 GiB, cuBLAS and kernels the same "
            "again; not measured",
        ),
        "tensorrt-llm": Footprint(
            precisions=("fp16", "int8", "int4_awq", "fp8", "nvfp4"),
            kv_precisions=("fp16", "int8", "fp8"),
            runtime_bytes=400 * MIB,
            fixed_workspace_bytes=64 * MIB,
            chunk_tokens=1024,
            activation_bits=16,
            live_activations=2,
            page_tokens=32,
            is_paged=True,
            whole_prompts=_WHOLE_PROMPTS,
            compile_factor=1.1,
            compile_fixed_bytes=1024 * MIB,
            compiles_on_device=True,
            source="TensorRT-LLM docs, legacy/reference/memory.md: activations are linear in "
            "max_num_tokens, pages of 32 tokens (tokens_per_block); context and decoder as seen in "
            "its logs; build: bf16 8B fails on 12 GB, NVIDIA/TensorRT-LLM#1609",
        ),
        "tensorrt-llm-pytorch": Footprint(
            precisions=("fp16", "int8", "int4_awq", "fp8"),
            kv_precisions=("fp16", "fp8"),
            runtime_bytes=600 * MIB,
            fixed_workspace_bytes=(64 + 200) * MIB,
            chunk_tokens=1024,
            activation_bits=16,
            live_activations=2,
            page_tokens=32,
            is_paged=True,
            spare_tokens=32,
            whole_prompts=frozenset({(name, "fp8") for name in _LLM_PRECISIONS}),
            compile_factor=1.0,
            compile_fixed_bytes=1024 * MIB,
            compiles_on_device=True,
            source="an allowance, not measured: as tensorrt-llm, 200 MiB more for PyTorch's own "
            "and 200 MB for one CUDA graph (llm_args.py, cuda_graph_config); nothing is compiled, "
            "the compile step loads the engine to check it; a page more for the token that is "
            "computed ahead, and drafts (pyexecutor/py_executor_creator.py). Whether prompts in "
            "parts read an fp8 cache is not known, so they go through whole",
        ),
        "tensorrt-rtx": Footprint(
            precisions=("fp16", "int8", "int4_awq", "fp8"),
            kv_precisions=("fp16",),
            runtime_bytes=400 * MIB,
            fixed_workspace_bytes=64 * MIB,
            chunk_tokens=512,
            activation_bits=16,
            live_activations=2,
            page_tokens=256,
            compile_factor=3.0,
            compile_fixed_bytes=640 * MIB,
            compiles_on_device=False,
            compilations=_RTX_COMPILATIONS,
            storage=_RTX_STORAGE,
            has_fixed_cache=True,
            holds_all_heads=("int8", "int4_awq", "fp8"),
            builds_ahead=True,
            source="compile: measured with TensorRT-RTX 1.7.1 on 2 cores of a Xeon (Sapphire "
            "Rapids) on 1 to 32 layers and extrapolated from there (scripts/rtx-sizes), with "
            "128 MiB more, since two layers took 4 % more on another machine; run: as "
            "tensorrt-llm, and from the names of the kernels, not measured",
        ),
        "edge-llm": Footprint(
            precisions=("fp16", "int8_sq", "int4_awq", "fp8", "nvfp4"),
            kv_precisions=("fp16", "fp8"),
            runtime_bytes=400 * MIB,
            fixed_workspace_bytes=300 * MIB,
            chunk_tokens=1024,
            activation_bits=16,
            live_activations=2,
            # the engine holds the head; its runtime looks up the embedding in a file beside it
            shares_tied_tables=False,
            page_tokens=128,
            is_paged=True,
            whole_prompts=_EDGE_WHOLE_PROMPTS,
            prefills_together=True,
            compile_factor=4.0,
            compile_fixed_bytes=1024 * MIB,
            compiles_on_device=True,
            source="cache in pages of 128 tokens (TensorRT-Edge-LLM 0.11); build takes 3 to 4 "
            "times the model: NVIDIA/TensorRT-Edge-LLM#30; 300 MiB: edgeserve's estimate",
        ),
    }
)
"""Backend -> its row; ONNX Runtime has one for each provider."""


def find_footprint(backend: str, profile: Profile) -> Footprint:
    """The row of a backend on a device. Raises `InputError` for a backend without one."""
    name = backend
    if backend == "onnxruntime" and profile.sm is not None:
        name = "onnxruntime-cuda"
    if name not in FOOTPRINTS:
        raise InputError(
            f"nothing is known of the memory that the backend {backend} needs",
            hint=f"known are {', '.join(FOOTPRINTS)}",
        )
    return FOOTPRINTS[name]
