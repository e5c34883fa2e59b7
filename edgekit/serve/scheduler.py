"""Who gets the engine next: what is common to engines that give logits and those that stream.

A scheduler owns the engine: its threads are the only ones that touch the session. All else
(`submit`, `cancel`, `status`, `drain`, `close`) may be called from any thread.

State goes one way: running, then draining (no new jobs; those that are there are finished), then
closed. `failed` is the end of a scheduler whose engine answers nothing any more; `stuck` is said
of one whose engine has not come back from a pass for two minutes.
"""

from __future__ import annotations

import logging
import math
import threading
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from time import monotonic
from typing import Literal

from edgekit.errors import EdgekitError
from edgekit.runtime.answer import Answer
from edgekit.runtime.asking import Asker
from edgekit.serve.job import Ended, EndReason, Event, Failed, Job
from edgekit.serve.refusals import BusyError, ClosingError, DeadlineError
from edgekit.serve.waiting import WaitingJobs

Delivery = Callable[[Sequence[tuple[Job, Event]]], None]
State = Literal["running", "draining", "stuck", "failed", "closed"]

_NUM_FAILURES = 3
"""Failures of the engine in a row, without any token between, after which it is given up."""
_RATE_SECONDS = 10.0
_STUCK_SECONDS = 120.0
"""Longer than any pass: a chunk of a prompt, or the kernels that a GPU's first one compiles."""
_log = logging.getLogger("edgekit.serve")


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """What a scheduler does at a moment."""

    state: State
    slots: int
    busy: int
    waiting: int
    queue_limit: int
    tokens_per_s: float
    """New tokens of all answers, over the last ten seconds."""


