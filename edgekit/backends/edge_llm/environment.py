"""Which variables Edge-LLM's programs are started with, and which are kept from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType

SET: Mapping[str, str] = MappingProxyType(
    {
        "PYTHONUNBUFFERED": "1",  # lines of the log come when they are written
        "PYTHONIOENCODING": "utf-8:backslashreplace",
        # its top-level package is named `experimental`: one in the working directory would win
        "PYTHONSAFEPATH": "1",
        "HF_HUB_OFFLINE": "1",  # all that it needs is in the checkpoint
        "TRANSFORMERS_OFFLINE": "1",
    }
)
CLEARED: Mapping[str, str] = MappingProxyType(
    {
        "__LUNOWUD": "options of TensorRT's compiler: Edge-LLM sets its own, where it needs them",
    }
)
"""Variable -> why no program of Edge-LLM may see it."""
FOREIGN: Mapping[str, str] = MappingProxyType(
    {
        "PYTHONHOME": "another interpreter has its own standard library",
        "PYTHONPATH": "packages of this environment do not belong in the other one",
        "PYTHONSTARTUP": "of this environment",
        "VIRTUAL_ENV": "of this environment",
        "__PYVENV_LAUNCHER__": "of this environment",
    }
)
"""The same for programs of another interpreter."""


def settings() -> dict[str, str]:
    """What is set."""
    return dict(SET)


def cleared(environ: Mapping[str, str], *, is_own: bool) -> Iterator[str]:
    """Names in `environ` that are kept back; `is_own`: from this very interpreter."""
    for name in sorted(environ):
        if name in CLEARED or (name in FOREIGN and not is_own):
            yield name


def child_environment(environ: Mapping[str, str], *, is_own: bool) -> dict[str, str]:
    """All variables for a program of Edge-LLM."""
    gone = set(cleared(environ, is_own=is_own))
    return {**{name: value for name, value in environ.items() if name not in gone}, **SET}
