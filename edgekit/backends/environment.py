"""The variables that a vendor's programs are started with, and the command line that says so."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType

SET: Mapping[str, str] = MappingProxyType(
    {
        "PYTHONUNBUFFERED": "1",  # lines of the log come when they are written
        "PYTHONIOENCODING": "utf-8:backslashreplace",
        # a module of the working directory, as `experimental`, would win over the vendor's
        "PYTHONSAFEPATH": "1",
        "HF_HUB_OFFLINE": "1",  # all that is needed is in the checkpoint
        "TRANSFORMERS_OFFLINE": "1",
    }
)
FOREIGN: Mapping[str, str] = MappingProxyType(
    {
        "PYTHONHOME": "another interpreter has its own standard library",
        "PYTHONPATH": "packages of this environment do not belong in the other one",
        "PYTHONSTARTUP": "of this environment",
        "VIRTUAL_ENV": "of this environment",
        "__PYVENV_LAUNCHER__": "of this environment",
    }
)
"""Variable -> why no program of another interpreter may see it."""


def kept_back(
    environ: Mapping[str, str],
    harmful: Collection[str],
    *,
    is_own: bool,
    prefixes: tuple[str, ...] = (),
) -> Iterator[str]:
    """Names in `environ` that a program may not see: the `harmful` ones, those that begin with one
    of `prefixes`, and what belongs to this interpreter, unless the program `is_own`: of it."""
    for name in sorted(environ):
        is_foreign = name in FOREIGN and not is_own
        if name in harmful or is_foreign or name.startswith(prefixes):
            yield name


def without(environ: Mapping[str, str], names: Iterable[str]) -> dict[str, str]:
    """All variables but those."""
    gone = set(names)
    return {name: value for name, value in environ.items() if name not in gone}


def paste(
    command: Sequence[str],
    *,
    settings: Mapping[str, str] | None = None,
    cleared: Iterable[str] = (),
) -> str:
    """The command as one line for a shell, with the variables that it is started with."""
    words = [word for name in cleared for word in ("-u", name)]
    words += [f"{name}={value}" for name, value in sorted((settings or {}).items())]
    return shlex.join(["env", *words, *command] if words else list(command))
