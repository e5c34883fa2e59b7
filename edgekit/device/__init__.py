"""What this machine is. Reads, never guesses: what cannot be read is `None`.

`machine` reads processor and memory, `nvidia` the GPUs, `jetson` the board and its power mode.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from edgekit.device.jetson import Jetson, Runner, is_older, no_tools, read_jetson, run_tool
from edgekit.device.machine import CGROUP, count_cores, is_confined, read_cpu_name, read_memory
from edgekit.device.nvidia import Gpu, find_problem, make_gpus, read_record, visible_gpus

__all__ = [
    "CGROUP",
    "Device",
    "Gpu",
    "Jetson",
    "count_cores",
    "is_confined",
    "is_older",
    "read_device",
    "run_tool",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """The machine that edgekit runs on."""

    cpu: str
    cores: int
    """Physical cores that this process may use, or logical ones where that is not known."""
    memory_bytes: int
    """Installed, or what the container may use."""
    available_bytes: int
    """What a new program can have without swapping."""
    gpus: tuple[Gpu, ...] = ()
    jetson: Jetson | None = None
    gpu_problem: str | None = None
    """Why an NVIDIA driver is here but no GPU, in one sentence."""

    def with_gpu(self, uuid: str | None) -> Self:
        """This machine with that GPU alone; as it is where there is no such GPU."""
        own = tuple(gpu for gpu in self.gpus if gpu.uuid == uuid and uuid is not None)
        return replace(self, gpus=own) if own else self

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """What `to_dict` gave, perhaps on another machine. Raises `TypeError`, `KeyError`."""
        jetson = data["jetson"]
        return cls(
            **{
                **data,
                "gpus": tuple(Gpu(**gpu) for gpu in data["gpus"]),
                "jetson": None if jetson is None else Jetson(**jetson),
            }
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {**asdict(self), "gpus": [asdict(gpu) for gpu in self.gpus]}


def read_device(
    *,
    root: Path = Path("/"),
    cgroup: Path | None = None,
    nvml: Mapping[str, Any] | None = None,
    run: Runner = no_tools,
) -> Device:
    """Look at this machine. A few milliseconds without an NVIDIA driver.

    `root` holds /proc, /etc and /sys, `cgroup` a container's limits; `nvml` is a record to read
    instead of asking the driver. Power mode and clocks of a Jetson are known only with
    `run=run_tool`, which calls its tools.
    """
    cgroup = cgroup or root / CGROUP.relative_to("/")
    total, available = read_memory(root, cgroup)
    jetson = read_jetson(root, run)
    said = read_record(root) if nvml is None else nvml
    gpus = make_gpus(
        said, memory_bytes=total, available_bytes=available, is_jetson=jetson is not None
    )
    return Device(
        cpu=read_cpu_name(root),
        cores=count_cores(cgroup),
        memory_bytes=total,
        available_bytes=available,
        gpus=visible_gpus(gpus, os.environ.get("CUDA_VISIBLE_DEVICES", "")),
        jetson=jetson,
        gpu_problem=find_problem(said),
    )
