"""llama.cpp's own server, compiled from the sources that `scripts/bench`'s llama.cpp comes from.

The Python package compiles no server with parallel slots, but its source archive holds all of
llama.cpp. The build takes about ten minutes of two cores, once, below `.bench`.
"""

from __future__ import annotations

import os
import shutil
import tarfile
from pathlib import Path

from peers.environment import CACHE, PeerError, own_python, run, say

_PACKAGE = "llama-cpp-python"
_HEADER = Path(__file__).parents[1] / "peers" / "tile_config.h"
_REQUIREMENTS = Path(__file__).parents[1] / "peers" / "requirements.txt"


_TOOLS = ("llama-server", "llama-quantize")


def llama_tool(name: str) -> Path:
    """One of `_TOOLS` below `.bench`, compiled on first use. Raises `PeerError`."""
    home = CACHE / f"llama-server-{_version()}"
    built = home / "bin" / name
    if not built.is_file():
        say("compiling llama.cpp's server (about ten minutes)")
        work = home / "work"
        shutil.rmtree(home, ignore_errors=True)
        work.mkdir(parents=True)
        _compile(_sources(work), work / "build")
        shutil.copytree(work / "build" / "bin", home / "bin", symlinks=True)
        shutil.rmtree(work)
    return built


def _version() -> str:
    for line in _REQUIREMENTS.read_text(encoding="ascii").splitlines():
        name, _, version = line.partition("==")
        if name == _PACKAGE:
            return version
    raise PeerError(f"no {_PACKAGE} in {_REQUIREMENTS.name}")


def _sources(work: Path) -> Path:
    run(
        [
            own_python(), "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:",
            "--dest", work, f"{_PACKAGE}=={_version()}",
        ],
        what="the download of llama.cpp",
    )  # fmt: skip
    archive = next(work.glob("*.tar.gz"), None)
    if archive is None:
        raise PeerError(f"{_PACKAGE} comes without sources")
    with tarfile.open(archive) as packed:
        packed.extractall(work, filter="data")
    return next(work.glob("*/vendor/llama.cpp"))


def _compile(sources: Path, build: Path) -> None:
    options = [
        "-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", "-DLLAMA_CURL=OFF",
        "-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_EXAMPLES=OFF", "-DLLAMA_USE_PREBUILT_UI=OFF",
        f"-DCMAKE_CXX_FLAGS=-include {_HEADER}",
        "-DCMAKE_BUILD_WITH_INSTALL_RPATH=ON", "-DCMAKE_INSTALL_RPATH=$ORIGIN",
    ]  # fmt: skip
    run(["cmake", "-S", sources, "-B", build, *options], what="cmake")
    jobs = str(os.cpu_count() or 1)
    run(
        ["cmake", "--build", build, "--target", *_TOOLS, "--parallel", jobs],
        what="compiling llama.cpp's server",
    )
