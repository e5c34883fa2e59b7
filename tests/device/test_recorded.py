"""Every device that was recorded is read with its figures; the records say where they come from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from edgekit.device import Device, Gpu, Jetson
from edgekit.units import GIB, MIB

DEVICES = Path(__file__).parent.parent / "data" / "devices"
NAMES = sorted(path.name for path in DEVICES.iterdir())
Recorded = Callable[[str], Device]


@pytest.mark.parametrize("name", NAMES)
def test_a_record_names_its_sources(name: str) -> None:
    sources = json.loads((DEVICES / name / "device.json").read_text(encoding="utf-8"))["sources"]
    assert "missing" in sources
    assert any("https://" in text for text in sources.values())


@pytest.mark.parametrize("name", NAMES)
def test_a_recorded_device_is_plain_json(recorded: Recorded, name: str) -> None:
    data = recorded(name).to_dict()
    assert json.loads(json.dumps(data)) == data


def test_rtx_3070(recorded: Recorded) -> None:
    device = recorded("rtx-3070")
    assert device.gpus == (
        Gpu(
            index=0,
            name="NVIDIA GeForce RTX 3070",
            sm=86,
            memory_bytes=7979 * MIB,
            free_bytes=7964 * MIB,
            bandwidth_bytes_per_s=448_064_000_000,
            has_display=False,
            driver="470.86",
            cuda="11.4",
        ),
    )
    assert (device.jetson, device.gpu_problem) == (None, None)


def test_rtx_4090(recorded: Recorded) -> None:
    [gpu] = recorded("rtx-4090").gpus
    assert (gpu.sm, gpu.bandwidth_bytes_per_s) == (89, 1_008_096_000_000)
    assert (gpu.memory_bytes, gpu.free_bytes) == (24563 * MIB, 22952 * MIB)
    assert (gpu.driver, gpu.cuda, gpu.has_display) == (None, None, None)


def test_two_gpus(recorded: Recorded) -> None:
    device = recorded("two-gpus")
    assert [gpu.index for gpu in device.gpus] == [0, 1]
    assert [gpu.sm for gpu in device.gpus] == [120, 89]
    assert [gpu.bandwidth_bytes_per_s for gpu in device.gpus] == [1_792_128_000_000, None]
    assert {(gpu.driver, gpu.cuda) for gpu in device.gpus} == {("580.82.09", "13.0")}


def test_an_orin_shares_the_memory_of_the_machine(recorded: Recorded) -> None:
    device = recorded("agx-orin-jetpack-6")
    [gpu] = device.gpus
    assert (gpu.name, gpu.sm, gpu.is_integrated) == ("Orin (nvgpu)", 87, True)
    assert gpu.memory_bytes == device.memory_bytes == 64_349_376 * 1024
    assert gpu.free_bytes == device.available_bytes == 57_722_372 * 1024  # MemFree: 35,131,272
    assert (gpu.bandwidth_bytes_per_s, gpu.has_display) == (None, None)
    assert (gpu.driver, gpu.cuda) == ("540.4.0", "12.6")
    assert device.jetson == Jetson(
        board="NVIDIA Jetson AGX Orin Developer Kit",
        l4t="36.4.0",
        jetpack="6.1",
        power_mode="MAXN",
        power_mode_id=0,
    )


def test_an_orin_with_jetpack_7_and_locked_clocks(recorded: Recorded) -> None:
    device = recorded("agx-orin-jetpack-7")
    assert device.jetson == Jetson(
        board="NVIDIA Jetson AGX Orin Developer Kit",
        l4t="39.2.0",
        jetpack="7.2",
        power_mode="MAXN",
        power_mode_id=0,
        clocks_locked=True,
    )
    [gpu] = device.gpus
    assert (gpu.is_integrated, gpu.driver, gpu.cuda) == (True, "595.78", "13.2")


def test_a_thor_is_integrated_by_its_addressing_mode(recorded: Recorded) -> None:
    device = recorded("agx-thor-jetpack-7")
    [gpu] = device.gpus
    assert (gpu.name, gpu.sm, gpu.is_integrated) == ("NVIDIA Thor", 110, True)
    assert gpu.memory_bytes is not None
    assert round(gpu.memory_bytes / GIB, 2) == 122.82
    assert device.jetson == Jetson(
        board="NVIDIA Jetson AGX Thor Developer Kit",
        l4t="38.2.0",
        jetpack="7.0",
        power_mode="120W",
        power_mode_id=1,
    )


def test_a_driver_without_a_gpu_is_a_problem_in_one_sentence(recorded: Recorded) -> None:
    device = recorded("driver-without-gpu")
    assert device.gpus == ()
    assert device.gpu_problem is not None
    assert device.gpu_problem.startswith("the NVIDIA driver 550.144.03 is loaded but finds no GPU")


def test_a_container_has_what_it_may_use(recorded: Recorded) -> None:
    device = recorded("container")
    assert device.memory_bytes == 131_072_000
    assert device.available_bytes == 131_072_000 - 6_537_216
    assert (device.gpus, device.gpu_problem) == ((), None)
