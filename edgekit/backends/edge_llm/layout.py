"""What is in an engine's directory: `engine.json` beside what Edge-LLM wrote.

backend/
├── llm/           Edge-LLM's own: llm.engine, config.json, tokenizer, chat template
├── checkpoint/    weights that the engine does not hold; only of the direct builder
└── engine.json    sizes and identity, as edgekit built it
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from edgekit.backends.edge_llm.identity import Identity
from edgekit.backends.engine_file import read_layout, write_layout

ENGINE_DIRECTORY, CHECKPOINT_DIRECTORY = "llm", "checkpoint"
_FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLayout:
    """Sizes of an engine and what it was built on."""

    precision: str
    kv_precision: str
    vocab_size: int
    max_input_tokens: int
    kv_capacity_tokens: int
    batch: int
    has_checkpoint: bool
    """Its weights lie beside it."""
    identity: Identity

    def write(self, directory: Path) -> None:
        """Write `engine.json`. Raises `StorageError`."""
        write_layout(directory, {"format": _FORMAT, **asdict(self)})

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Read it back. Raises `EngineError`."""
        with read_layout(directory, number=_FORMAT) as data:
            return cls(**{**data, "identity": Identity.from_dict(data["identity"])})
