"""Timing caches: what the compiler measured of its kernels on one GPU, kept for the next build.

A cache is only good for the GPU and the versions that it was measured with, so its name has them.
It is never needed: a cache that cannot be read or written costs time, not the build.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from edgekit.scratch import SCRATCH_PREFIX

_logger = logging.getLogger(__name__)


def timing_cache(directory: Path, gpu_name: str, sm: int, versions: Mapping[str, str]) -> Path:
    """The file for a GPU and versions, as `{"tensorrt": …, "tensorrt-llm": …}`; it need not exist.

    Rebuilds after a changed context take minutes less with it.
    """
    parts = [gpu_name, f"sm{sm}", *(f"{name}-{versions[name]}" for name in sorted(versions))]
    slugs = (re.sub(r"[^a-z0-9.+]+", "-", part.lower()).strip("-.") for part in parts)
    return directory / f"{'_'.join(slugs)}.timing"


def readable(kept: Path) -> Path | None:
    """`kept` where it exists and holds something: what `--input_timing_cache` is given."""
    try:
        return kept if kept.is_file() and kept.stat().st_size else None
    except OSError:
        return None


def keep(written: Path, kept: Path) -> None:
    """Put a cache that a build wrote in its place, in one step; an empty one is left."""
    if readable(written) is None:
        return
    scratch = kept.with_name(f"{SCRATCH_PREFIX}{kept.name}")
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(written, scratch)  # the two may lie on different disks
        scratch.replace(kept)
    except OSError as exc:
        with suppress(OSError):
            scratch.unlink(missing_ok=True)
        _logger.warning("the timing cache could not be kept: %s", exc)
