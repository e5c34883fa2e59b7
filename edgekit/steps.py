"""The memory peaks of a build's steps, and in which memory each of them is.

Quantizing and compiling often take more than running: an 8 GB card runs an 8B at 4 bits and can
never quantize it. So each step is planned where it can be done, which may be another machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from edgekit.footprint import Footprint, compile_seconds
from edgekit.model import ModelSpec
from edgekit.profile import Storage
from edgekit.units import MIB, format_bytes

STEP_REMEDIES: Mapping[str, str] = MappingProxyType(
    {
        "quantize": "`edgekit quantize` on a larger machine, then `edgekit compile` here",
        "compile": "free some memory, or use a smaller `--precision`",
        "run": "use a smaller `--context` or `--precision`",
    }
)
"""What to do about a step that does not fit."""
_LIBRARIES_BYTES = 900 * MIB
"""torch, transformers and ModelOpt, imported."""
_LOGITS_TOKENS = 4096
"""Rows of fp32 logits that are alive while calibration and simulation run: with the factors below
fitted to SmolLM2-135M (INT4 AWQ: 2.21 GiB) and a 1.17B (INT8: 6.94 GiB)."""
GPU_FACTOR = 1.6
"""fp16 weights on a GPU, calibration activations and ModelOpt's copies: AWQ of an 8B (16 GB) runs
out of memory on 24 GB (NVIDIA/TensorRT-LLM#1932)."""
FP32_FACTOR = 1.3
BF16_FACTOR = 1.1
"""The same in RAM: the weights, activations, and ModelOpt's copies of the largest layer."""
_HEAD_COPIES = 2
"""More of them where AWQ's search takes the head as one of its layers: fitted to a 1.17B at INT4
AWQ (7.80 GiB); for SmolLM2-135M it is 13 % too much."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Memory that may be used, and whose it is."""

    bytes: int
    where: str
    detail: str = ""
    """How the number came about."""
    is_device: bool = False
    """On the target's own GPU, apart from the RAM of the machine that builds."""
    is_here: bool = False
    """That GPU is in this machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """The memory peak of one step of a build."""

    peak_bytes: int
    fits: bool
    where: str
    """Which memory the peak is in."""
    how: str
    """How the peak is worked out."""
    seconds: int | None = None
    """How long it takes, on the machine that `how` names; `None`: not measured."""


def build_steps(
    spec: ModelSpec,
    footprint: Footprint,
    *,
    precision: str,
    storage: Storage,
    weights_bytes: int,
    run_bytes: int,
    device: Budget,
    host: Budget,
) -> dict[str, Step]:
    """`quantize`, `compile` and `run`, each with its peak and whether that fits."""
    measured = footprint.compilations.get(precision)
    factor = footprint.compile_factor
    if measured is not None:
        factor = max(measured.ram_factor, measured.twin_factor)
    compile_bytes = int(weights_bytes * factor) + footprint.compile_fixed_bytes
    how_compiled = (
        f"{factor:g} x {format_bytes(weights_bytes)} of weights + "
        f"{format_bytes(footprint.compile_fixed_bytes)}; {footprint.source}"
    )
    compiled = _step(compile_bytes, device if footprint.compiles_on_device else host, how_compiled)
    if measured is not None:
        compiled = replace(compiled, seconds=round(compile_seconds(spec, storage, measured)))
    return {
        "quantize": _quantize(spec, storage, device, host),
        "compile": compiled,
        "run": _step(run_bytes, device, "weights + KV cache + workspace + runtime"),
    }


def _quantize(spec: ModelSpec, storage: Storage, device: Budget, host: Budget) -> Step:
    """On the device's GPU where that is here and large enough, after loading into RAM; else in RAM,
    in fp32 or at least in bf16: this machine's, or that which the device shares with its GPU."""
    ways = [(4, FP32_FACTOR, host), (2, BF16_FACTOR, host)]
    if not device.is_device and device != host:
        ways += [(4, FP32_FACTOR, device), (2, BF16_FACTOR, device)]
    if device.is_here and int(spec.num_params * 2 * BF16_FACTOR) <= host.bytes:
        ways.insert(0, (2, GPU_FACTOR, device))
    steps = []
    for width, factor, budget in ways:
        logits = _LOGITS_TOKENS * spec.vocab_size * 4
        head = _HEAD_COPIES * spec.embedding_params * width if storage.is_head_calibrated else 0
        peak = int(spec.num_params * width * factor) + head + logits + _LIBRARIES_BYTES
        how = (
            f"{spec.num_params:,} weights x {width} bytes x {factor:g} for activations and copies "
            + (f"+ {format_bytes(head)} of copies of the head " if head else "")
            + f"+ {format_bytes(logits)} of logits + {format_bytes(_LIBRARIES_BYTES)} of libraries"
        )
        steps.append(_step(peak, budget, how))
    return next((step for step in steps if step.fits), steps[-1])


def _step(peak: int, budget: Budget, how: str) -> Step:
    return Step(peak_bytes=peak, fits=peak <= budget.bytes, where=budget.where, how=how)
