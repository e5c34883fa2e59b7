from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.device.jetson import (
    find_jetpack,
    parse_clocks,
    parse_l4t,
    parse_power_mode,
    read_jetson,
    run_tool,
)

# jetson_clocks --show, shortened to one line of each kind.
ORIN_30W = """SOC family:tegra234  Machine:NVIDIA Jetson AGX Orin Developer Kit
Online CPUs: 0-7
cpu0:  Online=1 Governor=schedutil MinFreq=729600 MaxFreq=1728000 CurrentFreq=1420800
cpu8:  Online=0 Governor=schedutil MinFreq=729600 MaxFreq=2201600 CurrentFreq=729600
GPU MinFreq=306000000 MaxFreq=612000000 CurrentFreq=306000000
EMC MinFreq=204000000 MaxFreq=3199000000 CurrentFreq=3199000000 FreqOverride=0
"""
ORIN_30W_LOCKED = """cpu0:  Online=1 MinFreq=1728000 MaxFreq=1728000 CurrentFreq=1728000
cpu8:  Online=0 MinFreq=729600 MaxFreq=2201600 CurrentFreq=729600
GPU MinFreq=612000000 MaxFreq=612000000 CurrentFreq=612000000
EMC MinFreq=204000000 MaxFreq=3199000000 CurrentFreq=3199000000 FreqOverride=1
"""
THOR_LOCKED = """SOC family:tegra264  Machine:NVIDIA Jetson AGX Thor Developer Kit
cpu13: Governor=schedutil MinFreq=2601000 MaxFreq=2601000 CurrentFreq=2601000
gpu-gpc-0 MinFreq=1575000000 MaxFreq=1575000000 CurrentFreq=1575000000
gpu-nvd-0 MinFreq=1692000000 MaxFreq=1692000000 CurrentFreq=1692000000
EMC MinFreq=665600000 MaxFreq=4266000000 CurrentFreq=4266000000 FreqOverride=1
NV Power Mode: MAXN
"""


def no_tool(arguments: Sequence[str]) -> str | None:
    return None


@pytest.mark.parametrize(
    ("release", "l4t", "jetpack"),
    [
        ("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic\n", "36.4.3", "6.2"),
        ("# R36 (release), REVISION: 4.7, GCID: 42132812\n", "36.4.7", "6.2.1"),
        ("# R38 (release), REVISION: 2.0, GCID: 41844464\n", "38.2.0", "7.0"),
        ("# R38 (release), REVISION: 2.2, GCID: 42205042\n", "38.2.2", "7.0"),
        ("# R38 (release), REVISION: 4.0\n", "38.4.0", "7.1"),
        ("# R39 (release), REVISION: 2.0, GCID: 45755727\n", "39.2.0", "7.2"),
        ("# R39 (release), REVISION: 2.1, GCID: 46758480\n", "39.2.1", "7.2.1"),
        ("# R36 (release), REVISION: 9.9\n", "36.9.9", None),
        ("# R99 (release), REVISION: 0.0\n", "99.0.0", None),
        ("# R00 (debug)\n", None, None),
        ("", None, None),
    ],
)
def test_the_release_says_which_jetpack(release: str, l4t: str | None, jetpack: str | None) -> None:
    assert parse_l4t(release) == l4t
    assert find_jetpack(l4t) == jetpack


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("NV Power Mode: MAXN\n0\n", ("MAXN", 0)),
        ("NV Power Mode: 120W\n1\n", ("120W", 1)),
        ("NVPM WARN: fan mode is not set!\nNV Power Mode: MODE_50W\n3\n", ("MODE_50W", 3)),
        ("NV Power Mode: MAXN", ("MAXN", None)),
        ("NV Power Mode: MAXN\n²\n", ("MAXN", None)),
        ("NV Power Mode:\n0\n", (None, None)),
        ("NVPM ERROR: failed to read\n", (None, None)),
        ("", (None, None)),
    ],
)
def test_the_power_mode_has_a_name_and_a_number(
    text: str, mode: tuple[str | None, int | None]
) -> None:
    assert parse_power_mode(text) == mode


@pytest.mark.parametrize(
    ("text", "is_locked"),
    [
        (ORIN_30W, False),
        (ORIN_30W_LOCKED, True),
        (THOR_LOCKED, True),
        (THOR_LOCKED.replace("FreqOverride=1", "FreqOverride=0"), False),
        ("Error: Run this script(/usr/bin/jetson_clocks) as a root user\n", None),
        ("", None),
    ],
)
def test_clocks_are_locked_when_none_of_them_can_move(text: str, *, is_locked: bool | None) -> None:
    assert parse_clocks(text) is is_locked


def test_a_board_without_tools_is_a_board(tmp_path: Path) -> None:
    model = tmp_path / "proc/device-tree/model"
    model.parent.mkdir(parents=True)
    model.write_text("NVIDIA Jetson Orin Nano Developer Kit\0")
    jetson = read_jetson(tmp_path, no_tool)
    assert jetson is not None
    assert jetson.board == "NVIDIA Jetson Orin Nano Developer Kit"
    assert (jetson.l4t, jetson.jetpack, jetson.power_mode, jetson.clocks_locked) == (None,) * 4


def test_a_carrier_with_a_name_of_its_own_is_a_jetson_by_its_release(tmp_path: Path) -> None:
    for path, text in {
        "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3\n",
        "proc/device-tree/model": "Lanner EAI-I233\0",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text(text)
    jetson = read_jetson(tmp_path, no_tool)
    assert jetson is not None
    assert (jetson.board, jetson.jetpack) == ("Lanner EAI-I233", "6.2")


def test_another_board_with_a_device_tree_is_none(tmp_path: Path) -> None:
    model = tmp_path / "proc/device-tree/model"
    model.parent.mkdir(parents=True)
    model.write_text("Raspberry Pi 5 Model B Rev 1.0\0")
    assert read_jetson(tmp_path, no_tool) is None
    assert read_jetson(tmp_path / "nothing", no_tool) is None


def test_a_tool_that_is_missing_fails_or_hangs_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run_tool(["nvpmodel", "-q"]) is None
    tool = tmp_path / "nvpmodel"
    for script, said in (("echo mode", "mode\n"), ("echo no; exit 1", None)):
        tool.write_text(f"#!/bin/sh\n{script}\n", encoding="ascii")
        tool.chmod(0o755)
        assert run_tool(["nvpmodel", "-q"]) == said
    monkeypatch.setattr("edgekit.device.jetson._TIMEOUT_S", 0.05)
    tool.write_text("#!/bin/sh\nwhile :; do :; done\n", encoding="ascii")
    assert run_tool(["nvpmodel", "-q"]) is None
    tool.write_bytes(b"\0no program")
    assert run_tool(["nvpmodel", "-q"]) is None


@given(st.text())
def test_no_text_is_too_strange(text: str) -> None:
    find_jetpack(parse_l4t(text))
    parse_power_mode(text)
    parse_power_mode(f"NV Power Mode: {text}")
    parse_clocks(text)
    parse_clocks(f"GPU MinFreq={text}\nEMC MinFreq={text} MaxFreq={text}")
