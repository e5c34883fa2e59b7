"""What an engine of TensorRT-RTX looks like from outside, written beside it as `engine.json`.

    backend/
    ├── engine.plan     the serialized engine, kernels still to be compiled on the GPU
    └── engine.json     this

Names and shapes of the tensors are those of the decoder graph (`edgekit.export.standard`); the KV
cache has room for `context_tokens`, which is part of the engine and no less can be opened.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Self

from edgekit.backends.engine_file import read_layout, write_layout

PLAN_FILE = "engine.plan"
GRAPH_FILE = "model.onnx"
"""The decoder graph that the engine is made from, its twin."""
FLOAT_GRAPH_FILE = "model_float.onnx"
"""The same without rounding of activations, where there is any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLayout:
    """Shapes that the session needs, and what the engine is bound to."""

    version: str
    """Of TensorRT-RTX: an engine runs on this version and no other."""
    capabilities: tuple[int, ...]
    """Compute capabilities that it holds: 86, 89, …"""
    num_layers: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    context_tokens: int
    """S: rows of every KV buffer."""
    batch: int
    """KV slots, each `[Hkv, S, D]` fp16."""
    chunk_tokens: int
    """Tokens of a prompt that go through at once, at most."""
    max_logits: int
    """Rows of logits of one call, at most."""
    has_decode_profile: bool
    """Profile 1 is for one token a slot; without it profile 0 does both."""

    def write(self, directory: Path) -> None:
        """Write `engine.json`. Raises `StorageError`."""
        write_layout(directory, asdict(self))

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Raises `EngineError`."""
        with read_layout(directory) as data:
            known = {field.name for field in fields(cls)}
            if set(data) != known:
                raise ValueError(f"keys {', '.join(sorted(set(data) ^ known))}")
            return cls(**{**data, "capabilities": tuple(data["capabilities"])})
