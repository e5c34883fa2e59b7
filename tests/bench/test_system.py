from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.bench import bandwidth, conditions
from edgekit.bench.bandwidth import Bandwidth, BandwidthMeter, last_level_cache_bytes
from edgekit.device import Jetson
from edgekit.profile import find_profile
from edgekit.units import GIB, MIB


def test_the_largest_cache_counts(tmp_path: Path) -> None:
    for index, size in enumerate(["48K", "2048K", "480M"]):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(size + "\n", encoding="ascii")
    assert last_level_cache_bytes(tmp_path) == 480 * MIB


def test_an_unknown_cache_is_none(tmp_path: Path) -> None:
    assert last_level_cache_bytes(tmp_path) is None


@pytest.mark.parametrize(
    ("read", "cache", "expected"),
    [(400, 100, True), (399, 100, False), (256, None, True), (255, None, False)],
)
def test_arrays_must_be_four_times_the_cache(
    read: int, cache: int | None, *, expected: bool
) -> None:
    measured = Bandwidth(
        bytes_per_s=1,
        lowest_bytes_per_s=1,
        highest_bytes_per_s=1,
        read_bytes=read * MIB,
        cache_bytes=None if cache is None else cache * MIB,
    )
    assert measured.exceeds_cache is expected


def test_every_array_is_read_by_its_own_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bandwidth, "_MIN_BYTES", 4 * MIB)
    monkeypatch.setattr(bandwidth, "_UNKNOWN_CACHE_BYTES", MIB)
    monkeypatch.setattr(bandwidth, "last_level_cache_bytes", lambda: None)
    with BandwidthMeter(threads=2, available_bytes=GIB) as meter:
        assert meter.read_bytes == 4 * MIB
        readings = [meter.read() for _ in range(3)]
        measured = meter.result()
    assert measured.read_bytes == 4 * MIB
    assert 0 < measured.lowest_bytes_per_s == round(min(readings))
    assert measured.bytes_per_s == round(sorted(readings)[1])
    assert measured.highest_bytes_per_s == round(max(readings))


def test_no_more_than_a_quarter_of_what_is_free_is_taken() -> None:
    with BandwidthMeter(threads=2, available_bytes=8 * MIB) as meter:
        assert meter.read_bytes == 2 * MIB
        meter.read()
        assert not meter.result().exceeds_cache


def test_a_reading_that_was_interrupted_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Interrupted(ThreadPoolExecutor):
        def map(  # type: ignore[override]  # as it is called here
            self, call: Callable[..., Any], items: Iterable[Any]
        ) -> Iterator[Any]:
            items = list(items)
            if not isinstance(items[0], np.ndarray):
                return super().map(call, items)  # the arrays are made
            self.submit(call, items[0])  # one of two, which waits for the other
            raise KeyboardInterrupt

    monkeypatch.setattr(bandwidth, "ThreadPoolExecutor", Interrupted)
    with (
        pytest.raises(KeyboardInterrupt),
        BandwidthMeter(threads=2, available_bytes=8 * MIB) as meter,
    ):
        meter.read()


def test_what_cannot_be_read_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(conditions, "_PLATFORM_PROFILE", tmp_path / "absent")
    monkeypatch.setattr(conditions, "_GOVERNOR", tmp_path / "absent")
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr("psutil.cpu_freq", lambda: None)
    monkeypatch.setattr("psutil.sensors_temperatures", dict, raising=False)
    known = conditions.read_conditions(threads=3, temperature_start_c=None)
    assert known == conditions.Conditions(
        threads=3, power_mode=None, clocks=None, temperature_c=None
    )


THOR = Jetson(board="NVIDIA Jetson AGX Thor Developer Kit", power_mode="MAXN", power_mode_id=0)


def test_a_jetson_names_its_power_mode(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(conditions, "_PLATFORM_PROFILE", tmp_path / "profile")
    (tmp_path / "profile").write_text("balanced\n", encoding="ascii")
    assert conditions.power_mode() == "balanced"
    assert conditions.power_mode(THOR) == "MAXN"
    assert conditions.power_mode(replace(THOR, power_mode=None)) is None  # not a laptop's


@pytest.mark.parametrize(
    ("profile", "mode", "locked", "found"),
    [
        ("jetson-thor", "MAXN", True, []),
        ("jetson-thor", "MAXN", None, []),
        ("jetson-thor", "120W", True,
         ["the power mode is 120W, not the fastest, MAXN: `sudo nvpmodel -m 0`"]),
        ("jetson-thor", "MAXN", False,
         ["clocks are not locked at their highest: `sudo jetson_clocks`"]),
        ("jetson-orin", "MODE_30W", False,
         ["the power mode is MODE_30W, not the fastest, MAXN: `sudo nvpmodel -m 0`",
          "clocks are not locked at their highest: `sudo jetson_clocks`"]),
        ("jetson-orin", "A_MODE_OF_MY_OWN", None, []),
        ("jetson-orin", None, None, []),
        ("rtx-4090", "MAXN", None, []),
    ],
)  # fmt: skip
def test_a_jetson_that_is_set_to_run_slower_is_told_how_to_run_faster(
    profile: str, mode: str | None, locked: bool | None, found: list[str]
) -> None:
    board = replace(THOR, power_mode=mode, clocks_locked=locked)
    assert conditions.slow_settings(find_profile(profile), board) == found
    assert conditions.slow_settings(find_profile(profile), None) == []


def test_clocks_of_a_jetson(tmp_path: Path) -> None:
    gpu = tmp_path / "sys/class/devfreq/gpu-gpc-0"
    gpu.mkdir(parents=True)
    for name, hertz in (("cur_freq", 1575000000), ("max_freq", 1575000000)):
        (gpu / name).write_text(f"{hertz}\n", encoding="ascii")
    found = conditions.clocks(replace(THOR, clocks_locked=False), tmp_path)
    assert found is not None
    assert (found["gpu_mhz"], found["gpu_max_mhz"], found["locked"]) == (1575, 1575, False)
    known = conditions.clocks(THOR, tmp_path)
    assert known is not None
    assert "locked" not in known  # it tells it to root alone


def test_the_governor_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    governor = tmp_path / "scaling_governor"
    governor.write_text("performance\n", encoding="ascii")
    monkeypatch.setattr(conditions, "_GOVERNOR", governor)
    found = conditions.clocks()
    assert found is not None
    assert found["governor"] == "performance"


def test_the_peak_is_at_least_what_a_python_needs() -> None:
    assert conditions.peak_rss_bytes() > 5 * MIB
