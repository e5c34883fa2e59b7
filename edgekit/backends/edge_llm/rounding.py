"""What Edge-LLM's kernels make of stored numbers, and of what enters a layer; torch at fp32.

    STORED[precision](weight, *scales)    the matrix `[N, K]` that they multiply by
    ENTERING[precision](x, input_scale)   `x [T, K]` after it was rounded

FP8 and NVFP4 as in OCP's formats: E4M3 ends at 448, E2M1 has 0, 0.5, 1, 1.5, 2, 3, 4 and 6.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from edgekit.backends.edge_llm.formats import NVFP4_BLOCK

if TYPE_CHECKING:
    from torch import Tensor

E4M3_MAX = 448.0
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_MIDDLES = (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0)


def to_e4m3(x: Tensor, scale: Tensor) -> Tensor:
    """Rounded to `scale` times an E4M3 number."""
    return _e4m3(x / scale) * scale


def to_fp8(x: Tensor, scale: Tensor) -> Tensor:
    """The same by a scale that is fp16, as FP8 layers have it."""
    return to_e4m3(x, scale.half().float())


def to_int8(x: Tensor, scale: Tensor) -> Tensor:
    """Rounded to `scale` times -128 … 127."""
    return (x / scale).round().clamp(-128, 127) * scale


def to_nvfp4(x: Tensor, scale: Tensor) -> Tensor:
    """Rounded to E2M1 numbers, ties to the even code; each block of 16 has an E4M3 scale.

    Rounded in steps of that scale times `scale`, scaled back by the same with `scale` as fp16
    (`_nvfp4_act_qdq_eager`).
    """
    import torch

    blocks = x.unflatten(-1, (-1, NVFP4_BLOCK))
    largest = blocks.abs().amax(dim=-1, keepdim=True)
    steps = _e4m3(largest / E2M1[-1] / scale)
    steps = torch.where(largest == 0, torch.ones_like(steps), steps)
    exact = blocks / (steps * scale).clamp_min(1e-20)
    middles = torch.tensor(_MIDDLES)
    places = torch.bucketize(exact.abs().contiguous(), middles)
    is_tie = exact.abs() == middles[places.clamp(max=len(_MIDDLES) - 1)]
    places = torch.where(is_tie & (places % 2 == 1), places + 1, places)
    back = (steps.half() * scale.half()).float()
    return (exact.sign() * torch.tensor(E2M1)[places] * back).flatten(-2)


def _e4m3(x: Tensor) -> Tensor:
    """The nearest E4M3 number, 448 for what is beyond."""
    import torch

    return x.clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn).float()


def from_int4(packed: Tensor, scales: Tensor) -> Tensor:
    """uint8 `[N / 2, K]`, scales `[N, K / g]`, which the kernels hold as fp16."""
    import torch

    codes = torch.stack([packed & 0x0F, packed >> 4], dim=1).flatten(0, 1).to(torch.int8)
    codes = torch.where(codes > 7, codes - 16, codes)
    group = codes.shape[1] // scales.shape[1]
    return codes.float() * scales.half().float().repeat_interleave(group, dim=1)


def from_int8(codes: Tensor, scales: Tensor) -> Tensor:
    """int8 `[N, K]`, scales `[N]`."""
    return codes.float() * scales.float()[:, None]


def from_fp8(bits: Tensor, scale: Tensor) -> Tensor:
    """E4M3 bit patterns `[N, K]`, one scale, which the graph holds as fp16."""
    import torch

    return bits.view(torch.float8_e4m3fn).float() * scale.half().float()


def from_nvfp4(packed: Tensor, scales: Tensor, scale: Tensor) -> Tensor:
    """uint8 `[N, K / 2]`, E4M3 bit patterns `[N, K / 16]` in units of `scale`."""
    import torch

    table = torch.tensor([*E2M1, *(-value for value in E2M1)])
    codes = torch.stack([packed & 0x0F, packed >> 4], dim=-1).flatten(1)
    steps = scales.view(torch.float8_e4m3fn).float() * scale.float()
    return table[codes.long()] * steps.repeat_interleave(NVFP4_BLOCK, dim=1)


def _as_half(weight: Tensor) -> Tensor:
    """Everything else is fp16 to the engine, whatever it came as."""
    return weight.half().float()


STORED: Mapping[str, Callable[..., Tensor]] = MappingProxyType(
    {
        "fp16": _as_half,
        "int8_sq": from_int8,
        "int4_awq": from_int4,
        "fp8": from_fp8,
        "nvfp4": from_nvfp4,
    }
)
SCALES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "int8_sq": ("weight_scale",),
        "int4_awq": ("weight_scale",),
        "fp8": ("weight_scale",),
        "nvfp4": ("weight_scale", "weight_scale_2"),
    }
)
"""Tensors of a layer that its weight is read with, in the order that `STORED` takes them."""
ENTERING: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = MappingProxyType(
    {"int8_sq": to_int8, "fp8": to_fp8, "nvfp4": to_nvfp4}
)
