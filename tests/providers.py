"""Execution providers as the tests name them."""

from __future__ import annotations

from edgekit.backends.onnxruntime.providers import PROVIDERS, Provider

CPU = next(row for row in PROVIDERS if row.device == "cpu")
FP16_ON_CPU = Provider(
    name="CPUExecutionProvider", graph="model_fp16.onnx", device="cpu", kv_dtype="float16"
)
"""The graph for CUDA, widened to fp32 around operators that have no fp16 kernel there."""
