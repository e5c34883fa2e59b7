"""CUDA through the driver: order of calls, sizes, and its refusals in our words.

There are three stand-ins: nothing at all (this machine, unless it has a driver), a module in the
place of `cuda.bindings.driver`, and a library in the place of libcuda.so.1 below the real package.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgekit.backends.tensorrt_rtx.cuda import CudaDevice, find_uuid, open_device
from edgekit.errors import BackendError, BudgetError, MissingBackendError, StaleEngineError

STREAM, CONTEXT = 0x55, 0x77


class Status(int):
    """A number with a name, like `CUresult`."""

    name = ""

    def __new__(cls, value: int, name: str = "CUDA_SUCCESS") -> Status:
        made = super().__new__(cls, value)
        made.name = name
        return made


OK = Status(0)
OUT_OF_MEMORY = Status(2, "CUDA_ERROR_OUT_OF_MEMORY")
ILLEGAL_ADDRESS = Status(700, "CUDA_ERROR_ILLEGAL_ADDRESS")


class FakeDriver:
    """A module like `cuda.bindings.driver` with GPUs of given compute capabilities."""

    CUdevice_attribute = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR="major",
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR="minor",
    )
    CUstream_flags = SimpleNamespace(CU_STREAM_NON_BLOCKING="non-blocking")

    def __init__(self, *capabilities: int) -> None:
        self.capabilities = capabilities
        self.calls: list[tuple[Any, ...]] = []
        self.answers: dict[str, Status] = {}
        """What a function answers instead."""
        self.threads: set[int] = set()
        """Those that the context is current to."""

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("cu"):
            raise AttributeError(name)

        def call(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append((name, *arguments))
            if name.startswith(("cuMem", "cuStream")):
                assert threading.get_ident() in self.threads, f"{name} without a context"
            if name in self.answers:
                return (self.answers[name], None)
            return (OK, *self._values(name, arguments))

        return call

    def _values(self, name: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        match name:
            case "cuDeviceGetCount":
                return (len(self.capabilities),)
            case "cuDeviceGet":
                return arguments
            case "cuDeviceGetAttribute":
                parts = divmod(self.capabilities[arguments[1]], 10)
                return (parts[arguments[0] == "minor"],)
            case "cuDeviceGetName":
                return (f"Card {arguments[1]}".encode() + b"\0\0garbage",)
            case "cuDeviceGetUuid":
                return (
                    SimpleNamespace(bytes=bytes(range(16 * arguments[0], 16 * arguments[0] + 16))),
                )
            case "cuDriverGetVersion":
                return (13020,)
            case "cuDevicePrimaryCtxRetain":
                return (CONTEXT,)
            case "cuCtxSetCurrent":
                mine = {threading.get_ident()}
                self.threads = self.threads | mine if arguments[0] else self.threads - mine
            case "cuStreamCreate":
                return (STREAM,)
            case "cuMemAlloc":
                return (4096,)
            case "cuMemGetInfo":
                return 3 * 2**30, 8 * 2**30
        return ()

    def named(self, *names: str) -> list[tuple[Any, ...]]:
        return [call for call in self.calls if call[0] in names]

    def after(self, mark: int) -> list[tuple[Any, ...]]:
        """Calls since `mark`, but for the context's."""
        return [call for call in self.calls[mark:] if call[0] != "cuCtxSetCurrent"]


def opened(*capabilities: int) -> tuple[CudaDevice, FakeDriver]:
    driver = FakeDriver(*(capabilities or (86,)))
    return open_device([86, 89], driver), driver


def test_a_gpu_says_what_it_is() -> None:
    device, _ = opened()
    assert (device.name, device.sm, device.driver) == ("Card 0", 86, "13.2")
    assert (device.free_bytes, device.total_bytes) == (3 * 2**30, 8 * 2**30)
    assert device.stream == STREAM


def test_the_first_gpu_that_the_engine_was_built_for_is_taken() -> None:
    device, driver = opened(75, 120, 89, 86)
    assert (device.name, device.sm) == ("Card 2", 89)
    assert driver.named("cuDevicePrimaryCtxRetain") == [("cuDevicePrimaryCtxRetain", 2)]


