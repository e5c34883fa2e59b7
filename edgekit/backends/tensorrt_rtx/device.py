"""The two things below a session that only exist on a card, and their contracts.

A `Device` has memory, an `Executor` has one loaded engine and runs a `Call` on that memory. On the
card these are `cuda.CudaDevice` and `runtime.TrtExecutor`; on a processor `twin.HostDevice` and
`twin.OrtExecutor`. `session.RtxSession` cannot tell them apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

ALIGNMENT = 256
"""Bytes: tensor addresses are multiples of it. `IExecutionContext::setTensorAddress` asks for that,
and CUDA's allocations give it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """A tensor that lies, contiguous, at an address of the device."""

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Call:
    """One pass: which profile, and where every input is read and every output written.

    The same object again means the same addresses and shapes again, with other numbers in them:
    an executor need not bind anything then.
    """

    profile: int
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]


class Device(Protocol):
    """Memory with addresses, and one queue of work. Not thread-safe; any thread may own it."""

    @property
    def name(self) -> str:
        """As its maker calls it."""
        ...

    @property
    def sm(self) -> int | None:
        """Compute capability, major * 10 + minor; `None` for a processor."""
        ...

    @property
    def driver(self) -> str:
        """The newest CUDA that the driver runs, e.g. `"13.0"`; empty for a processor."""
        ...

    @property
    def total_bytes(self) -> int:
        """Memory of the device."""
        ...

    @property
    def free_bytes(self) -> int:
        """Memory that can be allocated now, as the system says."""
        ...

    def allocate(self, num_bytes: int) -> int:
        """Address of `num_bytes` >= 1 bytes of zeros, aligned to `ALIGNMENT`.

        Raises `BudgetError`, `BackendError`.
        """
        ...

    def free(self, address: int) -> None:
        """Give back what `allocate` gave. Never raises: a device that failed is given up whole."""
        ...

    def copy_in(self, array: NDArray[Any], address: int) -> None:
        """Queue a copy of a contiguous array to `address`; `array` stays as it is until
        `synchronize`. Raises `BackendError`."""
        ...

    def copy_out(self, address: int, array: NDArray[Any]) -> None:
        """Queue a copy from `address` that fills a contiguous array, complete after
        `synchronize`. Raises `BackendError`."""
        ...

    def synchronize(self) -> None:
        """Wait for all that was queued. Raises `BackendError` for what failed in it."""
        ...

    def close(self) -> None:
        """Give the device back. Safe to call twice; never raises."""
        ...


class Executor(Protocol):
    """One loaded engine."""

    @property
    def integers(self) -> np.dtype[Any]:
        """Type of ids, positions, lengths and indices: int32 in an engine, int64 in a graph."""
        ...

    def run(self, call: Call) -> None:
        """Queue one pass; outputs are there after `Device.synchronize`. Raises `BackendError`."""
        ...

    def close(self) -> None:
        """Unload the engine. Safe to call twice; never raises."""
        ...
