"""The comparison script can show engines an older processor."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "scripts" / "peers" / "hide_cpuid.c"
_CANNOT = 97
_FEATURES = """
from numpy._core._multiarray_umath import __cpu_features__ as found
print(*(int(found[name]) for name in ("AVX2", "AVX512F", "AVX512_SPR")))
"""


def test_a_process_sees_avx2_and_nothing_newer(tmp_path: Path) -> None:
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        pytest.skip("hides instructions of x86-64 on Linux")
    library = tmp_path / "hide.so"
    command = ["cc", "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-o", str(library), str(SOURCE)]
    try:
        subprocess.run(command, check=True)
    except FileNotFoundError:
        pytest.skip("no C compiler")

    def features(**variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", _FEATURES],
            env={**os.environ, **variables}, capture_output=True, text=True, check=False,
        )  # fmt: skip

    hidden = features(LD_PRELOAD=str(library))
    if hidden.returncode == _CANNOT:
        pytest.skip("this kernel or processor cannot hide instructions")
    assert hidden.stdout.split() == [features().stdout.split()[0], "0", "0"]