def test_the_gpu_to_be_taken_is_known_before_by_the_name_that_nvml_gives_it() -> None:
    driver = FakeDriver(75, 120, 89, 86)
    assert find_uuid([86, 89], driver) == "GPU-20212223-2425-2627-2829-2a2b2c2d2e2f"
    assert driver.named("cuDevicePrimaryCtxRetain") == []
    with pytest.raises(StaleEngineError):
        find_uuid([90], driver)


def test_gpus_that_the_engine_was_not_built_for_are_named() -> None:
    driver = FakeDriver(75, 120)
    expected = "holds sm_86 and sm_89, the GPUs here are sm_75 and sm_120"
    with pytest.raises(StaleEngineError, match=expected):
        open_device([89, 86], driver)
    assert driver.named("cuDevicePrimaryCtxRetain") == []


def test_memory_is_zeros() -> None:
    device, driver = opened()
    mark = len(driver.calls)
    assert device.allocate(1000) == 4096
    assert driver.after(mark) == [
        ("cuMemAlloc", 1000),
        ("cuMemsetD8Async", 4096, 0, 1000, STREAM),
    ]


def test_memory_that_cannot_be_zeroed_is_given_back() -> None:
    device, driver = opened()
    driver.answers["cuMemsetD8Async"] = ILLEGAL_ADDRESS
    with pytest.raises(BackendError, match="cuMemsetD8Async: CUDA_ERROR_ILLEGAL_ADDRESS"):
        device.allocate(1000)
    assert driver.named("cuMemFree") == [("cuMemFree", 4096)]


def test_copies_go_through_the_stream_with_their_size_in_bytes() -> None:
    device, driver = opened()
    array = np.zeros((3, 5), np.float32)
    at = array.ctypes.data
    mark = len(driver.calls)
    device.copy_in(array, 4096)
    device.copy_out(8192, array)
    device.synchronize()
    assert driver.after(mark) == [
        ("cuMemcpyHtoDAsync", 4096, at, 60, STREAM),
        ("cuMemcpyDtoHAsync", at, 8192, 60, STREAM),
        ("cuStreamSynchronize", STREAM),
    ]


def test_only_contiguous_arrays_are_copied() -> None:
    device, _ = opened()
    with pytest.raises(ValueError, match="contiguous"):
        device.copy_in(np.zeros((4, 4))[:, :2], 4096)


def test_any_thread_may_use_it() -> None:
    device, _ = opened()
    failures: list[BaseException] = []

    def work() -> None:
        try:
            device.allocate(8)
            device.synchronize()
        except BaseException as exc:
            failures.append(exc)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert failures == []


def test_too_little_memory_says_how_much_there_is() -> None:
    device, driver = opened()
    driver.answers["cuMemAlloc"] = OUT_OF_MEMORY
    expected = r"Card 0 has no 5\.00 GiB left, 3\.00 GiB of 8\.00 GiB are free"
    with pytest.raises(BudgetError, match=expected) as caught:
        device.allocate(5 * 2**30)
    assert caught.value.hint is not None


def test_a_failure_of_the_gpu_is_named() -> None:
    device, driver = opened()
    driver.answers["cuStreamSynchronize"] = ILLEGAL_ADDRESS
    with pytest.raises(BackendError, match="cuStreamSynchronize: CUDA_ERROR_ILLEGAL_ADDRESS"):
        device.synchronize()


def test_closing_gives_stream_and_context_back_once() -> None:
    device, driver = opened()
    mark = len(driver.calls)
    device.close()
    device.close()
    assert driver.after(mark) == [("cuStreamDestroy", STREAM), ("cuDevicePrimaryCtxRelease", 0)]
    assert driver.threads == set()
    with pytest.raises(BackendError, match="closed"):
        device.allocate(8)


def test_a_gpu_that_failed_is_still_given_back(caplog: pytest.LogCaptureFixture) -> None:
    device, driver = opened()
    for name in ("cuMemFree", "cuStreamDestroy", "cuCtxSetCurrent"):
        driver.answers[name] = ILLEGAL_ADDRESS
    device.free(4096)
    assert "not given back" in caplog.text
    device.close()
    assert driver.named("cuDevicePrimaryCtxRelease")