class Scheduler(ABC):
    """Jobs to events. `deliver` is called from the scheduler's threads and must not block."""

    def __init__(
        self, asker: Asker, *, num_slots: int, queue_limit: int, deliver: Delivery
    ) -> None:
        self.asker = asker
        self.num_slots = num_slots
        self.queue_limit = queue_limit
        self._deliver = deliver
        self._changed = threading.Condition()
        self._waiting = WaitingJobs()
        self._running: set[Job] = set()
        self._state: State = "running"
        self._num_failures = 0
        self._last_sign = monotonic()
        """When something last went on: a pass, a token, a job that got or left its slot."""
        self._seconds = deque[float](maxlen=32)
        """How long the last jobs held their slot."""
        self._rate = deque[tuple[float, int]]()
        self._threads: list[threading.Thread] = []

    @abstractmethod
    def start(self) -> None:
        """Begin to work."""

    def submit(self, job: Job) -> None:
        """Queue a job. Raises `BusyError`, `ClosingError`; then there will be no event."""
        with self._changed:
            if self._state != "running":
                raise ClosingError
            # a job whose slot is free already does not wait, though it may be in the queue
            waiting = max(0, len(self._waiting) + len(self._running) - self.num_slots)
            is_full = len(self._waiting) + len(self._running) >= self.num_slots + self.queue_limit
            if is_full:
                raise BusyError(
                    waiting=waiting, limit=self.queue_limit, retry_after_s=self._retry_after_s()
                )
            self._waiting.push(job)
            self._changed.notify_all()

    def cancel(self, job: Job) -> None:
        """Nobody waits for this job any more; its slot is free after the next pass."""
        job.cancel()
        with self._changed:
            self._changed.notify_all()

    def status(self) -> Status:
        """What is going on now."""
        with self._changed:
            now = monotonic()
            tokens = sum(count for when, count in self._rate if when > now - _RATE_SECONDS)
            is_stuck = bool(self._running) and now - self._last_sign > _STUCK_SECONDS
            return Status(
                state="stuck" if is_stuck and not self._is_over() else self._state,
                slots=self.num_slots,
                busy=len(self._running),
                waiting=len(self._waiting),
                queue_limit=self.queue_limit,
                tokens_per_s=tokens / _RATE_SECONDS,
            )

    def drain(self, timeout_s: float | None = None) -> bool:
        """Take no more jobs and wait for those that are there; False: the time was over."""
        with self._changed:
            if self._state == "running":
                self._state = "draining"
            return self._changed.wait_for(
                lambda: not self._running and not len(self._waiting), timeout_s
            )

    def close(self) -> None:
        """Cancel what is there, wait for the threads, free nothing else. Safe to call twice."""
        with self._changed:
            if self._state != "failed":
                self._state = "closed"
            for job in (*self._waiting, *self._running):
                job.cancel()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _is_over(self) -> bool:
        return self._state in ("closed", "failed")

    def _take_next(self) -> Job:
        """The job whose turn it is; to be called with `_changed` held and jobs waiting."""
        job = self._waiting.pop(Counter(running.client for running in self._running))
        self._running.add(job)
        self._last_sign = monotonic()
        return job

    def _give_up_waiting(self) -> list[tuple[Job, Event]]:
        """End the jobs in the queue that nobody waits for; with `_changed` held."""
        now = monotonic()
        gone = [j for j in self._waiting if j.is_cancelled or j.is_late(now) or self._is_over()]
        events: list[tuple[Job, Event]] = []
        for job in gone:
            self._waiting.take_out(job)
            events.append((job, self._unanswered(job, now)))
        return events

    def _unanswered(self, job: Job, now: float) -> Event:
        """How a job ends that never had a slot."""
        if job.is_late(now) and job.deadline is not None:
            return Failed(DeadlineError(seconds=job.deadline - job.submitted, was_waiting=True))
        if not job.is_cancelled:
            return Failed(ClosingError())
        waited_ms = (now - job.submitted) * 1e3
        return Ended(
            reason="cancelled", prompt_tokens=len(job.work.prompt_ids), cached_tokens=0,
            new_tokens=0, thinking_tokens=0, queued_ms=waited_ms, ttft_ms=None,
            prefill_tokens_per_s=None, decode_tokens_per_s=None, was_cut=False,
        )  # fmt: skip

    def _released(self, job: Job, began: float) -> None:
        """A job is over and its slot free; without `_changed` held."""
        with self._changed:
            self._running.discard(job)
            self._last_sign = monotonic()
            self._seconds.append(monotonic() - began)
            self._changed.notify_all()

    def _counted(self, num_tokens: int) -> None:
        """So many new tokens were made now, so the engine works."""
        now = monotonic()
        with self._changed:
            self._num_failures = 0
            self._last_sign = now
            self._rate.append((now, num_tokens))
            while self._rate and self._rate[0][0] < now - _RATE_SECONDS:
                self._rate.popleft()

    def _noted_failure(self, error: Exception, *jobs: Job) -> Failed:
        """What the jobs are told whose pass failed; after several in a row the engine is given up.

        A pass that was for many jobs is one failure.
        """
        names = ", ".join(str(job.number) for job in jobs)
        if isinstance(error, EdgekitError):
            _log.error("job %s failed: %s", names, error)
        else:  # a mistake of ours: its traceback belongs in the log, the client gets a sentence
            _log.error("job %s failed", names, exc_info=error)
            error = EdgekitError(f"the server failed: {type(error).__name__}")
        if error.exit_code != 2:  # bad input says nothing about the engine
            with self._changed:
                self._num_failures += 1
                if self._num_failures >= _NUM_FAILURES:
                    _log.critical("%d failures in a row: giving up", self._num_failures)
                    self._state = "failed"
                    self._changed.notify_all()
        return Failed(error)

    def _broke(self, error: Exception) -> None:
        """A thread of ours ends by a mistake: nothing is answered any more, and that is said."""
        _log.critical("the scheduler failed", exc_info=error)
        with self._changed:
            self._state = "failed"
            events = self._give_up_waiting()
            events += [(job, Failed(ClosingError())) for job in self._running]
            self._running.clear()
            self._changed.notify_all()
        self._deliver(events)

    def _retry_after_s(self) -> int:
        """When a place in the queue should be free, from how long the last jobs took."""
        seconds = sum(self._seconds) / len(self._seconds) if self._seconds else 1.0
        return max(1, min(60, math.ceil(seconds / self.num_slots)))


def ended(job: Job, answer: Answer, reason: EndReason, *, began: float) -> Ended:
    """The measures of an answer that is over; `began`: when it got its slot, monotonic."""
    made = answer.generation
    queued_ms = (began - job.submitted) * 1e3
    return Ended(
        reason=reason,
        prompt_tokens=made.prompt_tokens,
        cached_tokens=made.cached_tokens,
        new_tokens=len(made.new_ids),
        thinking_tokens=answer.thinking_tokens,
        queued_ms=queued_ms,
        ttft_ms=None if made.ttft_ms is None else made.ttft_ms + queued_ms,
        prefill_tokens_per_s=made.prefill_tokens_per_s,
        decode_tokens_per_s=made.decode_tokens_per_s,
        was_cut=answer.was_cut,
        stopped_by=answer.stopped_by,
        itl_ms=[(after - before) / 1e6 for before, after in pairwise(made.token_ns)],
    )
