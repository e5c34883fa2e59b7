"""The steps of each backend that can be checked."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from gpu_check import card, steps, streamed
from gpu_check.job import Step

STEPS: Mapping[str, Mapping[str, Step]] = MappingProxyType(
    {card.BACKEND: steps.STEPS, **dict.fromkeys(streamed.BACKENDS, streamed.STEPS)}
)


def steps_of(backend: str) -> Mapping[str, Step]:
    """In their order."""
    return STEPS[backend]
