"""Which native libraries a machine would get, and one sentence where it gets none."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from edgekit.backends.edge_llm.payload import ROWS, Machine, find_row, read_machine, rows_of
from edgekit.choice import why_jetpack
from edgekit.device import Device
from edgekit.errors import MissingBackendError
from edgekit.profile import find_profile

THOR = Machine(
    machine="aarch64", python="3.12", system="l4t:R38.2", sm=110, cuda_major=13, tensorrt_major=10
)
ORIN = replace(THOR, system="l4t:R39.2", sm=87)
RTX = Machine(
    machine="x86_64", python="3.12", system="ubuntu:24.04", sm=120, cuda_major=13, tensorrt_major=11
)
DETAILS = {"machine": "aarch64", "python": "3.12", "tensorrt": "10.16.0"}
Recorded = Callable[[str], Device]


@pytest.mark.parametrize(
    ("machine", "name"),
    [
        (THOR, "jetson-thor-jp70"),
        (replace(THOR, system="l4t:R38.4"), "jetson-thor-jp71"),
        (replace(THOR, system="l4t:R39.2"), "jetson-thor-jp72"),
        (ORIN, "jetson-orin-jp72"),
        (RTX, "x86-ubuntu2404-cu13-sm120-trt11"),
        (replace(RTX, tensorrt_major=10), "x86-ubuntu2404-cu13-sm120"),
        (replace(RTX, system="ubuntu:22.04", sm=80, tensorrt_major=10), "x86-ubuntu2204-cu13-sm80"),
    ],
)
def test_a_machine_gets_the_row_that_its_wheel_selects(machine: Machine, name: str) -> None:
    assert find_row(machine).name == name


@pytest.mark.parametrize(
    ("machine", "message"),
    [
        (
            replace(THOR, system="l4t:R36.4"),
            "no libraries for Jetson Linux R36.4: only for JetPack",
        ),
        (
            replace(ORIN, system="l4t:R38.2"),
            "no libraries for Jetson Linux R38.2: only for JetPack 7.2",
        ),
        (replace(THOR, system="debian:12"), "no libraries for debian 12: only for JetPack 7.0"),
        (replace(THOR, cuda_major=12), "no libraries for CUDA 12: only for CUDA 13"),
        (replace(THOR, tensorrt_major=11), "no libraries for TensorRT 11: only for TensorRT 10"),
        (replace(THOR, python="3.13"), "no wheel for Python 3.13: only for 3.10, 3.11, 3.12"),
        (replace(RTX, sm=89), "no libraries for a GPU of sm_89 on x86_64: only for sm_80, sm_86"),
        (
            replace(RTX, system="ubuntu:22.04"),
            "no libraries for ubuntu 22.04: only for Ubuntu 24.04",
        ),
        (replace(RTX, machine="riscv64"), "no libraries for riscv64: only for x86_64 and aarch64"),
    ],
)
def test_what_does_not_fit_is_said_in_one_sentence(machine: Machine, message: str) -> None:
    with pytest.raises(MissingBackendError) as told:
        find_row(machine)
    assert message in str(told.value)
    assert "\n" not in str(told.value)
    assert told.value.hint


@pytest.mark.parametrize(
    ("record", "name"),
    [("agx-thor-jetpack-7", "jetson-thor-jp70"), ("agx-orin-jetpack-7", "jetson-orin-jp72")],
)
def test_recorded_boards_get_theirs(recorded: Recorded, record: str, name: str) -> None:
    device = recorded(record)
    assert find_row(read_machine(device, DETAILS)).name == name


def test_an_orin_with_an_old_jetpack_is_refused_twice(recorded: Recorded) -> None:
    device = recorded("agx-orin-jetpack-6")
    assert device.jetson is not None
    told = why_jetpack(find_profile("jetson-orin"), device)
    assert told == f"jetson-orin needs JetPack 7.2 or later, this is {device.jetson.jetpack}"
    with pytest.raises(MissingBackendError, match=r"only for JetPack 7\.2"):
        find_row(read_machine(device, DETAILS))


def test_a_thor_takes_every_jetpack_from_7_0_on(recorded: Recorded) -> None:
    assert why_jetpack(find_profile("jetson-thor"), recorded("agx-thor-jetpack-7")) is None


def test_what_is_not_known_is_not_held_against_a_machine() -> None:
    unknown = replace(THOR, cuda_major=None, tensorrt_major=None)
    assert find_row(unknown).name == "jetson-thor-jp70"


def test_other_systems_are_read_from_os_release(recorded: Recorded, tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "os-release").write_text('PRETTY_NAME="x"\nID=ubuntu\nVERSION_ID="24.04"\n')
    machine = read_machine(recorded("rtx-4090"), {"machine": "x86_64"}, root=tmp_path)
    assert machine.system == "ubuntu:24.04"
    assert machine.sm == 89


def test_a_wheel_says_itself_what_it_holds() -> None:
    said = [
        {
            "variant_id": "later", "cpu_arch": "aarch64", "platform_probe_source": "l4t",
            "platform_probe_values": ["R40.1", "R40.2"], "cuda_runtime_soname": "libcudart.so.13",
            "tensorrt_runtime_soname": "libnvinfer.so.11", "gpu_sm": 110,
        }
    ]  # fmt: skip
    rows = rows_of({"variants": json.dumps(said)})
    assert [row.system for row in rows] == ["l4t:R40.1", "l4t:R40.2"]
    later = replace(THOR, system="l4t:R40.2", tensorrt_major=11)
    assert find_row(later, rows).name == "later"
    with pytest.raises(MissingBackendError):
        find_row(THOR, rows)


@pytest.mark.parametrize("text", ["", "[", "{}", '[{"variant_id": 1}]', "null"])
def test_a_wheel_that_says_nothing_has_no_rows(text: str) -> None:
    assert rows_of({"variants": text} if text else {}) == ()


def test_every_row_has_its_own_name() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS) == 16
