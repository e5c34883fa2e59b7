"""The precisions edgekit knows. To add one, add a row to `PRECISIONS`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from edgekit.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """How the weights of the linear layers are stored, and how activations enter them.

    What one device does beyond that (group size, width of the scales, precision of the head)
    is in its profile: `profile.Storage`.
    """

    name: str
    summary: str
    weight_bits: int
    activation_bits: int = 16
    group_size: int | None = None
    """Weights that share one scale, along the input axis; `None`: one scale per output channel."""
    is_group_fixed: bool = False
    """The format knows no other group size."""
    modelopt_config: str | None = None
    """Attribute of `modelopt.torch.quantization`; `None`: nothing to quantize."""
    max_mean_kl: float
    """`verify` fails above this mean KL divergence (nats) from the checkpoint. Generous: it is
    there to catch a broken engine, and a 135M model loses far more at 4 bits than an 8B."""
    max_perplexity_ratio: float


PRECISIONS: Mapping[str, Precision] = MappingProxyType(
    {
        row.name: row
        for row in (
            Precision(
                name="fp16",
                summary="weights and activations at 16 bits (W16A16)",
                weight_bits=16,
                max_mean_kl=0.01,
                max_perplexity_ratio=1.02,
            ),
            Precision(
                name="int8",
                summary="8-bit weights, one scale per channel (W8A16)",
                weight_bits=8,
                modelopt_config="INT8_WEIGHT_ONLY_CFG",
                max_mean_kl=0.05,
                max_perplexity_ratio=1.05,
            ),
            Precision(
                name="int8_sq",
                summary="SmoothQuant: 8-bit weights and activations (W8A8)",
                weight_bits=8,
                activation_bits=8,
                modelopt_config="INT8_SMOOTHQUANT_CFG",
                max_mean_kl=0.10,
                max_perplexity_ratio=1.10,
            ),
            Precision(
                name="int4_awq",
                summary="AWQ: 4-bit weights in groups (W4A16)",
                weight_bits=4,
                group_size=128,
                modelopt_config="INT4_AWQ_CFG",
                max_mean_kl=0.40,
                max_perplexity_ratio=1.35,
            ),
            Precision(
                name="fp8",
                summary="FP8 E4M3 weights and activations (sm_89 and later)",
                weight_bits=8,
                activation_bits=8,
                modelopt_config="FP8_DEFAULT_CFG",
                max_mean_kl=0.10,
                max_perplexity_ratio=1.10,
            ),
            Precision(
                name="nvfp4",
                summary="NVFP4 weights and activations in blocks of 16 (Blackwell)",
                weight_bits=4,
                activation_bits=4,
                group_size=16,
                is_group_fixed=True,
                modelopt_config="NVFP4_DEFAULT_CFG",
                # SmolLM2-135M: 0.60 and 1.47, of which weights alone 0.30 and 1.18
                max_mean_kl=0.80,
                max_perplexity_ratio=1.60,
            ),
        )
    }
)


def find_precision(name: str) -> Precision:
    """The row of that name. Raises `InputError`."""
    if name not in PRECISIONS:
        raise InputError(f"unknown precision: {name}", hint=f"known are {', '.join(PRECISIONS)}")
    return PRECISIONS[name]
