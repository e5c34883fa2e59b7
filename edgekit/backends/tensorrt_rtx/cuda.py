"""`Device` over CUDA's driver interface: memory, one stream, copies. No CUDA toolkit is needed.

Every call of the driver answers `(status, *values)`; a status other than 0 becomes an error of
ours. The driver's module is passed in, so that tests can stand in for it.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from contextlib import suppress
from typing import Any
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from edgekit.backends.tensorrt_rtx.validity import require_capability
from edgekit.errors import BackendError, BudgetError, EdgekitError, MissingBackendError
from edgekit.units import format_bytes

_OUT_OF_MEMORY = 2
_NO_DEVICE = 100
_NO_DRIVER = {34, 36, 802, 803, 804}
"""A stub of the library, a driver too old or in pieces: CUDA_ERROR_STUB_LIBRARY, _CALL_REQUIRES_
NEWER_DRIVER, _SYSTEM_NOT_READY, _SYSTEM_DRIVER_MISMATCH, _COMPAT_NOT_SUPPORTED_ON_DEVICE."""
_ELSEWHERE = (
    "install NVIDIA's driver, 580 or newer (in a container: `--gpus all`), "
    "or build for the processor: `edgekit build --profile cpu`"
)
_NAME_CHARS = 256
_logger = logging.getLogger(__name__)


def open_device(capabilities: Collection[int], driver: Any = None) -> CudaDevice:
    """The first GPU whose compute capability is one of `capabilities`.

    `driver` is the module `cuda.bindings.driver`. Raises `MissingBackendError` where there is no
    driver or no GPU, `StaleEngineError` where none of the GPUs is meant, `BackendError`.
    """
    driver = _start(_import_driver() if driver is None else driver)
    return CudaDevice(driver, _choose(driver, capabilities))


def find_uuid(capabilities: Collection[int], driver: Any = None) -> str:
    """UUID of the GPU that `open_device` would take, as NVML writes it. Raises what that does."""
    driver = _start(_import_driver() if driver is None else driver)
    device = _ask(driver, "cuDeviceGet", _choose(driver, capabilities))
    return f"GPU-{UUID(bytes=bytes(_ask(driver, 'cuDeviceGetUuid', device).bytes))}"


def _choose(driver: Any, capabilities: Collection[int]) -> int:
    count: int = _ask(driver, "cuDeviceGetCount")
    found = [(ordinal, _sm(driver, ordinal)) for ordinal in range(count)]
    if not found:
        raise MissingBackendError("the NVIDIA driver finds no GPU", hint=_ELSEWHERE)
    require_capability(capabilities, [sm for _, sm in found])
    return next(ordinal for ordinal, sm in found if sm in capabilities)


class CudaDevice:
    """One GPU: its primary context, which TensorRT-RTX shares, and a stream of ours.

    A context is current to a thread, so every call makes it current to its own.
    """

    def __init__(self, driver: Any, ordinal: int) -> None:
        """Raises `BackendError`, `BudgetError`."""
        self._driver = driver
        self._device = _ask(driver, "cuDeviceGet", ordinal)
        self.sm: int = _sm(driver, ordinal)
        raw = _ask(driver, "cuDeviceGetName", _NAME_CHARS, self._device)
        self.name: str = bytes(raw).split(b"\0")[0].decode(errors="replace")
        version: int = _ask(driver, "cuDriverGetVersion")
        self.driver = f"{version // 1000}.{version % 1000 // 10}"
        self._context = _ask(driver, "cuDevicePrimaryCtxRetain", self._device)
        try:
            self.use()
            # not the default stream, on which nothing can be recorded, nor one that waits for it
            self._stream = _ask(
                driver, "cuStreamCreate", driver.CUstream_flags.CU_STREAM_NON_BLOCKING
            )
        except BaseException:
            self._release()
            raise

    @property
    def stream(self) -> int:
        """Handle of the stream that all work goes to."""
        return int(self._stream)

    @property
    def total_bytes(self) -> int:
        """Memory of the GPU."""
        return self._memory()[1]

    @property
    def free_bytes(self) -> int:
        """What is free now; a display and other programs have taken theirs."""
        return self._memory()[0]

    def use(self) -> None:
        """Make the context current to this thread. Raises `BackendError`."""
        if self._context is None:
            raise BackendError(f"{self.name} has been closed")
        _ask(self._driver, "cuCtxSetCurrent", self._context)

    def allocate(self, num_bytes: int) -> int:
        """Zeros. Raises `BudgetError`, `BackendError`."""
        self.use()
        try:
            pointer = _ask(self._driver, "cuMemAlloc", num_bytes)
        except BudgetError as exc:
            raise BudgetError(
                f"{self.name} has no {format_bytes(num_bytes)} left, "
                f"{format_bytes(self.free_bytes)} of {format_bytes(self.total_bytes)} are free",
                hint="close other programs that use the GPU: `nvidia-smi` lists them",
            ) from exc
        address = int(pointer)
        try:
            _ask(self._driver, "cuMemsetD8Async", address, 0, num_bytes, self._stream)
        except BaseException:
            self.free(address)
            raise
        return address

    def free(self, address: int) -> None:
        """Give memory back; what fails is logged."""
        try:
            self.use()
            _ask(self._driver, "cuMemFree", address)
        except EdgekitError as exc:
            _logger.warning("memory of %s was not given back: %s", self.name, exc)

    def copy_in(self, array: NDArray[Any], address: int) -> None:
        """Queue a copy to the GPU."""
        self.use()
        data = _pointer(array)
        _ask(self._driver, "cuMemcpyHtoDAsync", address, data, array.nbytes, self._stream)

    def copy_out(self, address: int, array: NDArray[Any]) -> None:
        """Queue a copy from the GPU."""
        self.use()
        data = _pointer(array)
        _ask(self._driver, "cuMemcpyDtoHAsync", data, address, array.nbytes, self._stream)

    def synchronize(self) -> None:
        """Wait for the stream."""
        self.use()
        _ask(self._driver, "cuStreamSynchronize", self._stream)

    def close(self) -> None:
        """Give stream and context back. Safe to call twice."""
        if self._context is None:
            return
        with suppress(EdgekitError):  # a GPU that failed answers everything with its failure
            self.use()
            _ask(self._driver, "cuStreamDestroy", self._stream)
        self._release()

    def _release(self) -> None:
        self._context = None
        with suppress(EdgekitError):
            _ask(self._driver, "cuCtxSetCurrent", 0)
        with suppress(EdgekitError):
            _ask(self._driver, "cuDevicePrimaryCtxRelease", self._device)

    def _memory(self) -> tuple[int, int]:
        self.use()
        free, total = _ask(self._driver, "cuMemGetInfo")
        return int(free), int(total)


def _import_driver() -> Any:
    try:
        from cuda.bindings import driver
    except ImportError as exc:
        raise MissingBackendError(
            "the package that speaks with the NVIDIA driver is not installed: cuda-bindings",
            hint="pip install 'edgekit[rtx]'",
        ) from exc
    return driver


def _start(driver: Any) -> Any:
    """`driver`, ready for calls."""
    try:
        status, *_ = driver.cuInit(0)
    except Exception as exc:  # the border: `DynamicLibNotFoundError` where there is no libcuda
        raise MissingBackendError("there is no NVIDIA driver here", hint=_ELSEWHERE) from exc
    if status == _NO_DEVICE:
        raise MissingBackendError("the NVIDIA driver finds no GPU", hint=_ELSEWHERE)
    if status in _NO_DRIVER:
        said = getattr(status, "name", status)
        raise MissingBackendError(f"the NVIDIA driver does not start: {said}", hint=_ELSEWHERE)
    _check("cuInit", status)
    return driver


def _sm(driver: Any, ordinal: int) -> int:
    device = _ask(driver, "cuDeviceGet", ordinal)
    names = driver.CUdevice_attribute
    major: int = _ask(
        driver, "cuDeviceGetAttribute", names.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device
    )
    minor: int = _ask(
        driver, "cuDeviceGetAttribute", names.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device
    )
    return major * 10 + minor


def _ask(driver: Any, function: str, *arguments: Any) -> Any:
    """Call the driver: its only value, a tuple of several, or `None`."""
    try:
        status, *values = getattr(driver, function)(*arguments)
    except EdgekitError:
        raise
    except Exception as exc:  # the border: an old driver lacks functions
        raise BackendError(f"the NVIDIA driver failed: {function}: {exc}") from exc
    _check(function, status)
    return tuple(values) if len(values) > 1 else values[0] if values else None


def _check(function: str, status: Any) -> None:
    if status == 0:
        return
    said = f"{function}: {getattr(status, 'name', status)}"
    if status == _OUT_OF_MEMORY:
        raise BudgetError(f"the GPU has not enough memory: {said}", hint="lower `--context`")
    raise BackendError(f"the NVIDIA driver failed: {said}", hint="`sudo dmesg | grep NVRM`")


def _pointer(array: NDArray[Any]) -> int:
    if not array.flags.c_contiguous:
        raise ValueError("only a contiguous array can be copied")
    return int(np.asarray(array).ctypes.data)
