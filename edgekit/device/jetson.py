"""NVIDIA Jetson boards: which one, which JetPack, and how fast it is set to run."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

Runner = Callable[[Sequence[str]], str | None]
"""Runs a tool and gives what it printed, or `None` where it is missing or fails."""
_TIMEOUT_S = 5
_RELEASE = re.compile(r"R(\d+)\s*\(release\),\s*REVISION:\s*(\d+(?:\.\d+)*)")
_NUMBER = re.compile(r"\b(\w+)=(\d+)")
_MODELS = ("proc/device-tree/model", "sys/firmware/devicetree/base/model")

JETPACK: Mapping[str, str] = MappingProxyType(
    {
        "35.3.1": "5.1.1",
        "35.4.1": "5.1.2",
        "35.5.0": "5.1.3",
        "35.6.0": "5.1.4",
        "36.3.0": "6.0",
        "36.4.0": "6.1",
        "36.4.3": "6.2",
        "36.4.4": "6.2.1",
        "36.4.7": "6.2.1",
        "36.5.0": "6.2.2",
        "36.5.2": "6.2.3",
        "38.2": "7.0",
        "38.4": "7.1",
        "39.2.1": "7.2.1",
        "39.2": "7.2",
    }
)
"""Jetson Linux (L4T) -> JetPack; a row of two numbers holds for every revision without its own.

https://developer.nvidia.com/embedded/jetpack-archive, and for its newest rows
https://github.com/rbonghi/jetson_stats/issues/820 (38.4) and
https://github.com/OE4T/meta-tegra/pull/2224, pull/2339 (39.2.0, 39.2.1)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Jetson:
    """One board. `None` is what it does not say."""

    board: str | None
    """What its device tree calls it, e.g. `"NVIDIA Jetson AGX Thor Developer Kit"`."""
    l4t: str | None = None
    """Release of Jetson Linux, e.g. `"38.2.0"`."""
    jetpack: str | None = None
    power_mode: str | None = None
    """Of `nvpmodel`, e.g. `"MAXN"`."""
    power_mode_id: int | None = None
    clocks_locked: bool | None = None
    """By `jetson_clocks`, which tells it to root alone."""


def run_tool(arguments: Sequence[str]) -> str | None:
    """What a tool on the PATH prints within a few seconds. Never raises."""
    tool = shutil.which(arguments[0])
    if tool is None:
        return None
    try:
        done = subprocess.run(
            [tool, *arguments[1:]],
            capture_output=True, timeout=_TIMEOUT_S, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="replace") if done.returncode == 0 else None


def no_tools(arguments: Sequence[str]) -> str | None:
    """For readers who do not need the power mode: each tool of a Jetson takes up to seconds."""
    return None


def read_jetson(root: Path, run: Runner = run_tool) -> Jetson | None:
    """The board that this is; `None` where it is none."""
    release = _read(root / "etc/nv_tegra_release")
    models = [text for path in _MODELS if (text := _read(root / path).replace("\0", "").strip())]
    board = models[0] if models else None
    if not release and "jetson" not in (board or "").lower():
        return None
    l4t = parse_l4t(release)
    name, mode_id = read_power_mode(run)
    return Jetson(
        board=board,
        l4t=l4t,
        jetpack=find_jetpack(l4t),
        power_mode=name,
        power_mode_id=mode_id,
        clocks_locked=parse_clocks(run(["jetson_clocks", "--show"]) or ""),
    )


def parse_l4t(release: str) -> str | None:
    """`"# R38 (release), REVISION: 2.0, …"` -> `"38.2.0"`."""
    found = _RELEASE.search(release)
    return None if found is None else f"{found[1]}.{found[2]}"


def find_jetpack(l4t: str | None) -> str | None:
    """The JetPack that a release of Jetson Linux belongs to, where the table knows it."""
    if l4t is None:
        return None
    return JETPACK.get(l4t) or JETPACK.get(".".join(l4t.split(".")[:2]))


def is_older(version: str, than: str) -> bool:
    """Of two releases by their numbers: `"7.0"` is older than `"7.2.1"`."""

    def numbers(text: str) -> list[int]:
        return [int(part) for part in text.split(".") if part.isdigit()]

    return numbers(version) < numbers(than)


def read_power_mode(run: Runner = run_tool) -> tuple[str | None, int | None]:
    """Name and number of the mode that `nvpmodel` reports."""
    return parse_power_mode(run(["nvpmodel", "-q"]) or "")


def parse_power_mode(text: str) -> tuple[str | None, int | None]:
    """`"NV Power Mode: MAXN\\n0"` -> `("MAXN", 0)`."""
    lines = [line.strip() for line in text.splitlines()]
    for position, line in enumerate(lines):
        head, _, name = line.partition(":")
        if head == "NV Power Mode" and name.strip():
            below = lines[position + 1] if position + 1 < len(lines) else ""
            is_number = below.isascii() and below.isdigit() and len(below) < 10
            return name.strip(), int(below) if is_number else None
    return None, None


def parse_clocks(text: str) -> bool | None:
    """Do processor, GPU and memory run at one fixed clock, says `jetson_clocks --show`?

    Its lines begin with `cpu0:`, `GPU` (Thor: `gpu-gpc-0`) and `EMC`, the memory. A fixed clock has
    `MinFreq` equal to `MaxFreq`; some boards fix the memory's with `FreqOverride=1` instead.
    """
    fixed: dict[str, list[bool]] = {"cpu": [], "gpu": [], "emc": []}
    for line in text.splitlines():
        part = line.strip()[:3].lower()
        numbers = {key: int(value) for key, value in _NUMBER.findall(line) if len(value) < 20}
        if part in fixed and "MinFreq" in numbers and numbers.get("Online") != 0:
            is_fixed = numbers["MinFreq"] == numbers.get("MaxFreq")
            fixed[part].append(is_fixed or numbers.get("FreqOverride") == 1)
    if not fixed["gpu"] or not fixed["emc"]:
        return None
    return all(all(rows) for rows in fixed.values())


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