def test_a_context_without_a_stream_is_given_back() -> None:
    driver = FakeDriver(86)
    driver.answers["cuStreamCreate"] = OUT_OF_MEMORY
    with pytest.raises(BudgetError):
        open_device([86], driver)
    assert driver.named("cuDevicePrimaryCtxRelease") == [("cuDevicePrimaryCtxRelease", 0)]


def test_a_driver_without_gpus_says_so() -> None:
    with pytest.raises(MissingBackendError, match="finds no GPU") as caught:
        open_device([86], FakeDriver())
    assert caught.value.hint is not None
    assert "--profile cpu" in caught.value.hint
    driver = FakeDriver(86)
    driver.answers["cuInit"] = Status(100, "CUDA_ERROR_NO_DEVICE")
    with pytest.raises(MissingBackendError, match="finds no GPU"):
        open_device([86], driver)


@pytest.mark.parametrize(
    ("value", "name"),
    [(803, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"), (34, "CUDA_ERROR_STUB_LIBRARY")],
)
def test_a_driver_that_does_not_start_is_named(value: int, name: str) -> None:
    driver = FakeDriver(86)
    driver.answers["cuInit"] = Status(value, name)
    with pytest.raises(MissingBackendError, match=f"does not start: {name}"):
        open_device([86], driver)


def test_an_old_driver_lacks_functions() -> None:
    device, driver = opened()

    def missing(*_: Any) -> None:
        raise RuntimeError('Function "cuMemAlloc_v2" not found')

    driver.cuMemAlloc = missing  # type: ignore[attr-defined]
    with pytest.raises(BackendError, match="cuMemAlloc: Function"):
        device.allocate(8)


def test_without_its_package_the_driver_cannot_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda", None)
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(MissingBackendError, match="not installed: cuda-bindings") as caught:
        open_device([86])
    assert caught.value.hint == "pip install 'edgekit[rtx]'"


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A process of its own: a driver's library is loaded once."""
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_without_a_driver_the_real_package_is_understood() -> None:
    driver = pytest.importorskip("cuda.bindings.driver")
    try:
        driver.cuInit(0)
    except RuntimeError:
        pass
    else:
        pytest.skip("this machine has an NVIDIA driver")
    with pytest.raises(MissingBackendError, match="no NVIDIA driver here") as caught:
        open_device([86])
    assert caught.value.hint is not None
    assert "--profile cpu" in caught.value.hint


_SESSION = """
import numpy as np
from edgekit.backends.tensorrt_rtx.cuda import find_uuid, open_device
from edgekit.errors import BudgetError
print(find_uuid([86]))
device = open_device([86])
print(device.name, device.sm, device.driver, device.stream, device.free_bytes, device.total_bytes)
address = device.allocate(400)
array, back = np.arange(100, dtype=np.float32), np.ones(100, np.float32)
device.copy_out(address, back)
device.synchronize()
print(not back.any())
device.copy_in(array, address)
device.copy_out(address, back)
device.synchronize()
print((array == back).all())
try:
    device.allocate(1_000_000)
except BudgetError:
    print("full")
device.free(address)
device.close()
"""


def test_the_real_package_passes_on_what_is_meant(tmp_path: Path) -> None:
    pytest.importorskip("cuda.bindings.driver")
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs a C compiler on Linux")
    source = Path(__file__).with_name("libcuda.c")
    library = tmp_path / "libcuda.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    done = run(_SESSION, LD_LIBRARY_PATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    # 0x55 = 85; two cards of 8.9 and 8.6, the second is meant
    assert done.stdout.splitlines() == [
        "GPU-10111213-1415-1617-1819-1a1b1c1d1e1f",
        "Card 1 86 13.0 85 900000 8000000",
        "True",
        "True",
        "full",
    ]
    said = [line for line in done.stderr.splitlines() if line != "current ours"]
    assert said == [
        *("init 0", "init 0", "retain 1", "stream 1", "allocate 400", "set 0 400 1"),
        *("out 400 1", "synchronize 1", "in 400 1", "out 400 1", "synchronize 1"),
        *("allocate 1000000", "free", "destroy 1", "current none", "release 1"),
    ]
