"""Input scales and tensor scales, where engines run several layers as one product."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


def fold_scales(model: Any) -> None:
    """Average and fold input scales now, so that the simulation is of the exported model."""
    from modelopt.torch.export.quant_utils import fuse_prequant_to_linear
    from modelopt.torch.export.unified_export_hf import requantize_resmooth_fused_llm_layers

    requantize_resmooth_fused_llm_layers(model)
    fuse_prequant_to_linear(model, fuse_grouped_heads=True)
    _share_tensor_scales(model)


@contextlib.contextmanager
def own_scales() -> Iterator[None]:
    """Keep ModelOpt's export from averaging scales over the layers that read the same input, which
    it does without asking: TensorRT Edge-LLM keeps it from that in the same way (its `quantize.py`,
    `_skip_resmooth_for_hybrid`)."""
    from modelopt.torch.export import unified_export_hf

    found = unified_export_hf.requantize_resmooth_fused_llm_layers
    unified_export_hf.requantize_resmooth_fused_llm_layers = lambda model: None
    try:
        yield
    finally:
        unified_export_hf.requantize_resmooth_fused_llm_layers = found


def _share_tensor_scales(model: Any) -> None:
    """Give layers that an engine runs as one product one scale, where a matrix has one (FP8).

    A float format loses nothing by it, and rounding twice, later, would.
    """
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        for members in (
            [attention.q_proj, attention.k_proj, attention.v_proj],
            [mlp.gate_proj, mlp.up_proj],
        ):
            quantizers = [getattr(member, "weight_quantizer", None) for member in members]
            active = [q for q in quantizers if q is not None and q.is_enabled]
            amaxes = [q.amax for q in active if q.amax is not None and q.amax.numel() == 1]
            if len(amaxes) == len(members):
                largest = max(amaxes, key=float)
                for quantizer in active:
                    quantizer.amax = largest.clone()
