"""Backends by name. To add one: a module or package here with `BACKEND`, and its name below."""

from __future__ import annotations

import shlex
from importlib import import_module
from importlib.util import find_spec

from edgekit.backends.base import (
    Advises,
    Backend,
    BackendInfo,
    Installs,
    RunsByVersion,
    Session,
    Streams,
)
from edgekit.errors import InputError, MissingBackendError

__all__ = [
    "Backend",
    "BackendInfo",
    "Session",
    "find_backend",
    "find_installable",
    "install_line",
    "list_backends",
    "missing_packages",
    "missing_runtime",
    "runtime_advice",
    "runtime_install",
    "runtime_option",
    "unfit_runtime",
]

_BUILTIN = {
    "onnxruntime": "onnxruntime",
    "tensorrt-rtx": "tensorrt_rtx",
    "tensorrt-llm": "tensorrt_llm",
    "tensorrt-llm-pytorch": "tensorrt_llm.pytorch",
    "edge-llm": "edge_llm",
}
"""Name -> module of this package."""


def find_backend(name: str) -> Backend:
    """The backend of that name, checked to be installed.

    Raises `InputError` for an unknown name, `MissingBackendError` for a missing package.
    """
    if name not in _BUILTIN:
        raise InputError(f"unknown backend: {name}", hint=f"known are {', '.join(_BUILTIN)}")
    backend = _load(name)
    if missing := missing_packages(name):
        raise MissingBackendError(
            f"the backend `{name}` needs a package that is not installed: {', '.join(missing)}",
            hint=f"pip install {backend.info.install}",
        )
    return backend


def missing_packages(name: str) -> list[str]:
    """What the built-in backend of that name needs and this environment lacks."""
    return [package for package in _load(name).info.requires if find_spec(package) is None]


def missing_runtime(name: str) -> str | None:
    """What the backend of that name needs beside packages and lacks here; `None`: nothing."""
    backend = _load(name)
    return backend.missing_runtime() if isinstance(backend, Streams) else None


def unfit_runtime(name: str) -> str | None:
    """That the runtime which is named on this machine is another backend's; `None`: it is not, or
    none is."""
    backend = _load(name)
    return backend.unfit_runtime() if isinstance(backend, RunsByVersion) else None


def runtime_install(name: str) -> str:
    """The command line that puts the runtime of the backend of that name onto a machine; empty: it
    has none, or packages are all of it."""
    backend = _load(name)
    if isinstance(backend, Installs):
        return f"edgekit doctor --install {name}"
    return backend.info.runtime_install


def install_line(name: str) -> str:
    """The same for somebody who goes through a list: what would be done twice says so."""
    command = runtime_install(name)
    return f"{command}  # unless it is there" if _load(name).info.runtime_install else command


def runtime_option(name: str) -> str:
    """How `edgekit` is told of a runtime that was put there so; empty: it finds it."""
    return shlex.join(_load(name).info.runtime_option)


def runtime_advice() -> list[str]:
    """What every backend has to say of its own runtime on this machine."""
    loaded = [_load(name) for name in _BUILTIN]
    return [line for each in loaded if isinstance(each, Advises) for line in each.advice()]


def find_installable(name: str) -> Installs:
    """The backend of that name whose runtime edgekit installs. Raises `InputError`."""
    able = {each: _load(each) for each in _BUILTIN}
    backend = able.get(name)
    if not isinstance(backend, Installs):
        known = ", ".join(each for each in able if isinstance(able[each], Installs))
        raise InputError(f"edgekit does not install this: {name}", hint=f"it installs {known}")
    return backend


def list_backends() -> list[BackendInfo]:
    """What every backend can do, installed or not."""
    return [_load(name).info for name in _BUILTIN]


def _load(name: str) -> Backend:
    backend: Backend = import_module(f"{__name__}.{_BUILTIN[name]}").BACKEND
    return backend
