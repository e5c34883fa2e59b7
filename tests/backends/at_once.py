"""Many requests at once to a session whose worker is a process of its own."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

from edgekit.errors import BackendError, BudgetError
from edgekit.runtime.sampling import Sampling

_CAUSES = {"SIGKILL": "killed", "sequence failed": "failed"}


def ask_at_once(
    session: Any, *, turns: int, first: int, bad: Mapping[int, int], kill_at: int | None
) -> list[list[str]]:
    """What became of the requests of eight threads, `turns` each.

    Threads begin with tokens from `first` on, 20 apart. Of four turns the second is cancelled, and
    those of `bad` begin with its token. The process is killed after turn `kill_at` of the first.
    """
    stop = threading.Event()

    def work(number: int) -> list[str]:
        ends = []
        for turn in range(turns):
            begin, count = first + 20 * number + turn, 5 + turn
            stream = session.stream(
                [bad.get(turn % 4, begin), 7], sampling=asdict(Sampling()), max_new_tokens=count
            )
            try:
                taken = []
                for token_id in stream:
                    taken.append(token_id)
                    if turn % 4 == 1 and len(taken) == 2:
                        stream.close()
                        break
                assert taken == [begin + 1 + i for i in range(len(taken))]
                assert len(taken) == (2 if turn % 4 == 1 else count)
                ends.append("answered")
            except BudgetError:
                ends.append("memory")
            except BackendError as exc:
                ends.append(next((v for k, v in _CAUSES.items() if k in str(exc)), str(exc)))
            if turn == kill_at and number == 0:
                stop.set()
        return ends

    with ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(work, number) for number in range(8)]
        if kill_at is not None:
            assert stop.wait(timeout=20)
            session.worker._process.kill()
        ends = [job.result(timeout=30) for job in jobs]
    assert [len(each) for each in ends] == [turns] * 8
    if kill_at is not None:
        assert "killed" in ends[0]
        for each in ends:  # after the first of them there is no other end
            assert set(each[each.index("killed") :] if "killed" in each else []) <= {"killed"}
    return ends
