"""What is in an engine's directory: `engine.json` beside the files of `trtllm-build`, or beside the
checkpoint that is the engine from 1.3 on.

backend/
├── config.json    TensorRT-LLM's own: version, model, build configuration
├── rank0.engine
└── engine.json    sizes and identity, as edgekit built it
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from edgekit.backends.engine_file import read_layout, write_layout
from edgekit.backends.tensorrt_llm.identity import Identity

_FORMAT = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLayout:
    """Sizes of an engine and what it was built on."""

    precision: str
    kv_precision: str
    vocab_size: int
    context_tokens: int
    batch: int
    max_num_tokens: int
    """Tokens of one pass."""
    speculation: str
    """How it drafts by itself; "none": not at all."""
    identity: Identity

    def write(self, directory: Path) -> None:
        """Write `engine.json`. Raises `StorageError`."""
        write_layout(directory, {"format": _FORMAT, **asdict(self)})

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Read it back. Raises `EngineError`."""
        with read_layout(directory, number=_FORMAT) as data:
            return cls(**{**data, "identity": Identity.from_dict(data["identity"])})
