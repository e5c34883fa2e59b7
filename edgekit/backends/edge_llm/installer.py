"""What `edgekit doctor --install edge-llm` does: an environment with the wheel, pinned.

On a Jetson the environment sees the system's packages, for TensorRT's Python bindings are JetPack's
(no index has them as a wheel). On other machines it is for the ONNX export, which needs no GPU.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from edgekit.backends.edge_llm.environment import child_environment
from edgekit.backends.edge_llm.payload import PYTHONS, find_row, read_machine
from edgekit.backends.edge_llm.runtime import VERSION, Runtime, default_environment, find_runtime
from edgekit.backends.installation import Installation
from edgekit.backends.interpreter import MARK, Runner, read_answer, release_of, run_program
from edgekit.device import Device
from edgekit.errors import BackendError, MissingBackendError
from edgekit.units import MIB

REQUIREMENT = f"tensorrt-edgellm[export]=={VERSION}"
"""Its extra pins torch, transformers, onnx, onnxscript, safetensors and numpy exactly."""
PINNED = ("torch==2.13.0", "transformers==5.14.1", "onnx==1.19.0")
"""By that extra, to be told (METADATA of 0.11.0)."""
_LEAST_GLIBC: Mapping[str, tuple[int, int]] = {"x86_64": (2, 35), "aarch64": (2, 39)}
"""Tags of its wheels for Linux: manylinux_2_35_x86_64, manylinux_2_39_aarch64."""
_WHEEL_BYTES: Mapping[str, int] = {"x86_64": 200_582_426, "aarch64": 447_070_745}
_OTHER_BYTES = 300 * MIB
"""torch for processors and the rest."""
_DISK_BYTES = 1750 * MIB
"""Measured on x86-64 with torch for processors."""
_PROBE = (
    "import json, platform, sys; print('\\n" + MARK + "' + json.dumps(dict("
    "python='%d.%d' % sys.version_info[:2], machine=platform.machine(), "
    "system=platform.system(), libc=platform.libc_ver()[1])))"
)


def plan_installation(
    device: Device,
    *,
    environ: Mapping[str, str] = os.environ,
    run: Runner | None = None,
) -> Installation:
    """Say what would be installed on this machine. Raises `MissingBackendError` where no wheel
    fits it."""
    run = run or run_program
    python, said = _find_base(environ, run)
    _require_wheel(said)
    directory = default_environment(environ)
    is_jetson = device.jetson is not None
    pip = (str(directory / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install")
    venv = (python, "-m", "venv", *(["--system-site-packages"] if is_jetson else []))
    return Installation(
        backend="edge-llm",
        directory=directory,
        requirements=(REQUIREMENT, *PINNED),
        commands=((*venv, str(directory)), (*pip, "--only-binary=:all:", REQUIREMENT)),
        download_bytes=_WHEEL_BYTES[said["machine"]] + _OTHER_BYTES,
        disk_bytes=_DISK_BYTES,
        notes=tuple(_notes(device, said)),
        is_done=_is_done(environ, run),
    )


def finish_installation(
    plan: Installation, *, environ: Mapping[str, str] = os.environ, run: Runner = run_program
) -> Runtime:
    """Ask the environment that was made. Raises `BackendError` unless it can export."""
    own = {**environ, "EDGEKIT_EDGELLM_PYTHON": str(plan.directory)}
    runtime = find_runtime(None, environ=own, run=run)
    if runtime.version != VERSION or not runtime.can_export:
        raise BackendError(
            f"{plan.directory} has Edge-LLM {runtime.version}, without all that its export needs",
            hint=f"rm -r {plan.directory}, then `edgekit doctor --install edge-llm`",
        )
    return runtime


def _find_base(environ: Mapping[str, str], run: Runner) -> tuple[str, dict[str, str]]:
    """The first Python that its wheels are for: this one, or one on the PATH, newest first."""
    path = environ.get("PATH")
    found = [shutil.which(f"python{version}", path=path) for version in reversed(PYTHONS)]
    # a base interpreter, for an environment made from an environment keeps its packages
    own = str(Path(sys.base_prefix) / "bin" / "python3")
    for candidate in dict.fromkeys([own, *(each for each in found if each)]):
        clean = child_environment(environ, is_own=False)
        said = read_answer(run([candidate, "-c", _PROBE], clean))
        if said is not None and said.get("python") in PYTHONS:
            return candidate, {key: str(value) for key, value in said.items()}
    raise MissingBackendError(
        f"Edge-LLM needs Python {', '.join(PYTHONS)}, and none of them is on this machine",
        hint="sudo apt-get install python3.12 python3.12-venv",
    )


def _require_wheel(said: Mapping[str, str]) -> None:
    machine, system = said["machine"], said["system"]
    if system != "Linux" or machine not in _LEAST_GLIBC:
        raise MissingBackendError(
            f"Edge-LLM has wheels for Linux on x86_64 and aarch64, not for {system} on {machine}"
        )
    least = _LEAST_GLIBC[machine]
    release = release_of(said.get("libc", ""))
    if release is None or release[:2] < least:
        raise MissingBackendError(
            f"Edge-LLM's wheel for {machine} needs glibc {least[0]}.{least[1]} or later, this is "
            f"{said.get('libc') or 'another library'}",
            hint="Debian 12, Ubuntu 22.04 (x86_64), Ubuntu 24.04 and JetPack 7 have it",
        )


def _notes(device: Device, said: Mapping[str, str]) -> list[str]:
    """What to know before: what it can do here."""
    try:
        row = find_row(read_machine(device, {"machine": said["machine"], "python": said["python"]}))
    except MissingBackendError as exc:
        return [f"exports checkpoints here and runs no engine: {exc}"]
    return [f"builds and runs engines here with its libraries for {row.called}, sm_{row.sm}"]


def _is_done(environ: Mapping[str, str], run: Runner) -> bool:
    directory = default_environment(environ)
    if not (directory / "bin" / "python").is_file():
        return False
    try:
        runtime = find_runtime(str(directory), environ=environ, run=run)
    except BackendError:
        return False
    return runtime.version == VERSION and runtime.can_export
