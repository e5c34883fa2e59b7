"""The comparison script: ratios of rounds, and engines that are shown an older processor."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

hides = pytest.mark.skipif(
    (platform.system(), platform.machine()) != ("Linux", "x86_64")
    or not (shutil.which("cc") and shutil.which("objdump")),
    reason="hides instructions of x86-64 on Linux, with cc and objdump",
)
_FEATURES = """
from numpy._core._multiarray_umath import __cpu_features__ as found
print(*(int(found[name]) for name in ("AVX2", "AVX512F", "AVX512_SPR")))
"""


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The module of scripts/peers, with a folder of its own to keep things in."""
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "scripts")
    found = import_module("peers.processor")
    monkeypatch.setattr(found, "CACHE", tmp_path)
    return found


def features(**variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _FEATURES],
        env={**os.environ, **variables}, capture_output=True, text=True, check=False,
    )  # fmt: skip


@hides
def test_a_library_sees_avx2_and_nothing_newer(processor: Any) -> None:
    library = Path(np.__file__).parent.glob("_core/_multiarray_umath*.so")
    hidden = features(**processor.hiding(library))
    assert hidden.stdout.split() == [features().stdout.split()[0], "0", "0"], hidden.stderr


@hides
def test_another_instruction_is_left_alone(processor: Any) -> None:
    [library] = Path(np.__file__).parent.glob("_core/_multiarray_umath*.so")
    variables = processor.hiding([library])
    Path(variables["HIDE_CPUID_PLACES"]).write_text(f"1000 {library.resolve()}\n")
    done = features(**variables)
    assert done.returncode == 97
    assert "not the library that was looked at" in done.stderr


def test_a_ratio_is_taken_within_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "scripts")
    rounds, catalog = import_module("peers.rounds"), import_module("peers.catalog")
    engine = next(iter(catalog.ENGINES.values()))

    def outcome(*speeds: tuple[int, float]) -> Any:
        found = rounds.Outcome(engine=engine, processor=None)
        found.rounds += [{"round": number, "tg": speed} for number, speed in speeds]
        return found

    # the machine slows down to a half, and the peer's second round is missing: 1.1, 1.2, 1.3
    ours = outcome((0, 110), (1, 90), (2, 60), (3, 65))
    peer = outcome((0, 100), (2, 50), (3, 50))
    assert ours.ratio(peer, "tg") == pytest.approx(1.2)
    assert ours.median("tg") == 77.5
    assert outcome((1, 5)).ratio(peer, "tg") is None
