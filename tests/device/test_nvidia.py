from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.device import Gpu, read_device
from edgekit.device.nvidia import find_problem, make_gpus, read_record, record
from edgekit.units import GIB

REFUSED = {"error": "NotSupported"}


class NotSupported(Exception):  # noqa: N818  # NVML's word
    """Named as NVML's classes are, once `NVMLError_` is taken off."""


class FakeNvml:
    """Answers as a card does; a function named in `refused` raises, one in `lacking` is absent."""

    NVML_CLOCK_MEM = 2

    def __init__(self, *, refused: Iterable[str] = (), lacking: Iterable[str] = ()) -> None:
        self.refused, self.lacking = set(refused), set(lacking)
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        answers: dict[str, Any] = {
            "nvmlInit": None,
            "nvmlShutdown": None,
            "nvmlDeviceGetCount": 1,
            "nvmlDeviceGetHandleByIndex": SimpleNamespace(),
            "nvmlSystemGetDriverVersion": "580.82.09",
            "nvmlSystemGetCudaDriverVersion_v2": 13000,
            "nvmlDeviceGetName": b"NVIDIA GeForce RTX 4090",  # bytes in old releases of pynvml
            "nvmlDeviceGetUUID": "GPU-20212223-2425-2627-2829-2a2b2c2d2e2f",
            "nvmlDeviceGetCudaComputeCapability": (8, 9),
            "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=24 * GIB, free=23 * GIB, used=GIB),
            "nvmlDeviceGetMaxClockInfo": 10501,
            "nvmlDeviceGetMemoryBusWidth": 384,
            "nvmlDeviceGetDisplayActive": 1,
            "nvmlDeviceGetAddressingMode": 0,
        }
        if name in self.lacking or name not in answers:
            raise AttributeError(name)

        def answer(*_: Any) -> Any:
            self.calls.append(name)
            if name in self.refused:
                raise NotSupported
            return answers[name]

        return answer


def gpus(said: dict[str, Any], *, is_jetson: bool = False) -> tuple[Gpu, ...]:
    return make_gpus(said, memory_bytes=64 * GIB, available_bytes=50 * GIB, is_jetson=is_jetson)


def one(**values: Any) -> Gpu:
    [gpu] = gpus({"gpus": [{"name": "NVIDIA GeForce RTX 4090", **values}]})
    return gpu


def test_a_record_holds_every_value_and_is_plain_json() -> None:
    nvml = FakeNvml()
    said = record(nvml)
    assert json.loads(json.dumps(said)) == said
    assert said == {
        "driver": "580.82.09",
        "cuda": 13000,
        "gpus": [
            {
                "name": "NVIDIA GeForce RTX 4090",
                "uuid": "GPU-20212223-2425-2627-2829-2a2b2c2d2e2f",
                "capability": [8, 9],
                "memory": {"total": 24 * GIB, "free": 23 * GIB},
                "max_memory_clock_mhz": 10501,
                "bus_width_bits": 384,
                "display_active": 1,
                "addressing_mode": 0,
            }
        ],
    }
    assert nvml.calls[-1] == "nvmlShutdown"


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ("", [0, 1, 2]),
        ("1", [0, 1, 2]),  # as CUDA counts, which NVML does not know
        ("GPU-bb", [1]),
        ("GPU-cc03, GPU-aa01", [2, 0]),
        ("GPU-dd", []),
    ],
)
def test_gpus_that_are_hidden_by_name_are_not_there(
    named: str, expected: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows = [{"name": "RTX", "uuid": uuid} for uuid in ("GPU-aa01", "GPU-bb02", "GPU-cc03")]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    device = read_device(root=tmp_path, nvml={"gpus": rows})
    assert [gpu.index for gpu in device.gpus] == expected
    unnamed = read_device(root=tmp_path, nvml={"gpus": [{"name": "RTX"}]})
    assert len(unnamed.gpus) == 1


def test_a_machine_can_be_seen_with_one_gpu_alone(tmp_path: Path) -> None:
    rows = [{"name": "RTX", "uuid": uuid} for uuid in ("GPU-aa01", "GPU-bb02")]
    device = read_device(root=tmp_path, nvml={"gpus": rows})
    assert [gpu.index for gpu in device.with_gpu("GPU-bb02").gpus] == [1]
    assert device.with_gpu("MIG-cc") == device
    unnamed = read_device(root=tmp_path, nvml={"gpus": [{"name": "RTX"}, {"name": "RTX"}]})
    assert unnamed.with_gpu(None) == unnamed


def test_what_is_refused_or_lacking_is_an_error_in_its_place() -> None:
    nvml = FakeNvml(
        refused={"nvmlDeviceGetMemoryInfo", "nvmlDeviceGetCudaComputeCapability"},
        lacking={"nvmlDeviceGetAddressingMode"},
    )
    [gpu] = record(nvml)["gpus"]
    assert gpu["memory"] == REFUSED
    assert gpu["capability"] == REFUSED
    assert gpu["addressing_mode"] == {"error": "AttributeError"}
    assert gpu["bus_width_bits"] == 384


@pytest.mark.parametrize("function", ["nvmlInit", "nvmlDeviceGetCount"])
def test_a_driver_that_does_not_start_is_no_gpu_and_a_problem(function: str) -> None:
    said = record(FakeNvml(refused={function}))
    assert gpus(said) == ()
    assert find_problem(said) == "the NVIDIA driver does not answer: NotSupported"


def test_a_gpu_that_is_lost_leaves_the_others() -> None:
    said = {"gpus": [{"error": "GpuIsLost"}, {"name": "NVIDIA GeForce RTX 3070"}]}
    [gpu] = gpus(said)
    assert (gpu.index, gpu.name) == (1, "NVIDIA GeForce RTX 3070")
    assert find_problem(said) == "the NVIDIA driver does not answer for 1 of 2 GPUs: GpuIsLost"


@pytest.mark.parametrize(
    ("error", "part"),
    [
        ("DriverNotLoaded", "installed but not loaded"),
        ("LibRmVersionMismatch", "different versions"),
        ("LibraryNotFound", "libnvidia-ml.so.1"),
        ("NotInstalled", "pip install nvidia-ml-py"),
        ("Unknown", "does not answer: Unknown"),
    ],
)
def test_a_problem_is_one_sentence(error: str, part: str) -> None:
    said = find_problem({"error": error})
    assert said is not None
    assert part in said
    assert "\n" not in said
    assert not said.endswith(".")


def test_no_driver_is_no_problem(tmp_path: Path) -> None:
    assert read_record(tmp_path) is None
    assert find_problem(None) is None


def test_a_driver_without_the_package_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    device = read_device(root=tmp_path)
    assert device.gpus == ()
    assert device.gpu_problem is not None
    assert "pip install nvidia-ml-py" in device.gpu_problem


def test_the_package_is_asked_where_a_driver_left_traces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/dxg").touch()
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml())
    [gpu] = read_device(root=tmp_path).gpus
    assert gpu.bandwidth_bytes_per_s == 1_008_096_000_000


