"""TensorRT-LLM 1.3 and later: the engine is ModelOpt's unified checkpoint, for its PyTorch backend.

backend/
├── config.json, hf_quant_config.json, model.safetensors   what its LLM API is given
└── engine.json                                             sizes and identity
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.backends.base import Wanted
from edgekit.backends.tensorrt_llm.backend import TensorRtLlm
from edgekit.backends.tensorrt_llm.kinds import CHECKPOINT
from edgekit.progress import Progress

if TYPE_CHECKING:
    from edgekit.backends.tensorrt_llm.unified_reader import UnifiedReader


class TensorRtLlmPytorchBackend(TensorRtLlm):
    """Proves the checkpoint on a processor, and loads it on the card."""

    kind = CHECKPOINT
    info = CHECKPOINT.info

    def commands(self, wanted: Wanted, source: Path, engine: Path) -> list[str]:
        """None: nothing is compiled."""
        return []

    def compile(
        self, source: Path, out: Path, wanted: Wanted, *, report: Progress
    ) -> dict[str, Any]:
        """Take the checkpoint as the engine, for the first GPU here that it is for."""
        from edgekit.backends.tensorrt_llm.compiler import adopt_checkpoint

        identity = adopt_checkpoint(
            self.runtime(), source, out, wanted, self.sizes(wanted), report=report
        )
        return identity.to_dict()

    def reader(self) -> type[UnifiedReader]:
        """What opens the checkpoint as this kind of engine computes."""
        from edgekit.backends.tensorrt_llm.unified_reader import UnifiedReader

        return UnifiedReader


BACKEND = TensorRtLlmPytorchBackend()
