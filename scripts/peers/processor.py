"""Which processor the engines see: this one, or this one without its newest instructions.

An engine that is faster than another where both have a matrix unit may be slower where neither has
one, so a comparison names the instruction set it was made on. Most laptops and desktops have AVX2;
`avx2` lets a server processor be measured as one of them: llama.cpp is compiled for AVX2, and in
every engine's process, edgekit's too, the libraries that compute have the rest of CPUID hidden
(`hide_cpuid.c`). Clock, caches and memory stay those of the machine, which the comparison says.
"""

from __future__ import annotations

import hashlib
import platform
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from peers.environment import CACHE, PeerError, peers_home

_SOURCE = Path(__file__).with_name("hide_cpuid.c")
_COMPUTE = ("onnxruntime*", "llama_cpp*", "openvino*", "ctranslate2*")
"""Packages whose libraries choose kernels by the processor."""
_PLACE = re.compile(r"^ *([0-9a-f]+):\s+cpuid$", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Processor:
    """One way to see this machine's processor."""

    name: str
    title: str
    """Follows the processor's name in a report; empty for the processor as it is."""
    cmake_args: str
    """How llama.cpp is compiled for it."""
    hides_features: bool = False

    def environment(self) -> dict[str, str]:
        """Variables for an engine's process.

        Raises:
            PeerError: there is no C compiler, no objdump, or it is not an x86-64 Linux.
        """
        if not self.hides_features:
            return {}
        rooms = [Path(sysconfig.get_path("platlib")), _site_packages(peers_home(self.name))]
        libraries = [
            path
            for room in rooms
            for pattern in _COMPUTE
            for path in room.glob(f"{pattern}/**/*.so*")
        ]
        return hiding(libraries)


def _site_packages(home: Path) -> Path:
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return home / "lib" / version / "site-packages"


PROCESSORS: Mapping[str, Processor] = MappingProxyType(
    {
        row.name: row
        for row in (
            Processor(name="native", title="", cmake_args="-DGGML_NATIVE=ON"),
            Processor(
                name="avx2",
                title="limited to AVX2 (no VNNI, AVX-512 or AMX)",
                cmake_args="-DGGML_NATIVE=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON "
                "-DGGML_BMI2=ON",
                hides_features=True,
            ),
        )
    }
)


def hiding(libraries: Iterable[Path]) -> dict[str, str]:
    """Variables for a process in which these libraries see AVX2 and nothing newer.

    Raises `PeerError` as `Processor.environment`.
    """
    hider = _compiled()
    CACHE.mkdir(exist_ok=True)
    places = CACHE / "cpuid-places.txt"
    lines = [f"{place:x} {path.resolve()}\n" for path in libraries for place in _places(path)]
    places.write_text("".join(lines), encoding="utf-8")
    return {"LD_AUDIT": str(hider), "HIDE_CPUID_PLACES": str(places)}


def _places(library: Path) -> Iterator[int]:
    """Addresses of CPUID in a library; taking one apart takes seconds, so they are kept."""
    data = library.read_bytes()
    if b"\x0f\xa2" not in data or not data.startswith(b"\x7fELF"):
        return
    kept = CACHE / "cpuid" / hashlib.sha256(data).hexdigest()[:16]
    if not kept.exists():
        printed = _printed("objdump", "--disassemble", "--no-show-raw-insn", str(library))
        kept.parent.mkdir(exist_ok=True)
        kept.write_text(" ".join(_PLACE.findall(printed)), encoding="ascii")
    for place in kept.read_text(encoding="ascii").split():
        yield int(place, 16)


def _compiled() -> Path:
    """`hide_cpuid.c` as a shared library below `.bench`, compiled when it changed."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        raise PeerError("--processor avx2 needs Linux on x86-64")
    digest = hashlib.sha256(_SOURCE.read_bytes()).hexdigest()[:16]
    library = CACHE / f"hide_cpuid-{digest}.so"
    if not library.exists():
        CACHE.mkdir(exist_ok=True)
        _printed("cc", "-O2", "-shared", "-fPIC", "-o", str(library), str(_SOURCE))
    return library


def _printed(*command: str) -> str:
    """What a tool of the compiler says. Raises `PeerError` where it is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as exc:
        raise PeerError(f"--processor avx2 needs {command[0]} (gcc, binutils): {exc}") from exc
    if done.returncode:
        raise PeerError(f"{command[0]} fails at {command[-1]}: {done.stderr.strip()[:200]}")
    return done.stdout
