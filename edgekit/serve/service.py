"""Between the event loop and the scheduler: jobs go in, events come out in the loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress

from edgekit.errors import EdgekitError
from edgekit.runtime.asking import Asker
from edgekit.serve.job import Event, Job, Made, Work
from edgekit.serve.metrics import Metrics
from edgekit.serve.refusals import BusyError, FieldError
from edgekit.serve.scheduler import Scheduler
from edgekit.serve.settings import Settings
from edgekit.serve.slots import SlotScheduler
from edgekit.serve.streams import StreamScheduler


class Service:
    """One engine and all that is asked of it. Made within the event loop that serves it."""

    def __init__(self, asker: Asker, settings: Settings) -> None:
        self.asker = asker
        self.settings = settings
        self.metrics = Metrics()
        self.created = int(time.time())
        self._loop = asyncio.get_running_loop()
        self._queues: dict[Job, Callable[[Event], None]] = {}
        self.scheduler = self._make_scheduler()
        self.metrics.watch(self.scheduler.status)

    def _make_scheduler(self) -> Scheduler:
        limit = self.settings.queue_limit
        if self.asker.engine.stream is None:
            return SlotScheduler(self.asker, queue_limit=limit, deliver=self._deliver)
        stream = self.asker.engine.stream
        return StreamScheduler(self.asker, stream, queue_limit=limit, deliver=self._deliver)

    @property
    def model_name(self) -> str:
        """What the model is called in requests and answers."""
        return self.asker.engine.manifest.model

    def is_well(self) -> bool:
        """Answers are made, or would be; False: only another process will help."""
        return self.scheduler.status().state in ("running", "draining")

    def run(self, works: Sequence[Work], *, client: str) -> Running:
        """Submit some work. Raises `BusyError`, `ClosingError`; then nothing goes on.

        Raises `FieldError` on more answers than there is ever room for.
        """
        room = self.scheduler.num_slots + self.settings.queue_limit
        if len(works) > room:
            raise FieldError(
                "n", f"{len(works)} answers are asked for, slots and queue have room for {room}"
            )
        deadline = time.monotonic() + self.settings.deadline_s
        jobs = [Job(work, client=client, deadline=deadline) for work in works]
        running = Running(self, jobs)
        for number, job in enumerate(jobs):
            self._queues[job] = running.receiver(number)
            try:
                self.scheduler.submit(job)
            except EdgekitError as exc:
                del self._queues[job]
                running.cancel()
                if isinstance(exc, BusyError):
                    self.metrics.refused.inc()
                raise
        return running

    def begin_to_end(self) -> None:
        """Take nothing new; what is in work is finished."""
        self.scheduler.drain(timeout_s=0)

    def stop(self) -> None:
        """Take nothing new and cancel what is in work."""
        self.begin_to_end()
        for job in list(self._queues):
            self.scheduler.cancel(job)

    def forget(self, job: Job) -> None:
        """Nobody listens to this job any more."""
        if self._queues.pop(job, None) is not None:
            self.scheduler.cancel(job)

    def _deliver(self, events: Sequence[tuple[Job, Event]]) -> None:
        """From the scheduler's threads."""
        batch = list(events)
        with suppress(RuntimeError):  # the loop is closed: nobody listens
            self._loop.call_soon_threadsafe(self._dispatch, batch)

    def _dispatch(self, batch: Sequence[tuple[Job, Event]]) -> None:
        for job, event in batch:
            self.metrics.count(event)
            if isinstance(event, Made):
                receive = self._queues.get(job)
            else:
                receive = self._queues.pop(job, None)
            if receive is not None:
                receive(event)


class Running:
    """Jobs of one request: an iterator of (number of the job, event) until all of them ended."""

    def __init__(self, service: Service, jobs: Sequence[Job]) -> None:
        self._service = service
        self._jobs = jobs
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()

    def receiver(self, number: int) -> Callable[[Event], None]:
        """Where the events of one job go."""
        return lambda event: self._events.put_nowait((number, event))

    async def __aiter__(self) -> AsyncIterator[tuple[int, Event]]:
        left = len(self._jobs)
        try:
            while left:
                number, event = await self._events.get()
                left -= not isinstance(event, Made)
                yield number, event
        finally:
            self.cancel()

    def cancel(self) -> None:
        """Nobody waits for what is not there yet. Safe to call twice."""
        for job in self._jobs:
            self._service.forget(job)
