"""Sensors of Jetsons, from recorded trees of /sys, and `tegrastats` as a process that prints."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.device.power import (
    RailMeter,
    TegrastatsMeter,
    choose_rails,
    find_power_meter,
    find_rails,
    parse_tegrastats,
    read_gpu_clock,
    read_hottest_c,
    read_throttling,
)

DATA = Path(__file__).parents[1] / "data" / "power"
THOR_LINE = (
    "08-20-2026 10:00:00 RAM 8942/125772MB (lfb 4x4MB) CPU [1%@972,0%@972] EMC_FREQ 0%@4266 "
    "GR3D_FREQ 0%@[0,0] cpu@53.6C tj@55.0C soc012@55.0C VDD_GPU 2377mW/2400mW "
    "VDD_CPU_SOC_MSS 6523mW/6500mW VIN_SYS_5V0 6520mW/6500mW VIN 22688mW/22700mW"
)
ORIN_LINE = (
    "RAM 3587/62841MB (lfb 1x4MB) SWAP 0/31420MB GR3D_FREQ 0% cpu@47.5C NC 0mW/0mW "
    "VDD_GPU_SOC 2400mW/2400mW VDD_CPU_CV 800mW/800mW VIN_SYS_5V0 3600mW/3610mW"
)

Tree = Callable[[str], Path]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """`tree(name)`: a root with the files of that recording."""

    def make(name: str) -> Path:
        data = json.loads((DATA / f"{name}.json").read_text(encoding="utf-8"))
        for path, text in data["files"].items():
            file = tmp_path / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        return tmp_path

    return make


@pytest.mark.parametrize(
    ("name", "watts", "source"),
    [
        # 22,688,000 µW of the board's input; the three rails of the module are within it
        ("agx-thor", 22.688, "VIN, the whole board (INA238)"),
        # 14.96 V x 0.48 A + 14.96 V x 0.16 A + 4.992 V x 0.74 A + 4.992 V x 0.1 A
        ("agx-orin", 7.1808 + 2.3936 + 3.69408 + 0.4992,
         "VDDQ_VDD2_1V8AO + VDD_CPU_CV + VDD_GPU_SOC + VIN_SYS_5V0, the module without its supply "
         "(INA3221)"),
        ("orin-nano", 7.0, "VDD_IN, the whole board (INA3221)"),
    ],
)  # fmt: skip
def test_the_input_of_the_board_counts_else_the_sum_of_its_rails(
    tree: Tree, name: str, watts: float, source: str
) -> None:
    meter = find_power_meter(tree(name))
    assert meter is not None
    assert meter.watts() == pytest.approx(watts)
    assert meter.source == source


def test_rails_that_are_not_connected_are_none(tree: Tree) -> None:
    assert {rail.name for rail in find_rails(tree("agx-orin"))} == {
        "VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0", "VDDQ_VDD2_1V8AO",
    }  # fmt: skip


def test_a_sum_that_a_chip_makes_is_no_rail(tree: Tree) -> None:
    assert {rail.name for rail in find_rails(tree("agx-thor"))} == {
        "VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0", "VIN",
    }  # fmt: skip


def test_a_part_of_a_sum_is_no_sum(tree: Tree) -> None:
    root = tree("agx-orin")
    meter = RailMeter(find_rails(root))
    (root / "sys/class/hwmon/hwmon1/curr2_input").unlink()
    assert meter.watts() is None
    (root / "sys/class/hwmon/hwmon1/curr2_input").write_text("[N/A]\n")
    assert meter.watts() is None


def test_a_machine_without_sensors_says_nothing(tmp_path: Path) -> None:
    assert find_power_meter(tmp_path) is None
    assert read_hottest_c(tmp_path) is None
    assert read_throttling(tmp_path) is None
    assert read_gpu_clock(tmp_path) is None


def test_the_hottest_zone_counts_and_a_silent_one_is_left_out(tree: Tree) -> None:
    assert read_hottest_c(tree("agx-thor")) == pytest.approx(55.062)


def test_a_zone_that_reads_nonsense_is_left_out(tree: Tree) -> None:
    root = tree("agx-thor")
    (root / "sys/class/thermal/thermal_zone1/temp").write_text("-256000\n")  # a GPU that is off
    assert read_hottest_c(root) == pytest.approx(55.062)


def test_what_holds_the_board_back(tree: Tree) -> None:
    assert read_throttling(tree("agx-thor")) == {"over-current oc1": 0, "over-current oc3": 2}


def test_parts_that_are_too_hot(tree: Tree) -> None:
    assert read_throttling(tree("agx-orin")) == {"cpu too hot": 0, "gpu too hot": 1}


def test_the_clock_of_the_gpu(tree: Tree) -> None:
    assert read_gpu_clock(tree("agx-thor")) == {"gpu_mhz": 1575, "gpu_max_mhz": 1575}


def test_the_clock_of_an_orins_gpu(tree: Tree) -> None:
    assert read_gpu_clock(tree("agx-orin")) == {"gpu_mhz": 306, "gpu_max_mhz": 612}


@pytest.mark.parametrize(
    ("line", "rails", "chosen"),
    [
        (THOR_LINE, {"VDD_GPU": 2.377, "VDD_CPU_SOC_MSS": 6.523, "VIN_SYS_5V0": 6.52,
                     "VIN": 22.688}, ["VIN"]),
        (ORIN_LINE, {"VDD_GPU_SOC": 2.4, "VDD_CPU_CV": 0.8, "VIN_SYS_5V0": 3.6},
         ["VDD_CPU_CV", "VDD_GPU_SOC", "VIN_SYS_5V0"]),
        ("RAM 1/2MB", {}, []),
        ("", {}, []),
    ],
)  # fmt: skip
def test_lines_of_tegrastats(line: str, rails: dict[str, float], chosen: list[str]) -> None:
    assert parse_tegrastats(line) == rails
    assert choose_rails(list(rails)) == chosen


@given(st.text())
def test_any_line_is_read(line: str) -> None:
    assert all(watts >= 0 for watts in parse_tegrastats(line).values())


def test_tegrastats_is_read_as_it_prints() -> None:
    script = f"import time\nwhile True:\n print({THOR_LINE!r}, flush=True)\n time.sleep(0.05)"
    meter = TegrastatsMeter((sys.executable, "-c", script))
    deadline = time.monotonic() + 10
    while meter.watts() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert meter.watts() == pytest.approx(22.688)
    assert meter.source == "VIN, the whole board (tegrastats)"
    meter.close()
    meter.close()


def test_old_lines_of_tegrastats_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgekit.device.power._STALE_S", 0.05)
    script = f"import time\nprint({THOR_LINE!r}, flush=True)\ntime.sleep(60)"
    meter = TegrastatsMeter((sys.executable, "-c", script))
    deadline = time.monotonic() + 10
    while meter._latest is None and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.1)
    assert meter._latest is not None
    assert meter.watts() is None
    meter.close()
