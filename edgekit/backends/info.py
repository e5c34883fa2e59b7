"""What a backend can do, and what it is asked for, as plain data: see `backends.base`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendInfo:
    """What a backend can do, known without importing what it needs."""

    name: str
    summary: str
    precisions: frozenset[str]
    requires: tuple[str, ...]
    """Importable modules, checked before work."""
    consumes: Literal[
        "decoder-graph",
        "standard-graph",
        "unified-checkpoint",
        "tensorrt-llm-checkpoint",
        "edge-llm-checkpoint",
    ]
    install: str
    """What `pip install` is given for them."""
    runtime_install: str = ""
    """A command line that makes the Python of its runtime, where edgekit does not make it …"""
    runtime_option: tuple[str, ...] = ()
    """… and how `edgekit` is told of it then."""
    on_gpu: tuple[str, ...] = ()
    """Importable modules that running on the GPU needs besides."""
    gpu_package: str | None = None
    """The distribution without which it runs on the processor alone."""
    exposes_logits: bool
    """True: `runtime/` samples and schedules. False: the backend streams finished tokens."""
    compiles_ahead: bool = False
    """It compiles for GPUs that are not on this machine, for several at once. What cannot run here
    is checked through its twin."""
    has_stage: bool = False
    """What it compiles can be made and proved on any machine, and carried to the device."""
    families: frozenset[str] | None = None
    """Families of models that it takes; `None`: all of edgekit's."""
    takes_biases: bool = False
    """Of those families also models with biases in linear layers."""
    head_sizes: range | None = None
    """Sizes of attention heads that it has kernels for; `None`: any."""
    slot_alignment: int = 1
    """Bytes that one KV buffer of a slot must be a multiple of where there are several."""
    width_multiple: int = 1
    """The input and output widths of quantized layers must be multiples of it."""
    merges_layers: bool = True
    """q, k and v are one layer to its kernels."""
    groups: tuple[int, ...] = ()
    """Group sizes of 4-bit integer weights that its kernels have; empty: any."""
    has_zero_points: bool = False
    """Its kernels take 4-bit weights with zero points."""
    speculation: frozenset[str] = frozenset()
    """How its engines can be told to draft by themselves."""
    no_speculation: Mapping[str, str] = field(default_factory=dict)
    """A way to draft that they have not -> why."""
    keeps_input_scales: frozenset[str] = frozenset()
    """Precisions whose layers multiply what enters by a scale of their own, not by one that is
    shared by all that read the same input and folded away: they are quantized for it alone."""

    @property
    def takes_any_shape(self) -> bool:
        """Whether it has no word in which models there are."""
        return self.families is None and self.head_sizes is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What an engine is compiled for."""

    precision: str
    kv_precision: str = "fp16"
    context_tokens: int
    batch: int
    """KV slots."""
    speculation: str = "none"
    """How the engine drafts by itself."""
    capabilities: tuple[int, ...] = ()
    """Compute capabilities of its GPUs (86: sm_86); empty: a processor."""
    gpu_index: int | None = None
    """Of the GPU here that it is for; `None`: it is not here."""
