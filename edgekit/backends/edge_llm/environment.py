"""Which variables Edge-LLM's programs are started with, and which are kept from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType

from edgekit.backends.environment import SET, kept_back, without

CLEARED: Mapping[str, str] = MappingProxyType(
    {
        "__LUNOWUD": "options of TensorRT's compiler: Edge-LLM sets its own, where it needs them",
    }
)
"""Variable -> why no program of Edge-LLM may see it."""


def settings() -> dict[str, str]:
    """What is set."""
    return dict(SET)


def cleared(environ: Mapping[str, str], *, is_own: bool) -> Iterator[str]:
    """Names in `environ` that are kept back; `is_own`: from this very interpreter."""
    return kept_back(environ, CLEARED, is_own=is_own)


def child_environment(environ: Mapping[str, str], *, is_own: bool) -> dict[str, str]:
    """All variables for a program of Edge-LLM."""
    return {**without(environ, cleared(environ, is_own=is_own)), **SET}
