"""Quantized checkpoint -> ONNX decoder graph, streamed tensor by tensor, in one of two dialects.

    out/
    ├── model.onnx        fp32 activations, for ONNX Runtime's CPU provider
    ├── model_fp16.onnx   fp16 activations, for its CUDA provider (where the operators exist there)
    ├── prompt.onnx       for prompts on the CPU, where they have weights of their own
    └── model.data        every tensor once; the graphs point into it

The other dialect, for compilers that know standard operators alone, is `standard.py` with its
`standard_linear` and `standard_tables`: one `model.onnx` of operator set 24 beside its data.
`tensorrt_llm` writes no graph but a checkpoint in TensorRT-LLM's own layout, `unified` one in
Hugging Face's, `edge_llm` ModelOpt's as TensorRT Edge-LLM takes it.

Layout of the room: `store` writes the data file, `weights` turns a checkpoint's linear layers into
kernel layouts, `nodes` is a thin graph builder, `decoder` is the network itself, `rope` its tables.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from edgekit.export.decoder import export_decoder
from edgekit.export.edge_llm import export_edge_llm_checkpoint
from edgekit.export.standard import export_standard_decoder
from edgekit.export.tensorrt_llm import export_tensorrt_llm_checkpoint
from edgekit.export.unified import export_unified_checkpoint

__all__ = [
    "EXPORTERS",
    "export_decoder",
    "export_edge_llm_checkpoint",
    "export_standard_decoder",
    "export_tensorrt_llm_checkpoint",
    "export_unified_checkpoint",
]

EXPORTERS: Mapping[str, Callable[..., None]] = MappingProxyType(
    {
        "decoder-graph": export_decoder,
        "standard-graph": export_standard_decoder,
        "tensorrt-llm-checkpoint": export_tensorrt_llm_checkpoint,
        "unified-checkpoint": export_unified_checkpoint,
        "edge-llm-checkpoint": export_edge_llm_checkpoint,
    }
)
"""What a backend consumes -> the function that writes it."""
