"""What the checks get of the hardware: an RTX card, this machine's processor, a clock."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any
from unittest.mock import patch

from edgekit.backends import find_backend
from edgekit.backends.base import Session
from edgekit.device import read_device
from edgekit.errors import MissingBackendError
from gpu_check.card import BACKEND
from gpu_check.memory import RUNTIME, WEIGHTS, WORKSPACE, Note

Open = Callable[[Path, int, int, Note], Session]
"""`open(engine, context_tokens, num_slots, note)`: the engine, its stages told to `note`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rig:
    """Tests stand in for all of it."""

    open_card: Open
    open_twin: Callable[[Path, int], Session]
    """`open(graph, context_tokens)`: one slot on the processor."""
    free_bytes: Callable[[], int]
    """Of the card, now."""
    clock: Callable[[], float] = perf_counter
    """Seconds."""


def real_rig(gpu_index: int) -> Rig:
    """The card with that index, as NVML counts."""

    def open_card(engine: Path, context_tokens: int, num_slots: int, note: Note) -> Session:
        with stages(note):
            return find_backend(BACKEND).open(
                engine, context_tokens=context_tokens, num_slots=num_slots
            )

    def open_twin(graph: Path, context_tokens: int) -> Session:
        return find_backend(BACKEND).open_twin(graph, context_tokens=context_tokens, num_slots=1)

    return Rig(open_card=open_card, open_twin=open_twin, free_bytes=lambda: free_bytes(gpu_index))


def free_bytes(gpu_index: int) -> int:
    """What NVML says; it needs no context on the card, so asking takes none of its memory."""
    gpu = next((gpu for gpu in read_device().gpus if gpu.index == gpu_index), None)
    if gpu is None or gpu.free_bytes is None:
        raise MissingBackendError(
            f"the driver does not say how much of GPU {gpu_index} is free",
            hint="`nvidia-smi` says what it knows",
        )
    return gpu.free_bytes


@contextmanager
def stages(note: Note) -> Iterator[None]:
    """While it lasts, an engine that TensorRT-RTX loads tells its stages to `note`."""
    from edgekit.backends.tensorrt_rtx import runtime

    class Telling(runtime.TrtExecutor):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            note(WORKSPACE)

        def _load(self, plan: Path) -> Any:
            note(RUNTIME)  # the library has been started
            engine = super()._load(plan)
            note(WEIGHTS)
            return engine

    with patch.object(runtime, "TrtExecutor", Telling):
        yield
