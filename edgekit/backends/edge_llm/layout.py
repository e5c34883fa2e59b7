"""What is in an engine's directory: `engine.json` beside what Edge-LLM wrote.

backend/
├── llm/           Edge-LLM's own: llm.engine, config.json, tokenizer, chat template
├── checkpoint/    weights that the engine does not hold; only of the direct builder
└── engine.json    sizes and identity, as edgekit built it
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from edgekit.backends.edge_llm.identity import Identity
from edgekit.errors import EngineError, storage_errors
from edgekit.scratch import write_beside

LAYOUT_FILE = "engine.json"
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
        data = {"format": _FORMAT, **asdict(self)}
        with storage_errors(directory):
            write_beside(directory / LAYOUT_FILE, json.dumps(data, indent=2, sort_keys=True) + "\n")

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Read it back. Raises `EngineError`."""
        path = directory / LAYOUT_FILE
        try:
            data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if data.pop("format") != _FORMAT:
                raise ValueError("another format")
            return cls(**{**data, "identity": Identity.from_dict(data["identity"])})
        except (OSError, ValueError, KeyError, TypeError) as exc:
            raise EngineError(
                f"unreadable {path}: {exc}", hint="build it again with `edgekit build`"
            ) from exc
