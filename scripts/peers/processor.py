"""Which processor the engines see: this one, or this one without its newest instructions.

An engine that is faster than another where both have a matrix unit may be slower where neither has
one, so a comparison names the instruction set it was made on. Most laptops and desktops have AVX2;
`avx2` lets a server processor be measured as one of them: llama.cpp is compiled for AVX2, and every
engine's process, edgekit's too, has the rest of CPUID hidden (`hide_cpuid.c`). Clock, caches and
memory stay those of the machine, which the comparison says.
"""

from __future__ import annotations

import hashlib
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from peers.environment import CACHE, PeerError

_SOURCE = Path(__file__).with_name("hide_cpuid.c")


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
            PeerError: there is no C compiler, or it is not an x86-64 Linux.
        """
        return {"LD_PRELOAD": str(_compiled())} if self.hides_features else {}


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


def _compiled() -> Path:
    """`hide_cpuid.c` as a shared library below `.bench`, compiled when it changed."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        raise PeerError("--processor avx2 needs Linux on x86-64")
    digest = hashlib.sha256(_SOURCE.read_bytes()).hexdigest()[:16]
    library = CACHE / f"hide_cpuid-{digest}.so"
    if not library.exists():
        CACHE.mkdir(exist_ok=True)
        command = ["cc", "-O2", "-shared", "-fPIC", "-o", str(library), str(_SOURCE)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as exc:
            raise PeerError(f"--processor avx2 needs a C compiler: {exc}") from exc
        if done.returncode:
            raise PeerError(f"hide_cpuid.c does not compile: {done.stderr.strip()[:200]}")
    return library
