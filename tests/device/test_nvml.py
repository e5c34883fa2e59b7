"""A card that is watched, over a module that answers as NVML does, refusals included."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from edgekit.device.nvml import CardWatch


class NVMLError_NotSupported(Exception):  # noqa: N801, N818  (NVML's name)
    pass


@dataclass
class Process:
    pid: int
    usedGpuMemory: int | None  # noqa: N815  (NVML's name)


class Nvml:
    """`pynvml` with one card; what is None is refused."""

    def __init__(self, *, count: int = 1, **answers: Any) -> None:
        self.count, self.answers = count, answers
        self.started = 0

    def nvmlInit(self) -> None:  # noqa: N802
        if self.count == 0:
            raise NVMLError_NotSupported
        self.started += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.started -= 1

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return self.count

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:  # noqa: N802
        return f"index {index}"

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        if uuid != "GPU-1":
            raise NVMLError_NotSupported
        return f"uuid {uuid}"

    def __getattr__(self, name: str) -> Any:
        def ask(handle: str, *rest: int) -> Any:
            if (answer := self.answers.get(name.removeprefix("nvmlDeviceGet"))) is None:
                raise NVMLError_NotSupported
            return answer

        return ask


CARD: dict[str, Any] = {
    "TotalEnergyConsumption": 1_234_567,
    "ComputeRunningProcesses": [Process(10, 3_000), Process(11, 500), Process(99, 7)],
    "CurrentClocksThrottleReasons": 0x20 | 0x4 | 0x1,  # hot, capped, and idle, which slows nothing
    "Temperature": 61,
}


def test_a_card_tells_all_of_it() -> None:
    card = CardWatch.of(Nvml(**CARD), None)
    assert card is not None
    assert card.joules() == pytest.approx(1234.567)
    assert card.used_bytes({10, 11}) == 3_500
    assert card.slowdowns() == {"too hot (driver)", "power limit"}
    assert card.temperature_c() == 61


def test_a_jetson_refuses_all_but_the_memory_of_processes() -> None:
    rows = {"ComputeRunningProcesses": CARD["ComputeRunningProcesses"]}
    card = CardWatch.of(Nvml(**rows), None)
    assert card is not None
    assert (card.joules(), card.slowdowns(), card.temperature_c()) == (None, None, None)
    assert card.used_bytes({99}) == 7


@pytest.mark.parametrize(
    "rows", [None, [], [Process(99, 7)], [Process(10, None)], [Process(10, 5), Process(11, None)]]
)
def test_memory_that_is_not_told_is_not_guessed(rows: list[Process] | None) -> None:
    card = CardWatch.of(Nvml(ComputeRunningProcesses=rows), None)
    assert card is not None
    assert card.used_bytes({10, 11}) is None


def test_one_of_several_is_named_by_its_uuid() -> None:
    assert CardWatch.of(Nvml(count=2, **CARD), "GPU-1") is not None
    assert CardWatch.of(Nvml(count=2, **CARD), "GPU-2") is None
    assert CardWatch.of(Nvml(count=2, **CARD), None) is None  # which one worked is not known
    assert CardWatch.of(Nvml(count=0), None) is None


def test_it_is_closed_once_for_each_time_it_was_opened() -> None:
    nvml = Nvml(**CARD)
    card = CardWatch.of(nvml, None)
    assert card is not None
    assert nvml.started == 1
    card.close()
    assert nvml.started == 0


def test_without_a_driver_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pynvml", Nvml(count=0))
    assert CardWatch.open(None) is None
