"""Quantized checkpoint -> ONNX decoder graph, streamed tensor by tensor.

    out/
    ├── model.onnx        fp32 activations, for ONNX Runtime's CPU provider
    ├── model_fp16.onnx   fp16 activations, for its CUDA provider (where the operators exist there)
    └── model.data        every weight once; both graphs point into it

Layout of the room: `store` writes the data file, `weights` turns a checkpoint's linear layers into
kernel layouts, `nodes` is a thin graph builder, `decoder` is the network itself, `rope` its tables.
"""

from __future__ import annotations

from edgekit.export.decoder import export_decoder
from edgekit.export.standard import export_standard_decoder

__all__ = ["export_decoder", "export_standard_decoder"]
