"""Where things lie, and the peers' own virtual environment."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".bench"
_REQUIREMENTS = Path(__file__).with_name("requirements.txt")
_AMX_FIX = Path(__file__).with_name("tile_config.h")
_TORCH_CPU = "https://download.pytorch.org/whl/cpu"


class PeerError(Exception):
    """A peer could not be installed, converted or run; the comparison goes on without it."""


def say(text: str) -> None:
    """One line to stderr."""
    print(text, file=sys.stderr, flush=True)


def peers_home(processor: str) -> Path:
    """Where the peers' environment for a processor is, or will be."""
    return ROOT / (".venv-peers" if processor == "native" else f".venv-peers-{processor}")


def peers_python(processor: str, cmake_args: str) -> Path:
    """The interpreter of the peers' environment for a processor, which is made on first use.

    Packages are installed one by one, so that one that does not build stops no other. llama.cpp is
    compiled with `cmake_args`, unless CMAKE_ARGS says otherwise.
    """
    home = peers_home(processor)
    python = home / "bin" / "python"
    if not python.exists():
        venv.create(home, with_pip=True)
    wanted = [
        line
        for line in _REQUIREMENTS.read_text(encoding="ascii").splitlines()
        if line and not line.startswith("#")
    ]
    for requirement in wanted:
        stamp = home / f".installed-{hashlib.sha256(requirement.encode()).hexdigest()[:16]}"
        if stamp.exists():
            continue
        say(f"installing {requirement} into {home.name}")
        # a wheel that pip compiled before and kept may be for another processor
        command = [str(python), "-m", "pip", "install", "--quiet", "--no-cache-dir", requirement]
        if requirement.startswith("torch="):  # the others then find it installed
            command += ["--extra-index-url", _TORCH_CPU]
        done = subprocess.run(command, env=_pip_environment(cmake_args), check=False)
        if done.returncode:
            say(f"{requirement} cannot be installed; engines that need it are left out")
            continue
        stamp.touch()
    return python


def _pip_environment(cmake_args: str) -> dict[str, str]:
    return {
        "CMAKE_ARGS": f"{cmake_args} -DLLAVA_BUILD=OFF",
        "CXXFLAGS": f"-include {_AMX_FIX}",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        **os.environ,
    }


def own_python() -> Path:
    """The interpreter that edgekit is installed for: the one that runs this."""
    return Path(sys.executable)


def variables(more: Mapping[str, str]) -> dict[str, str]:
    """Of the processes that measure."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "scripts")]),
        "HF_HUB_OFFLINE": "1",
        **more,
    }


def run(
    command: Sequence[str | Path],
    *,
    what: str,
    timeout_s: float | None = None,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Run a step of another program, its words in a log. Raises `PeerError` with the last ones."""
    log = CACHE / "last.log"
    with log.open("wb") as file:
        try:
            done = subprocess.run(
                [str(part) for part in command],
                env=variables(environment), stdin=subprocess.DEVNULL, stdout=file, stderr=file,
                timeout=timeout_s, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as exc:
            raise PeerError(f"{what}: not done after {timeout_s:.0f} s") from exc
    if done.returncode:
        raise PeerError(f"{what}: {ending(done.returncode, log)}")


def ending(code: int, log: Path) -> str:
    """Why a process ended, from its exit code and the last words in its log."""
    if code < 0:
        import signal

        return f"crashed ({signal.Signals(-code).name})"
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1][:200] if lines else f"exit code {code}"
