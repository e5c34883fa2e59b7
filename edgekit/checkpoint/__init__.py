"""The model to build from: a Hugging Face directory, a hub id or a GGUF file.

`read_checkpoint` looks at headers only and needs the standard library; `read_tensor` and
`read_rows` need numpy; `resolve_model` downloads or converts where that is asked for.
"""

from __future__ import annotations

from edgekit.checkpoint.read import ZERO_POINT, Checkpoint, read_checkpoint
from edgekit.checkpoint.resolve import resolve_model
from edgekit.checkpoint.safetensors import TensorInfo
from edgekit.checkpoint.tensors import read_rows, read_tensor

__all__ = [
    "ZERO_POINT",
    "Checkpoint",
    "TensorInfo",
    "read_checkpoint",
    "read_rows",
    "read_tensor",
    "resolve_model",
]