@pytest.mark.parametrize("nothing", [REFUSED, None, "[N/A]", "N/A", 0, -1, True, 1.5, [], {}])
def test_what_is_no_number_is_unknown(nothing: Any) -> None:
    gpu = one(
        memory={"total": nothing, "free": nothing},
        max_memory_clock_mhz=nothing,
        bus_width_bits=256,
        capability=nothing,
    )
    assert (gpu.memory_bytes, gpu.free_bytes, gpu.bandwidth_bytes_per_s, gpu.sm) == (None,) * 4
    assert one(memory=nothing).memory_bytes is None


def test_free_memory_is_not_more_than_there_is() -> None:
    assert one(memory={"total": GIB, "free": 2 * GIB}).free_bytes is None
    assert one(memory={"total": GIB, "free": 0}).free_bytes == 0


@pytest.mark.parametrize(
    ("capability", "sm"),
    [([7, 5], 75), ([8, 6], 86), ([12, 0], 120), ([12, 1], 121), ([0, 0], None)],
)
def test_capability_is_major_and_minor(capability: list[int], sm: int | None) -> None:
    assert one(capability=capability).sm == sm


def test_a_gb10_is_integrated_and_a_grace_hopper_is_not() -> None:
    # both walk the processor's page tables; a bus width of 0 is what a GB10 answers
    assert one(addressing_mode=2, memory=REFUSED, bus_width_bits=0).is_integrated
    hopper = one(addressing_mode=2, memory={"total": 32 * GIB, "free": 30 * GIB})
    assert not hopper.is_integrated
    assert hopper.memory_bytes == 32 * GIB


def test_some_drivers_of_unified_memory_give_the_machines_memory_as_their_own() -> None:
    gpu = one(addressing_mode=2, memory={"total": 64 * GIB, "free": 3 * GIB})
    assert gpu.is_integrated
    assert gpu.free_bytes == 50 * GIB  # MemAvailable


def test_a_jetsons_gpu_without_memory_is_integrated() -> None:
    said = {"gpus": [{"name": "Thor", "memory": REFUSED}]}
    assert [gpu.is_integrated for gpu in gpus(said, is_jetson=True)] == [True]
    assert [gpu.is_integrated for gpu in gpus(said)] == [False]


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
junk = st.recursive(
    scalars | st.sampled_from([REFUSED, "[N/A]", 2, "Orin (nvgpu)"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["total", "free", "error", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)
KEYS = ("name", "capability", "memory", "max_memory_clock_mhz", "bus_width_bits",
        "display_active", "addressing_mode", "error")  # fmt: skip
rows = st.fixed_dictionaries({}, optional=dict.fromkeys(KEYS, junk))
records = st.fixed_dictionaries(
    {},
    optional={
        "driver": junk, "cuda": junk, "error": junk,
        "gpus": junk | st.lists(rows | junk, max_size=3),
    },
)  # fmt: skip


@given(said=records, is_jetson=st.booleans())
def test_no_record_is_too_strange(said: dict[str, Any], *, is_jetson: bool) -> None:
    for gpu in gpus(said, is_jetson=is_jetson):
        assert gpu.name
        for number in (gpu.sm, gpu.memory_bytes, gpu.bandwidth_bytes_per_s):
            assert number is None or (type(number) is int and number > 0)
        assert gpu.free_bytes is None or gpu.free_bytes >= 0
    problem = find_problem(said)
    assert problem is None or isinstance(problem, str)
