from __future__ import annotations

import json
from pathlib import Path

import psutil
import pytest

from edgekit.device import count_cores, is_confined, read_device
from edgekit.units import MIB

NO_LIMIT_V1 = 9_223_372_036_854_771_712


def write(root: Path, **files: str) -> Path:
    """`memory__max="…"` -> `memory.max`; a leading `v1__` puts it below `memory/`."""
    for key, text in files.items():
        directory = root / "memory" if key.startswith("v1__") else root
        directory.mkdir(parents=True, exist_ok=True)
        (directory / key.removeprefix("v1__").replace("__", ".")).write_text(text)
    return root


def test_without_a_cgroup_the_machine_is_what_psutil_says(tmp_path: Path) -> None:
    device = read_device(cgroup=tmp_path / "none")
    assert device.memory_bytes == psutil.virtual_memory().total
    assert 0 < device.available_bytes <= device.memory_bytes
    assert 1 <= device.cores <= (psutil.cpu_count() or 1)
    assert device.cpu


def test_a_v2_limit_is_the_memory_and_what_is_used_is_taken_off(tmp_path: Path) -> None:
    root = write(tmp_path, memory__max=f"{64 * MIB}\n", memory__current=f"{24 * MIB}\n")
    device = read_device(cgroup=root)
    assert device.memory_bytes == 64 * MIB
    assert device.available_bytes == 40 * MIB


def test_a_v1_limit_counts_the_same(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        v1__memory__limit_in_bytes=f"{64 * MIB}\n",
        v1__memory__usage_in_bytes=f"{24 * MIB}\n",
    )
    device = read_device(cgroup=root)
    assert (device.memory_bytes, device.available_bytes) == (64 * MIB, 40 * MIB)


def test_file_pages_that_the_kernel_can_drop_are_available(tmp_path: Path) -> None:
    # a checkpoint that was just read counts as used until someone needs the room
    root = write(
        tmp_path,
        memory__max=f"{64 * MIB}", memory__current=f"{60 * MIB}",
        memory__stat=f"anon {10 * MIB}\nfile {50 * MIB}\ninactive_file {48 * MIB}\n",
    )  # fmt: skip
    assert read_device(cgroup=root).available_bytes == 52 * MIB  # 64 - (60 - 48)
    old = write(
        tmp_path / "v1",
        v1__memory__limit_in_bytes=f"{64 * MIB}", v1__memory__usage_in_bytes=f"{60 * MIB}",
        v1__memory__stat=f"inactive_file 1\ntotal_inactive_file {48 * MIB}\n",
    )  # fmt: skip
    assert read_device(cgroup=old).available_bytes == 52 * MIB


@pytest.mark.parametrize(
    "files",
    [
        {"memory__max": "max\n", "memory__current": "1"},
        {"memory__max": "", "memory__current": "1"},
        {"memory__max": "much\n", "memory__current": "1"},
        {"memory__max": f"{64 * MIB}"},
        {"memory__max": f"{64 * MIB}", "memory__current": "?"},
        {"v1__memory__limit_in_bytes": f"{NO_LIMIT_V1}", "v1__memory__usage_in_bytes": "1"},
    ],
)
def test_no_limit_and_an_unreadable_one_leave_the_machine_as_it_is(
    tmp_path: Path, files: dict[str, str]
) -> None:
    device = read_device(cgroup=write(tmp_path, **files))
    assert device.memory_bytes == psutil.virtual_memory().total


def test_a_file_that_may_not_be_read_is_no_limit(tmp_path: Path) -> None:
    root = write(tmp_path, memory__current="1")
    (root / "memory.max").mkdir()  # reading a directory fails for root as well
    assert read_device(cgroup=root).memory_bytes == psutil.virtual_memory().total


def test_use_beyond_the_limit_leaves_nothing(tmp_path: Path) -> None:
    root = write(tmp_path, memory__max=f"{64 * MIB}", memory__current=f"{65 * MIB}")
    assert read_device(cgroup=root).available_bytes == 0


@pytest.fixture
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight cores of two threads each, none forbidden."""
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: 16 if logical else 8)
    monkeypatch.setattr(psutil.Process, "cpu_affinity", lambda self: list(range(16)), raising=False)


@pytest.mark.usefixtures("eight_cores")
@pytest.mark.parametrize(
    ("files", "cores", "confined"),
    [
        ({}, 8, False),
        ({"cpu.max": "max 100000\n"}, 8, False),
        ({"cpu.max": "400000 100000\n"}, 4, True),
        ({"cpu.max": "150000 100000\n"}, 2, True),  # a thread more than whole cores
        ({"cpu.max": "1000 100000\n"}, 1, True),
        ({"cpu.max": "1200000 100000\n"}, 8, True),  # 12 of 16 processors: 8 cores all the same
        ({"cpu.max": "1600000 100000\n"}, 8, False),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8, False),
        ({"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2, True),
        ({"cpu/cpu.cfs_quota_us": "200000\n"}, 8, False),
        ({"cpu.max": ""}, 8, False),
        ({"cpu.max": "much of it"}, 8, False),
        ({"cpu.max": "100000 0\n"}, 8, False),
    ],
)
def test_a_quota_of_processor_time_is_so_many_cores(
    tmp_path: Path, files: dict[str, str], cores: int, confined: bool
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert (count_cores(tmp_path), is_confined(tmp_path)) == (cores, confined)
    assert read_device(cgroup=tmp_path).cores == cores


@pytest.mark.usefixtures("eight_cores")
def test_processors_that_a_process_is_kept_from_are_not_its_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psutil.Process, "cpu_affinity", lambda self: [4, 5, 6])
    assert (count_cores(tmp_path), is_confined(tmp_path)) == (3, True)


@pytest.mark.usefixtures("eight_cores")
def test_a_system_that_binds_no_process_gives_all_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(psutil.Process, "cpu_affinity")  # as on macOS
    assert (count_cores(tmp_path), is_confined(tmp_path)) == (8, False)


def test_a_machine_without_a_driver_is_plain_json(tmp_path: Path) -> None:
    data = read_device(root=tmp_path).to_dict()
    assert json.loads(json.dumps(data)) == data
    assert (data["gpus"], data["jetson"], data["gpu_problem"]) == ([], None, None)


def test_memory_is_what_can_be_had_not_what_lies_idle(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    text = "MemTotal:  1000 kB\nMemFree:  10 kB\nMemAvailable:  600 kB\n"
    (tmp_path / "proc" / "meminfo").write_text(text)
    device = read_device(root=tmp_path)
    assert (device.memory_bytes, device.available_bytes) == (1_024_000, 614_400)


def test_the_processor_has_the_kernels_name_for_it(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    text = "processor : 0\nmodel name : ARMv8 Processor rev 1 (v8l)\n"
    (tmp_path / "proc" / "cpuinfo").write_text(text)
    assert read_device(root=tmp_path).cpu == "ARMv8 Processor rev 1 (v8l)"
