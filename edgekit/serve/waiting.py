"""Jobs that wait for a slot, taken fairly: one client with a hundred requests is one client."""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Iterator

from edgekit.serve.job import Job


class WaitingJobs:
    """A queue for each client, and a turn for each queue. Not thread-safe.

    The next job is of the client with the fewest running; among these, of the one whose last turn
    is longest ago.
    """

    def __init__(self) -> None:
        self._queues: OrderedDict[str, deque[Job]] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def __iter__(self) -> Iterator[Job]:
        return (job for queue in self._queues.values() for job in queue)

    def push(self, job: Job) -> None:
        """To the end of its client's queue."""
        self._queues.setdefault(job.client, deque()).append(job)

    def pop(self, running: Counter[str]) -> Job:
        """The next job, given how many run for each client. Raises `IndexError` when empty."""
        if not self._queues:
            raise IndexError("no job is waiting")
        client = min(self._queues, key=lambda name: running[name])  # the first of equals
        queue = self._queues.pop(client)
        job = queue.popleft()
        if queue:
            self._queues[client] = queue  # its next turn comes after everybody's
        return job

    def take_out(self, job: Job) -> None:
        """Remove a job that gave up waiting."""
        queue = self._queues[job.client]
        queue.remove(job)
        if not queue:
            del self._queues[job.client]
