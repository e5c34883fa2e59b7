"""Where TensorRT-LLM is: an interpreter of its own, or a container image; found, asked, judged.

It needs Python 3.10 or 3.12 and pins its own torch, so it never shares edgekit's environment unless
it is installed there. Nothing here imports it: one small program in its interpreter says which
versions are installed.

    1.0 to 1.2      builds engines
    1.3 and later   none any more: its PyTorch backend runs ModelOpt's unified checkpoint
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from edgekit.backends.interpreter import (
    MARK,
    VERSION_PROGRAM,
    Runner,
    ask_python,
    find_python,
    is_installed_here,
    last_line,
    read_answer,
    release_of,
    run_program,
)
from edgekit.backends.tensorrt_llm.container import (
    TOOLS,
    Mount,
    container_words,
    explain,
    require_image,
)
from edgekit.backends.tensorrt_llm.environment import child_environment
from edgekit.errors import BackendError, InputError, MissingBackendError

OPTION = "--trtllm-python"
VARIABLE = "EDGEKIT_TRTLLM_PYTHON"
_NAME = f"name the interpreter that has TensorRT-LLM: `{OPTION} /path/to/bin/python`"
VERSION = "1.2.1"
"""The newest that builds engines: what hints tell to install."""
VERSION_WITHOUT_ENGINES = "1.3.0rc29"
"""The newest that was on PyPI when this was written."""
INSTALL = (
    "python3.12 -m venv trtllm && "
    "trtllm/bin/pip install tensorrt-llm=={} --extra-index-url https://pypi.nvidia.com"
)
"""With a version: makes an environment for it in the working directory."""
IMAGE = f"nvcr.io/nvidia/tensorrt-llm/release:{VERSION}"
WHEELS = (("3.10", "x86_64"), ("3.12", "x86_64"), ("3.12", "aarch64"))
"""Python and machine of its wheels for Linux; there are no others (NVIDIA/TensorRT-LLM#3568)."""
FIRST_WITH_ENGINES, FIRST_WITHOUT_ENGINES = (1, 0), (1, 3)
"""Engines left with 1.3.0rc22; earlier pre-releases of 1.3 are taken as 1.3."""
MODELOPT_WITH_LISTS = (0, 44)
"""From here its configurations are lists, and the `quantize` of TensorRT-LLM <= 1.2 breaks."""
_PROBE = f"""{VERSION_PROGRAM}print("\\n{MARK}" + json.dumps(dict(
    tensorrt_llm=version("tensorrt_llm", "tensorrt-llm"),
    tensorrt=version("tensorrt", "tensorrt_cu13", "tensorrt_cu12"),
    cuda=version("nvidia-cuda-runtime", "nvidia-cuda-runtime-cu13", "nvidia-cuda-runtime-cu12")
        or os.environ.get("CUDA_VERSION"),
    modelopt=version("nvidia-modelopt"),
    torch=version("torch"),
    python="%d.%d" % sys.version_info[:2],
    machine=platform.machine(),
    system=platform.system(),
)), flush=True)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """One installed TensorRT-LLM, and the words that start its Python."""

    kind: Literal["interpreter", "container"]
    python: tuple[str, ...]
    """Of a container: the tool's command up to image and `python3`, without mounts."""
    version: str
    details: Mapping[str, str]
    """Versions of tensorrt, cuda, modelopt, torch and python, as far as known; the image."""

    @property
    def release(self) -> tuple[int, int]:
        """The first two numbers of its version."""
        return _release(self.version) or (0, 0)

    @property
    def makes_engines(self) -> bool:
        """Whether it has `trtllm-build`."""
        return FIRST_WITH_ENGINES <= self.release < FIRST_WITHOUT_ENGINES

    @property
    def is_own(self) -> bool:
        """It is the interpreter that runs edgekit."""
        return self.kind == "interpreter" and self.python == (sys.executable,)

    @property
    def notes(self) -> tuple[str, ...]:
        """What is worth saying although it changes nothing here."""
        modelopt = _release(self.details.get("modelopt", ""))
        if self.makes_engines and modelopt is not None and modelopt >= MODELOPT_WITH_LISTS:
            return (
                f"ModelOpt {self.details['modelopt']} beside TensorRT-LLM {self.version} breaks "
                "that package's own quantization, which edgekit does not use",
            )
        return ()

    def words(
        self,
        *,
        mounts: Sequence[Mount] = (),
        settings: Mapping[str, str] | None = None,
        name: str | None = None,
        is_interactive: bool = False,
    ) -> tuple[str, ...]:
        """What starts Python. Mounts, settings and the name are for a container alone."""
        if self.kind == "interpreter":
            return self.python
        *start, image, python = self.python
        options = container_words(mounts, settings or {}, name=name, is_interactive=is_interactive)
        return (*start, *options, image, python)

    def stop_words(self, name: str) -> tuple[str, ...]:
        """What ends the container of that name; empty for an interpreter."""
        return (self.python[0], "rm", "--force", name) if self.kind == "container" else ()


def find_runtime(
    option: str | None, *, environ: Mapping[str, str] = os.environ, run: Runner = run_program
) -> Runtime:
    """The TensorRT-LLM that the option names, else the variable, else this environment's own.

    Both name an interpreter, or an image as `docker:IMAGE` or `podman:IMAGE`. Raises
    `MissingBackendError`, `BackendError`, and `InputError` for a name that can be neither.
    """
    for said, where in ((option, OPTION), (environ.get(VARIABLE), VARIABLE)):
        if not said:
            continue
        tool, colon, image = said.partition(":")
        if colon and tool in TOOLS:
            return _container(tool, image, where, environ, run)
        return _interpreter(find_python(said, where, environ, hint=_NAME), environ, run)
    if is_installed_here("tensorrt_llm"):
        return _interpreter(sys.executable, environ, run)
    raise MissingBackendError("TensorRT-LLM was not found on this machine", hint=_install())


def _interpreter(python: str, environ: Mapping[str, str], run: Runner) -> Runtime:
    child = child_environment(environ, is_own=python == sys.executable)
    said = ask_python(python, _PROBE, child, run, hint=_NAME)
    return _judged("interpreter", (python,), said, where=python)


def _container(
    tool: str, image: str, where: str, environ: Mapping[str, str], run: Runner
) -> Runtime:
    if not image or image.startswith("-"):
        raise InputError(f"{where} names no image: {tool}:{image}", hint=f"as `{tool}:{IMAGE}`")
    path = shutil.which(tool, path=environ.get("PATH"))
    if path is None:
        raise MissingBackendError(
            f"{where} names an image for {tool}, which is not installed",
            hint=f"install {tool}, or name an interpreter: `{OPTION} /path/to/bin/python`",
        )
    inspected = run([path, "image", "inspect", "--format", "{{.Id}}", image], environ)
    require_image(tool, image, inspected.returncode, inspected.stderr)
    python = (path, *TOOLS[tool].run_words(os.getuid(), os.getgid()), image, "python3")
    runtime = Runtime(kind="container", python=python, version="0", details={})
    finished = run([*runtime.words(), "-c", _PROBE], environ)
    said = read_answer(finished)
    if said is None:
        raise explain(tool, image, finished.stderr, last_line(finished))
    return _judged("container", python, {**said, "image": image}, where=f"the image {image}")


def _judged(
    kind: Literal["interpreter", "container"],
    python: tuple[str, ...],
    said: Mapping[str, Any],
    *,
    where: str,
) -> Runtime:
    version = said.get("tensorrt_llm")
    if not version:
        _refuse_missing(said, where)
    if (release := _release(str(version))) is None:
        raise BackendError(f"{where} has a TensorRT-LLM of an unknown version: {version}")
    if release < FIRST_WITH_ENGINES:
        raise BackendError(
            f"{where} has TensorRT-LLM {version}, edgekit needs 1.0 or later", hint=_install()
        )
    names = ("tensorrt", "cuda", "modelopt", "torch", "python", "machine", "image")
    details = {name: str(said[name]) for name in names if said.get(name)}
    return Runtime(kind=kind, python=python, version=str(version), details=details)


def _refuse_missing(said: Mapping[str, Any], where: str) -> NoReturn:
    python, machine, system = (str(said.get(name)) for name in ("python", "machine", "system"))
    if system == "Linux" and (python, machine) in WHEELS:
        raise MissingBackendError(
            f"TensorRT-LLM is not installed in {where}",
            hint=f"{where} -m pip install tensorrt-llm=={VERSION} "
            "--extra-index-url https://pypi.nvidia.com"
            if said.get("image") is None
            else f"use `{OPTION} docker:{IMAGE}`",
        )
    wheels = ", ".join(f"Python {version} on {cpu}" for version, cpu in WHEELS)
    raise MissingBackendError(
        f"there is no TensorRT-LLM for Python {python} on {system} {machine}, as {where} is: "
        f"only for Linux with {wheels}",
        hint=_install(),
    )


def _install() -> str:
    return f"{INSTALL.format(VERSION)}; then `{OPTION} trtllm`, or `{OPTION} docker:{IMAGE}`"


def _release(version: str) -> tuple[int, int] | None:
    """`"1.2.0rc4"` -> `(1, 2)`."""
    found = release_of(version)
    return None if found is None else found[:2]
