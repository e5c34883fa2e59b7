"""What `verify` measures of an engine, and how much of it is too much."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, Self

from edgekit.errors import PromptError, QualityError
from edgekit.precision import find_precision

_MAX_KL_FROM_SIMULATION = 0.02
"""Kernels round activations to int8 per group, which ModelOpt does not simulate: 0.003 nats on
SmolLM2-135M. A wrong nibble order or scale gives whole nats."""
_MAX_KL_FROM_INT8_SIMULATION = 0.06
"""W8A8: the simulation has quantized weights alone, the engine rounds activations as well and
halves the codes: 0.024 nats on SmolLM2-135M."""
_MAX_KL_OF_TWIN = 0.001
"""A twin computes in the engine's precision, on a processor: 0.0001 nats on SmolLM2-135M."""
_CACHE_COSTS: Mapping[str, tuple[float, float]] = MappingProxyType(
    {"int8": (0.09, 0.10), "fp8": (0.03, 0.03)}
)
"""What a rounded cache may add to divergences, and to the perplexity ratio: neither the checkpoint
nor ModelOpt's simulation has one. SmolLM2-135M beside 16-bit weights: int8 0.034 nats, fp8 0.011;
beside 4-bit ones int8 0.09 and 0.09. Wrong scales give whole nats here, too."""
_COARSE_CACHE = "use `--kv fp16`: a cache of 16 bits costs nothing here"
_BROKEN = "this is no matter of quality: scales or layout are wrong; please report the model"
_COARSE = (
    "try `--precision int8`, or calibrate on more of your own text with "
    "`--calibration FILE --calibration-tokens 4096`"
)
_NO_PROMPTS = (
    "8-bit activations do not suit this model: write `edgekit profiles show cpu` into a file "
    "`cpu.toml`, take the lines with `prompt_bits` out, and build it with `--profile cpu.toml`"
)
ON_ENGINE = "engine"
ON_ENGINE_TOP = "engine, by its likeliest tokens"
ON_TWIN = "twin"
ON_TWIN_ANSWERED = "twin, and the engine's known answer"
"""What was asked: the engine itself, or what it was compiled from, on a processor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """The figures that `verify` puts into the manifest. Divergences in nats per token."""

    positions: int
    mean_kl: float
    """From the original checkpoint's distribution to the engine's."""
    mean_kl_simulated: float
    """From ModelOpt's simulated model to the engine."""
    top1_agreement: float
    """Share of positions where engine and original find the same token likeliest."""
    perplexity_ratio: float
    """Engine to original, on the held-out exchanges."""
    mean_kl_after_prompts: float | None = None
    """`mean_kl_simulated` of what follows prompts that went through a graph of their own; `None`
    where there is none."""
    known_answer_ids: tuple[int, ...]
    """The engine's greedy answer to the known prompt."""
    known_answer_agreement: int
    """Leading tokens that equal the original's answer."""
    known_answer: str = ""
    """The same as text."""
    measured_on: str = ON_ENGINE
    """`ON_ENGINE`, or `ON_TWIN` where its device was not at hand. `ON_ENGINE_TOP`: divergences are
    the least that fit, the perplexity is the twin's."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types for the manifest."""
        return {**asdict(self), "known_answer_ids": list(self.known_answer_ids)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """What `to_dict` wrote."""
        return cls(**{**data, "known_answer_ids": tuple(data["known_answer_ids"])})


def require_quality(quality: Quality, precision: str, kv_precision: str = "fp16") -> None:
    """Raises `QualityError` naming the first figure that is beyond its limit, `PromptError` where
    that is only what follows prompts."""
    row = find_precision(precision)
    more_kl, more_perplexity = _CACHE_COSTS.get(kv_precision, (0.0, 0.0))
    simulation_limit = (
        _MAX_KL_FROM_INT8_SIMULATION if row.activation_bits < 16 else _MAX_KL_FROM_SIMULATION
    )
    simulation_limit += more_kl
    if quality.measured_on == ON_TWIN:  # one that rounds no cache
        simulation_limit = _MAX_KL_OF_TWIN
    coarse = _COARSE_CACHE if more_kl else _COARSE
    for name, value, limit, hint in (
        (
            "mean KL divergence from ModelOpt's simulation",
            quality.mean_kl_simulated,
            simulation_limit,
            _BROKEN,
        ),
        (
            "mean KL divergence from the checkpoint",
            quality.mean_kl,
            row.max_mean_kl + more_kl,
            coarse,
        ),
        (
            "perplexity ratio to the checkpoint",
            quality.perplexity_ratio,
            row.max_perplexity_ratio + more_perplexity,
            coarse,
        ),
    ):
        # NaN compares false with everything: ask for what must hold
        if not value <= limit:
            raise QualityError(_failed(precision, name, value, limit), hint=hint)
    after = quality.mean_kl_after_prompts
    if after is not None and not after <= _MAX_KL_FROM_INT8_SIMULATION:
        name = "mean KL divergence from ModelOpt's simulation after prompts"
        what = _failed(precision, name, after, _MAX_KL_FROM_INT8_SIMULATION)
        raise PromptError(what, hint=_NO_PROMPTS)


def _failed(precision: str, name: str, value: float, limit: float) -> str:
    return f"{precision} engine failed its check: {name} is {value:.4f}, limit {limit:g}"
