from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.bench import bandwidth, conditions
from edgekit.bench.bandwidth import Bandwidth, last_level_cache_bytes, measure_bandwidth
from edgekit.units import MIB


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
        bytes_per_s=1, read_bytes=read * MIB, cache_bytes=None if cache is None else cache * MIB
    )
    assert measured.exceeds_cache is expected


def test_every_array_is_read_by_its_own_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bandwidth, "_MIN_BYTES", 4 * MIB)
    monkeypatch.setattr(bandwidth, "_UNKNOWN_CACHE_BYTES", MIB)
    monkeypatch.setattr(bandwidth, "last_level_cache_bytes", lambda: None)
    measured = measure_bandwidth(threads=2)
    assert measured.read_bytes == 4 * MIB
    assert measured.bytes_per_s > 0


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


def test_a_jetson_names_its_power_mode(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tool = tmp_path / "nvpmodel"
    tool.write_text("#!/bin/sh\necho 'NV Power Mode: MAXN'\necho 0\n", encoding="ascii")
    tool.chmod(0o755)
    monkeypatch.setattr("shutil.which", lambda name: str(tool))
    assert conditions.power_mode() == "MAXN"


def test_the_governor_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    governor = tmp_path / "scaling_governor"
    governor.write_text("performance\n", encoding="ascii")
    monkeypatch.setattr(conditions, "_GOVERNOR", governor)
    found = conditions.clocks()
    assert found is not None
    assert found["governor"] == "performance"


def test_the_peak_is_at_least_what_a_python_needs() -> None:
    assert conditions.peak_rss_bytes() > 5 * MIB
