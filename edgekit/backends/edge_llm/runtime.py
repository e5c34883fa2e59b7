"""Where TensorRT Edge-LLM is: an interpreter of its own; found, asked, judged.

It pins its own torch and transformers and is rebuilt every month, so it never shares edgekit's
environment unless it is installed there. Nothing here imports it: one small program in its
interpreter says which versions are installed and which commands it brought.

    0.10.1 and later   `LLM(model)` takes a checkpoint
    0.11.0             tensorrt-edgellm-export, -build, -quantize, -serve
    0.11.1 and later   one command `trtedge`
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from edgekit.backends.edge_llm.environment import child_environment
from edgekit.backends.interpreter import (
    MARK,
    VERSION_PROGRAM,
    Runner,
    ask_python,
    find_python,
    is_installed_here,
    release_of,
    run_program,
)
from edgekit.errors import BackendError, MissingBackendError

OPTION = "--edgellm-python"
VARIABLE = "EDGEKIT_EDGELLM_PYTHON"
_NAME = f"name the interpreter that has Edge-LLM: `{OPTION} /path/to/bin/python`"
INSTALL = f"edgekit doctor --install edge-llm, or name its interpreter: `{OPTION} /path/to/python`"
VERSION = "0.11.0"
"""What `edgekit doctor --install edge-llm` installs: what edgekit is tested with."""
FIRST = (0, 11, 0)
"""The oldest whose commands edgekit knows."""
FIRST_WITH_TRTEDGE = (0, 11, 1)
_DISTRIBUTION = "tensorrt-edgellm"
WHEELS = tuple(
    (python, machine) for python in ("3.10", "3.11", "3.12") for machine in ("x86_64", "aarch64")
)
"""Python and machine of its wheels for Linux (0.11.0); there are no others."""
_PROBE = f"""{VERSION_PROGRAM}try:
    points = metadata.distribution("tensorrt-edgellm").entry_points
    scripts = sorted(p.name for p in points if p.group == "console_scripts")
except metadata.PackageNotFoundError:
    scripts = []
try:
    files = metadata.files("tensorrt-edgellm") or []
    found = [f for f in files if str(f).endswith("_native/variants.json")]
    variants = json.loads(found[0].locate().read_text())["variants"] if found else None
except (metadata.PackageNotFoundError, OSError, ValueError, KeyError):
    variants = None
names = ("variant_id", "cpu_arch", "platform_probe_source", "platform_probe_values",
    "cuda_runtime_soname", "tensorrt_runtime_soname", "gpu_sm")
variants = variants and [{{name: row.get(name) for name in names}} for row in variants]
print("\\n{MARK}" + json.dumps(dict(
    edgellm=version("tensorrt-edgellm"),
    scripts=scripts,
    tensorrt=version("tensorrt", "tensorrt_cu13", "tensorrt_cu12"),
    torch=version("torch"),
    transformers=version("transformers"),
    onnx=version("onnx"),
    python="%d.%d" % sys.version_info[:2],
    machine=platform.machine(),
    system=platform.system(),
    libc=" ".join(platform.libc_ver()),
    variants=json.dumps(variants) if variants else None,
)), flush=True)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """One installed Edge-LLM, and the words that start its Python."""

    python: tuple[str, ...]
    version: str
    has_trtedge: bool
    """It has one command `trtedge` (0.11.1 and later) in place of several."""
    details: Mapping[str, str]
    """Versions of tensorrt, torch, transformers, onnx and python, as far as known; machine, libc;
    `variants`: the native libraries that its wheel holds, as JSON (see `payload`)."""

    @property
    def can_export(self) -> bool:
        """It has what its ONNX export needs: the `export` extra."""
        return all(self.details.get(name) for name in ("torch", "transformers", "onnx"))

    @property
    def is_own(self) -> bool:
        """It is the interpreter that runs edgekit."""
        return self.python == (sys.executable,)


def default_environment(environ: Mapping[str, str] = os.environ) -> Path:
    """Where `edgekit doctor --install edge-llm` puts it."""
    base = environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(base) / "edgekit" / "edge-llm"


def find_runtime(
    option: str | None, *, environ: Mapping[str, str] = os.environ, run: Runner = run_program
) -> Runtime:
    """The Edge-LLM that the option names, else the variable, else the one that edgekit installed,
    else this environment's own.

    Raises `MissingBackendError`, `BackendError`.
    """
    for said, where in ((option, OPTION), (environ.get(VARIABLE), VARIABLE)):
        if said:
            return _interpreter(find_python(said, where, environ, hint=_NAME), environ, run)
    installed = default_environment(environ) / "bin" / "python"
    if installed.is_file():
        return _interpreter(str(installed), environ, run)
    if is_installed_here(_DISTRIBUTION):
        return _interpreter(sys.executable, environ, run)
    raise MissingBackendError("TensorRT Edge-LLM was not found on this machine", hint=INSTALL)


def is_named(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether there is an interpreter to ask, without asking it."""
    installed = default_environment(environ) / "bin" / "python"
    return bool(environ.get(VARIABLE)) or installed.is_file() or is_installed_here(_DISTRIBUTION)


def _interpreter(python: str, environ: Mapping[str, str], run: Runner) -> Runtime:
    child = child_environment(environ, is_own=python == sys.executable)
    return _judged(python, ask_python(python, _PROBE, child, run, hint=_NAME))


def _judged(python: str, said: Mapping[str, Any]) -> Runtime:
    version = said.get("edgellm")
    if not version:
        _refuse_missing(said, python)
    if (release := release_of(str(version))) is None:
        raise BackendError(f"{python} has an Edge-LLM of an unknown version: {version}")
    if release < FIRST:
        least = ".".join(map(str, FIRST))
        raise BackendError(
            f"{python} has Edge-LLM {version}, edgekit needs {least} or later", hint=INSTALL
        )
    scripts = said.get("scripts") or []
    names = ("tensorrt", "torch", "transformers", "onnx", "python", "machine", "libc", "variants")
    details = {name: str(said[name]) for name in names if said.get(name)}
    return Runtime(
        python=(python,),
        version=str(version),
        has_trtedge="trtedge" in scripts,
        details=details,
    )


def _refuse_missing(said: Mapping[str, Any], python: str) -> NoReturn:
    own, machine, system = (str(said.get(name)) for name in ("python", "machine", "system"))
    if system == "Linux" and (own, machine) in WHEELS:
        raise MissingBackendError(f"Edge-LLM is not installed in {python}", hint=INSTALL)
    versions = ", ".join(sorted({version for version, _ in WHEELS}))
    raise MissingBackendError(
        f"there is no Edge-LLM for Python {own} on {system} {machine}, as {python} is: only for "
        f"Linux on x86_64 and aarch64 with Python {versions}",
        hint=INSTALL,
    )
