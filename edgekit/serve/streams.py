"""Engines that sample and schedule by themselves: a thread for each answer that may be in work.

The engine batches what its requests have in common; here jobs only wait until one of its
sequences is free, and answers are read.
"""

from __future__ import annotations

import threading
from contextlib import closing
from time import monotonic

from edgekit.backends.base import StreamingSession
from edgekit.runtime.answer import Answer
from edgekit.runtime.asking import Asker
from edgekit.runtime.streamed import StreamedGeneration
from edgekit.serve.job import Event, Failed, Job, Made
from edgekit.serve.refusals import DeadlineError
from edgekit.serve.scheduler import Delivery, Scheduler, ended

_LOOK_SECONDS = 0.2
"""How often jobs are looked at that wait while every thread is busy."""


class StreamScheduler(Scheduler):
    """`Scheduler` over a `StreamingSession`, which must be thread-safe."""

    def __init__(
        self, asker: Asker, stream: StreamingSession, *, queue_limit: int, deliver: Delivery
    ) -> None:
        super().__init__(
            asker,
            num_slots=asker.engine.session.num_slots,
            queue_limit=queue_limit,
            deliver=deliver,
        )
        self._stream = stream

    def start(self) -> None:
        """Begin to work."""
        names = [f"edgekit-stream-{number}" for number in range(self.num_slots)]
        self._threads = [threading.Thread(target=self._work, name=n, daemon=True) for n in names]
        self._threads.append(threading.Thread(target=self._look, name="edgekit-look", daemon=True))
        for thread in self._threads:
            thread.start()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: len(self._waiting) or self._is_over())
                gone = self._give_up_waiting()
                job = self._take_next() if len(self._waiting) else None
                is_over = self._is_over()
            if gone:
                self._deliver(gone)
            if job is not None:
                self._answer(job)
            elif is_over:
                return

    def _look(self) -> None:
        while True:
            with self._changed:
                is_over = self._changed.wait_for(self._is_over, _LOOK_SECONDS)
                gone = self._give_up_waiting()
            if gone:
                self._deliver(gone)
            if is_over:
                return

    def _answer(self, job: Job) -> None:
        began = monotonic()
        event: Event
        try:
            event = self._make(job, began)
        except Exception as exc:  # whatever goes wrong ends this job, and no other
            event = self._noted_failure(exc, job)
        self._deliver([(job, event)])
        self._released(job, began)

    def _make(self, job: Job, began: float) -> Event:
        work, tokenizer = job.work, self.asker.engine.tokenizer
        generation = StreamedGeneration(
            self._stream,
            work.prompt_ids,
            sampling=work.sampling,
            max_new_tokens=work.max_new_tokens,
            stop_ids=tokenizer.stop_ids,
        )
        answer = Answer(generation, tokenizer, work.reading)
        with closing(iter(generation)) as steps:  # type: ignore[type-var]  # it is a generator
            for step in steps:
                self._counted(1)
                pieces = answer.push(step)
                if work.one_call and answer.tool_calls:
                    generation.finish("stop")
                if pieces:
                    self._deliver([(job, Made(pieces, [step]))])
                if job.is_cancelled or job.is_late(monotonic()):
                    break
        rest = answer.finish()
        if rest:
            self._deliver([(job, Made(rest, []))])
        if job.deadline is not None and generation.finish_reason is None and not job.is_cancelled:
            seconds = job.deadline - job.submitted
            return Failed(DeadlineError(seconds=seconds, was_waiting=False))
        reason = generation.finish_reason or "cancelled"
        return ended(job, answer, reason, began=began)
