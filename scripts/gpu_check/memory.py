"""Free memory of the card, read between the stages of loading and running, against the plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edgekit.backends.base import Session
from edgekit.progress import Progress, no_progress
from edgekit.units import MIB
from gpu_check.lines import Line, at_most, told

Note = Callable[[str], None]
"""Told the name of a stage when it is over: `RUNTIME`, `WEIGHTS`, `WORKSPACE`."""
RUNTIME = "runtime"
"""The driver's context and the library are there, the engine is not."""
WEIGHTS = "weights"
"""The engine is loaded, nothing can run yet."""
WORKSPACE = "workspace"
"""It can run; there is no KV cache yet."""
SLACK = 1.05
"""Others on the card, a desktop above all, take and give while this is measured."""
PAGE_BYTES = 2 * MIB
"""What CUDA takes memory in: an allocation of more than 1 MiB is rounded up to it."""
FILL_STEPS = 8
"""Steps over all slots at once with which the last tokens of the cache are filled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """Bytes that the plan counts, and two that the engine tells by itself."""

    weights_bytes: int
    kv_cache_bytes: int
    workspace_bytes: int
    runtime_bytes: int
    total_bytes: int
    engine_bytes: int
    """Of the file: weights and code."""
    num_buffers: int
    """Allocations that the KV cache is made of."""


def check_memory(
    open_session: Callable[[Note], Session],
    free_bytes: Callable[[], int],
    planned: Planned,
    *,
    report: Progress = no_progress,
) -> list[Line]:
    """Load, fill every slot to its last token, close. `free_bytes` is the card's, now."""
    free = {"before": free_bytes()}

    def note(stage: str) -> None:
        free[stage] = free_bytes()

    session = open_session(note)
    try:
        note("loaded")
        free["full"] = _fill(session, free_bytes, report)
    finally:
        session.close()
    note("closed")
    return _lines(free, planned)


def _fill(session: Session, free_bytes: Callable[[], int], report: Progress) -> int:
    """The least that was free on the way to full slots."""
    least = free_bytes()
    slots = list(range(session.num_slots))
    tokens = session.context_tokens - FILL_STEPS
    for slot in slots:
        report("memory", slot, len(slots))
        session.prefill(slot, [slot % session.vocab_size] * tokens)
        least = min(least, free_bytes())
    for _ in range(FILL_STEPS):
        session.decode(slots, [0] * len(slots))
        least = min(least, free_bytes())
    report("memory", len(slots), len(slots))
    return least


def _lines(free: dict[str, int], planned: Planned) -> list[Line]:
    runtime = free["before"] - free[RUNTIME]
    weights = free[RUNTIME] - free[WEIGHTS]
    workspace = free[WEIGHTS] - free[WORKSPACE] + free["loaded"] - free["full"]
    cache = free[WORKSPACE] - free["loaded"]
    total = free["before"] - free["full"]
    pages = (planned.num_buffers + 2) * PAGE_BYTES  # two more: integers and logits
    return [
        told("free before", free["before"], "bytes"),
        told(
            "runtime", runtime, "bytes", planned=planned.runtime_bytes,
            note="driver's context and library; the plan counts the process as well",
        ),
        at_most(
            "weights", weights, SLACK * planned.engine_bytes + PAGE_BYTES, "bytes",
            planned=planned.weights_bytes, note="limit: the engine's file",
        ),
        at_most(
            "KV cache", cache, SLACK * planned.kv_cache_bytes + pages, "bytes",
            planned=planned.kv_cache_bytes, note="limit: with every buffer rounded up to 2 MiB",
        ),
        told(
            "workspace", workspace, "bytes", planned=planned.workspace_bytes,
            note="before the cache, and grown until it was full",
        ),
        at_most(
            "all, at full context", total, SLACK * planned.total_bytes, "bytes",
            planned=planned.total_bytes, note="what `edgekit plan` promises",
        ),
        at_most(
            "kept after closing", free["before"] - free["closed"],
            max(runtime, 0) + PAGE_BYTES, "bytes", note="limit: the runtime, which may stay",
        ),
    ]  # fmt: skip
