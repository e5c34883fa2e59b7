"""packaging/container/Containerfile, built and run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def test_the_image_serves_as_nobody_on_a_read_only_root(
    tool: Callable[[str], str], packaging: Path, store: Path, tmp_path: Path
) -> None:
    for name in ("debootstrap", "buildah", "crun"):
        tool(name)
    if os.getuid() != 0:
        pytest.skip("building without a container engine needs root")
    [manifest] = store.glob("*/*/*/manifest.json")
    keys = tmp_path / "keys"
    keys.write_text("secret\n")
    keys.chmod(0o644)
    script = Path(__file__).parent / "data" / "image"
    scratch = tmp_path / "scratch"  # a gigabyte and a half
    scratch.mkdir()
    places = (script, packaging.parent, scratch, manifest.parent, keys)
    words = [*map(str, places), sys.executable]
    try:
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )
    finally:
        shutil.rmtree(scratch)
    lines = done.stdout.splitlines()
    assert lines, done.stderr[-4000:]
    assert lines[0] == "healthy", done.stderr[-4000:]
    assert lines[-1] == "ended: 0"  # SIGTERM reached it
    assert "writable" not in lines
    assert "pip" not in lines
    status = dict(line.split(":\t") for line in lines[1:-1] if ":\t" in line)
    assert status["Uid"].split() == ["65532"] * 4
    assert int(status["CapBnd"], 16) == int(status["CapEff"], 16) == 0
    assert status["NoNewPrivs"] == "1"
