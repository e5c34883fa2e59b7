"""The tensors that Edge-LLM loads for a linear layer X of N outputs and K inputs, per precision.

    fp16       X.weight F16, BF16 or F32 [N, K]
    int8_sq    X.weight I8 [N, K], X.weight_scale [N], X.input_scale [], X.pre_quant_scale [K]
    int4_awq   X.weight U8 [N / 2, K]: row 2i in the low, row 2i + 1 in the high nibble, two's
               complement; X.weight_scale [N, K / g], X.pre_quant_scale [K]
    fp8        X.weight E4M3 [N, K], X.weight_scale [], X.input_scale []
    nvfp4      X.weight U8 [N, K / 2]: column 2i in the low nibble, E2M1; X.weight_scale E4M3
               [N, K / 16], X.weight_scale_2 [], X.input_scale []

`pre_quant_scale` F16 multiplies what enters and may be missing; with an FP8 cache k_proj.k_scale
and v_proj.v_scale, both [], are there too. Source: tensorrt_edgellm/checkpoint/loader.py,
repacking.py and models/linear.py of 0.11.0; ModelOpt writes the same (`export_hf_checkpoint`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from edgekit.model import ModelSpec

Shape = tuple[int, ...]
FLOATS = ("F16", "BF16", "F32")
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
NVFP4_BLOCK = 16
GROUP = 128
"""Of its INT4 kernels: 128 is compiled into those of `Int4GroupwiseGemmPluginV2`
(cuteDslInt4Gemv.cpp: "GEMV group size is baked at 128"), and version 1 has a template for no other.
Other groups are exported without a word and computed with the wrong scales, so layers whose inputs
it does not divide stay at FP16."""
WIDTH = 64
"""N and K of INT4 layers are multiples of it, or the layer is left at FP16."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One tensor of a layer."""

    dtypes: tuple[str, ...]
    shape: Shape
    is_needed: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """How one precision is labelled."""

    precision: str
    quant_algo: str | None
    """In hf_quant_config.json."""


FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        row.precision: row
        for row in (
            Format(precision="fp16", quant_algo=None),
            Format(precision="int8_sq", quant_algo="W8A8_SQ_PER_CHANNEL"),
            Format(precision="int4_awq", quant_algo="W4A16_AWQ"),
            Format(precision="fp8", quant_algo="FP8"),
            Format(precision="nvfp4", quant_algo="NVFP4"),
        )
    }
)


WIDE: Mapping[str, tuple[str, ...]] = MappingProxyType({"int8_sq": ("down_proj",)})
"""Precision -> layers that are left at FP16: silu(gate) * up has outliers that one scale for all
calls cannot hold. SmolLM2-135M with all of them rounded, one scale each: KL 0.140 nats, of which
0.123 comes from these."""


def layer_precision(precision: str, layer: str, columns: int) -> str:
    """Of one layer of `columns` inputs in a checkpoint of that precision."""
    is_wide = layer.endswith(WIDE.get(precision, ("?",)))
    is_undivided = precision == "int4_awq" and columns % GROUP != 0
    return "fp16" if is_wide or is_undivided else precision


def find_format(quant_algo: str | None) -> Format | None:
    """The row with that label; `None`: Edge-LLM may read it as something else, or as FP16."""
    return next((row for row in FORMATS.values() if row.quant_algo == quant_algo), None)


def linear_layers(spec: ModelSpec) -> Iterator[tuple[str, int, int]]:
    """Name, N and K of every linear layer of the blocks."""
    hidden, inner = spec.hidden_size, spec.intermediate_size
    widths = {
        "q_proj": (spec.q_size, hidden),
        "k_proj": (spec.kv_size, hidden),
        "v_proj": (spec.kv_size, hidden),
        "o_proj": (hidden, spec.q_size),
        "gate_proj": (inner, hidden),
        "up_proj": (inner, hidden),
        "down_proj": (hidden, inner),
    }
    for index in range(spec.num_layers):
        for name in ATTENTION:
            yield (f"model.layers.{index}.self_attn.{name}", *widths[name])
        for name in MLP:
            yield (f"model.layers.{index}.mlp.{name}", *widths[name])


def linear_parts(precision: str, rows: int, columns: int, *, group: int = GROUP) -> dict[str, Part]:
    """Suffix -> the tensor that is expected, of one layer `[rows, columns]`."""
    scalar = Part(dtypes=FLOATS, shape=())
    entering = Part(dtypes=("F16",), shape=(columns,), is_needed=False)
    whole = (rows, columns)
    if precision == "fp16":
        return {"weight": Part(dtypes=FLOATS, shape=whole)}
    if precision == "int8_sq":
        return {
            "weight": Part(dtypes=("I8",), shape=whole),
            "weight_scale": Part(dtypes=FLOATS, shape=(rows,)),
            "input_scale": scalar,
            "pre_quant_scale": entering,
        }
    if precision == "int4_awq":
        return {
            "weight": Part(dtypes=("U8",), shape=(rows // 2, columns)),
            "weight_scale": Part(dtypes=FLOATS, shape=(rows, columns // group)),
            "pre_quant_scale": entering,
        }
    if precision == "fp8":
        return {
            "weight": Part(dtypes=("F8_E4M3",), shape=whole),
            "weight_scale": scalar,
            "input_scale": scalar,
        }
    return {
        "weight": Part(dtypes=("U8",), shape=(rows, columns // 2)),
        "weight_scale": Part(dtypes=("F8_E4M3",), shape=(rows, columns // NVFP4_BLOCK)),
        "weight_scale_2": scalar,
        "input_scale": scalar,
    }
