"""Slots, turns and ends, on sessions whose logits tell every token that a slot holds."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from time import monotonic
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.errors import BackendError
from edgekit.runtime.answer import Reading
from edgekit.runtime.asking import Asker
from edgekit.runtime.generate import Generation
from edgekit.runtime.load import LoadedEngine
from edgekit.runtime.sampling import Sampler, Sampling
from edgekit.runtime.slot import Slot
from edgekit.serve.job import Ended, Event, Failed, Job, Made, Work
from edgekit.serve.refusals import BusyError, ClosingError, DeadlineError
from edgekit.serve.slots import SlotScheduler
from edgekit.serve.waiting import WaitingJobs

Make = Callable[..., "Bench"]


class Bench:
    """A scheduler, and what it delivered."""

    def __init__(self, engine: LoadedEngine, session: Any, *, queue_limit: int) -> None:
        self.session = session
        asker = Asker(replace(engine, session=session), notify=lambda _: None)
        self.scheduler = SlotScheduler(asker, queue_limit=queue_limit, deliver=self._deliver)
        self.events: dict[Job, list[Event]] = {}
        self._news = threading.Condition()

    def _deliver(self, events: Sequence[tuple[Job, Event]]) -> None:
        with self._news:
            for job, event in events:
                self.events.setdefault(job, []).append(event)
            self._news.notify_all()

    def submit_endless(self, prompt: Sequence[int], **settings: Any) -> Job:
        """A job that ends by itself only after seconds, and never by a stop id."""
        decode = self.session.decode

        def slow(slots: Sequence[int], token_ids: Sequence[int]) -> Any:
            time.sleep(0.01)
            return decode(slots, token_ids)

        self.session.decode = slow
        never = dict.fromkeys(self.scheduler.asker.engine.tokenizer.stop_ids, -1000000.0)
        job = self.submit(prompt, max_new_tokens=800, bias=never, **settings)
        self.wait_for(job, Made)
        return job

    def submit(self, prompt: Sequence[int], **settings: Any) -> Job:
        work = {"sampling": Sampling(), "reading": Reading(), "max_new_tokens": 6}
        names = set(settings) & {"client", "deadline"}
        of_job = {name: settings.pop(name) for name in names}
        job = Job(Work(prompt_ids=tuple(prompt), **{**work, **settings}), **of_job)
        self.scheduler.submit(job)
        return job

    def wait_for(self, job: Job, kind: type[Event] | tuple[type, ...] = (Ended, Failed)) -> Any:
        def found() -> Event | None:
            return next((e for e in self.events.get(job, []) if isinstance(e, kind)), None)

        with self._news:
            assert self._news.wait_for(lambda: found() is not None, 20), "no event came"
            return found()

    def ids(self, job: Job) -> list[int]:
        made = [event for event in self.events[job] if isinstance(event, Made)]
        return [step.token_id for event in made for step in event.steps]


@pytest.fixture
def make_bench(
    make_engine: Callable[..., LoadedEngine], make_session: Callable[..., Any]
) -> Iterator[Make]:
    benches = []

    def make(*, num_slots: int = 3, queue_limit: int = 100, context_tokens: int = 900) -> Bench:
        engine = make_engine(context_tokens=context_tokens)
        session = make_session(
            context_tokens=context_tokens,
            num_slots=num_slots,
            vocab_size=engine.session.vocab_size,
        )
        bench = Bench(engine, session, queue_limit=queue_limit)
        bench.scheduler.start()
        benches.append(bench)
        return bench

    yield make
    for bench in benches:
        bench.scheduler.close()


def prompts(count: int, seed: int = 0) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(3, 90) for _ in range(draw.randrange(1, 150))] for _ in range(count)]


def test_answers_beside_others_are_those_alone(
    make_bench: Make, make_session: Callable[..., Any]
) -> None:
    bench = make_bench()
    jobs = [bench.submit(p, sampling=Sampling(temperature=1, seed=7)) for p in prompts(30)]
    for job in jobs:
        assert bench.wait_for(job).reason in ("stop", "length")
    for job in jobs:
        alone = Generation(
            Slot(make_session(context_tokens=900, vocab_size=bench.session.vocab_size)),
            job.work.prompt_ids,
            sampler=Sampler(job.work.sampling),
            max_new_tokens=6,
            stop_ids=bench.scheduler.asker.engine.tokenizer.stop_ids,
        )
        assert bench.ids(job) == [step.token_id for step in alone]
    assert any(kind == "decode" for kind, _ in bench.session.calls)
    assert bench.scheduler.status().busy == 0


@pytest.mark.parametrize("seed", range(4))
def test_every_job_ends_exactly_once_whoever_goes_away(make_bench: Make, seed: int) -> None:
    bench, draw = make_bench(), random.Random(seed)
    jobs = []
    for number, prompt in enumerate(prompts(60, seed)):
        job = bench.submit(prompt, client=str(number % 5), max_new_tokens=draw.randrange(1, 40))
        jobs.append(job)
        if draw.random() < 0.4:
            bench.scheduler.cancel(draw.choice(jobs))
    assert bench.scheduler.drain(20)
    for job in jobs:
        bench.wait_for(job)
        ends = [e for e in bench.events[job] if not isinstance(e, Made)]
        assert len(ends) == 1
        assert ends[0] is bench.events[job][-1]
        assert job.is_cancelled or isinstance(ends[0], Ended)
    assert bench.scheduler.status().busy == 0


@pytest.mark.parametrize("seed", range(4))
def test_nothing_is_lost_whatever_goes_wrong(make_bench: Make, seed: int) -> None:
    """Cancels, deadlines, failing passes and an early end, all at once."""
    bench, draw = make_bench(queue_limit=30), random.Random(seed)
    prefill, decode = bench.session.prefill, bench.session.decode

    def failing(call: Callable[..., Any]) -> Callable[..., Any]:
        def maybe(*args: Any, **kwargs: Any) -> Any:
            if draw.random() < 0.01:
                raise draw.choice((BackendError("out of memory"), ValueError("a mistake")))
            return call(*args, **kwargs)

        return maybe

    bench.session.prefill, bench.session.decode = failing(prefill), failing(decode)
    jobs: list[Job] = []
    refused = 0
    for number, prompt in enumerate(prompts(120, seed)):
        late = monotonic() + draw.random() * 0.05 if draw.random() < 0.2 else None
        settings = {"client": str(number % 4), "deadline": late}
        try:
            jobs.append(bench.submit(prompt, max_new_tokens=draw.randrange(1, 30), **settings))
        except BusyError:
            refused += 1
            bench.wait_for(jobs[-draw.randrange(1, 5)])
        if jobs and draw.random() < 0.2:
            bench.scheduler.cancel(draw.choice(jobs))
    if draw.random() < 0.5:
        bench.scheduler.close()
    else:
        assert bench.scheduler.drain(20)
    kinds = Counter[str]()
    for job in jobs:
        bench.wait_for(job)
        ends = [event for event in bench.events[job] if not isinstance(event, Made)]
        assert ends == bench.events[job][-1:]
        kinds[type(ends[0]).__name__] += 1
    status = bench.scheduler.status()
    assert (status.busy, status.waiting) == (0, 0)
    assert sum(kinds.values()) + refused == 120
    assert len(bench.scheduler._free) == bench.scheduler.num_slots


def test_a_slot_that_holds_the_beginning_is_taken(make_bench: Make) -> None:
    bench = make_bench()
    first, second = list(range(3, 60)), list(range(60, 90))
    for prompt in (first, second):
        assert bench.wait_for(bench.submit(prompt)).cached_tokens == 0
    again = bench.submit([*first, 5, 6])
    assert bench.wait_for(again).cached_tokens == len(first)
    assert bench.wait_for(bench.submit([*second, 9])).cached_tokens == len(second)


def test_a_long_prompt_lets_others_pass_after_each_chunk(make_bench: Make) -> None:
    bench = make_bench()
    bench.scheduler._chunk_tokens = 32
    bench.submit_endless([5, 6, 7])
    before = len(bench.session.calls)
    long = bench.submit([11] * 640, max_new_tokens=1)
    bench.wait_for(long)
    calls = bench.session.calls[before:]
    chunks = [i for i, (kind, size) in enumerate(calls) if kind == "prefill"]
    # its last token goes along with a step of the other
    assert [calls[i][1] for i in chunks] == [32] * 19 + [31]
    assert all(later - earlier >= 2 for earlier, later in pairwise(chunks))


def test_alone_a_prompt_goes_through_whole(make_bench: Make) -> None:
    bench = make_bench()
    before = len(bench.session.calls)
    bench.wait_for(bench.submit([11] * 20, max_new_tokens=2))
    assert bench.session.calls[before:] == [("prefill", 20), ("decode", 1)]


def test_a_prompt_that_is_held_takes_no_pass_of_its_own(make_bench: Make) -> None:
    bench = make_bench()
    bench.wait_for(bench.submit([11] * 20, max_new_tokens=1))
    bench.submit_endless([5, 6, 7])
    before = len(bench.session.calls)
    bench.wait_for(bench.submit([11] * 20, max_new_tokens=2))
    assert {kind for kind, _ in bench.session.calls[before:]} == {"decode"}


def test_chunks_get_shorter_where_they_take_longer(
    make_bench: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    # by a clock by which a token takes a millisecond, and as long again for every 64 before it
    bench = make_bench()
    bench.scheduler._chunk_tokens = 64
    before = len(bench.session.calls)

    def sizes() -> list[int]:
        return [size for kind, size in bench.session.calls[before:] if kind == "prefill"]

    def clock() -> float:
        return sum(n * (1 + sum(sizes()[:i]) / 64) for i, n in enumerate(sizes())) / 1e3

    monkeypatch.setattr("edgekit.serve.slots.perf_counter", clock)
    bench.wait_for(bench.submit([11] * 640, max_new_tokens=1))
    assert sum(sizes()) == 640
    # 64 ms; then 128 ms, too long; then 144 ms; 32 tokens are the least
    assert sizes()[:4] == [64, 64, 48, 32]
    assert set(sizes()[4:-1]) == {32}


def test_no_prompt_is_passed_over_for_ever(make_bench: Make) -> None:
    bench = make_bench(num_slots=2, queue_limit=1000)
    bench.scheduler._chunk_tokens = 32
    long = bench.submit([11] * 800, max_new_tokens=1)
    shorts = [bench.submit([3 + i % 80] * 31, max_new_tokens=1) for i in range(200)]
    bench.wait_for(long)
    done = sum(any(isinstance(e, Ended) for e in bench.events.get(job, [])) for job in shorts)
    assert done <= 25 * 5  # 25 chunks, each after four of others at most


def test_a_failing_pass_ends_its_job_and_no_other(
    make_bench: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make_bench()
    prefill = bench.session.prefill

    def fails(slot: int, token_ids: Sequence[int], *, num_logits: int = 1) -> Any:
        if 77 in token_ids:
            raise BackendError("out of memory")
        return prefill(slot, token_ids, num_logits=num_logits)

    monkeypatch.setattr(bench.session, "prefill", fails)
    good = bench.submit_endless([5, 6])
    bad = bench.submit([77, 78])
    failed = bench.wait_for(bad)
    assert isinstance(failed, Failed)
    assert str(failed.error) == "out of memory"
    assert not any(isinstance(event, Ended | Failed) for event in bench.events[good])
    assert bench.scheduler.status().state == "running"


def test_an_engine_that_answers_nothing_is_given_up(
    make_bench: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make_bench()

    def fails(*args: Any, **kwargs: Any) -> Any:
        raise BackendError("the device is lost")

    monkeypatch.setattr(bench.session, "prefill", fails)
    for _ in range(3):
        assert isinstance(bench.wait_for(bench.submit([5, 6])), Failed)
    assert bench.scheduler.status().state == "failed"
    with pytest.raises(ClosingError):
        bench.submit([5])


def test_a_pass_that_fails_for_many_is_one_failure(
    make_bench: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make_bench(num_slots=3)
    decode, fails = bench.session.decode, threading.Event()

    def sometimes(slots: Sequence[int], token_ids: Sequence[int]) -> Any:
        time.sleep(0.01)
        if fails.is_set() and len(slots) == 3:
            fails.clear()
            raise BackendError("out of memory")
        return decode(slots, token_ids)

    monkeypatch.setattr(bench.session, "decode", sometimes)
    never = dict.fromkeys(bench.scheduler.asker.engine.tokenizer.stop_ids, -1000000.0)
    jobs = [bench.submit([5, i], max_new_tokens=800, bias=never) for i in range(3)]
    for job in jobs:
        bench.wait_for(job, Made)
    fails.set()
    assert all(isinstance(bench.wait_for(job), Failed) for job in jobs)
    assert bench.scheduler.status().state == "running"
    assert isinstance(bench.wait_for(bench.submit([7])), Ended)


def test_a_mistake_of_ours_is_said_to_everybody(
    make_bench: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make_bench(num_slots=1)
    working = bench.submit_endless([5, 6])
    waiting = bench.submit([7])

    def broken() -> None:
        raise ValueError("a mistake")

    monkeypatch.setattr(bench.scheduler, "_flush", broken)
    for job in (working, waiting):
        assert isinstance(bench.wait_for(job), Failed)
    assert bench.scheduler.status().state == "failed"
    with pytest.raises(ClosingError):
        bench.submit([5])


def test_free_slots_are_no_queue(make_bench: Make) -> None:
    bench = make_bench(num_slots=3, queue_limit=0)
    jobs = [bench.submit_endless([5, i]) for i in range(2)]
    jobs.append(bench.submit([9]))
    bench.wait_for(jobs[2])
    third = bench.submit_endless([8])
    with pytest.raises(BusyError, match="0 requests are waiting, the limit is 0"):
        bench.submit([7])
    bench.scheduler.cancel(third)
    bench.wait_for(third)
    bench.wait_for(bench.submit([7], max_new_tokens=1))


def test_the_queue_has_a_limit_and_a_time(make_bench: Make) -> None:
    bench = make_bench(num_slots=1, queue_limit=2)
    running = bench.submit_endless([5])
    waiting = [bench.submit([6], max_new_tokens=1) for _ in range(2)]
    with pytest.raises(BusyError, match="2 requests are waiting, the limit is 2") as caught:
        bench.submit([7])
    assert 1 <= caught.value.retry_after_s <= 60
    bench.scheduler.cancel(waiting[0])
    assert bench.wait_for(waiting[0]).reason == "cancelled"
    bench.scheduler.cancel(running)
    assert bench.wait_for(running).reason == "cancelled"
    assert bench.wait_for(waiting[1]).reason == "length"


def test_a_deadline_ends_a_job_in_the_queue_and_in_work(make_bench: Make) -> None:
    bench = make_bench(num_slots=1)
    working = bench.submit_endless([5, 6], deadline=monotonic() + 0.5)
    waiting = bench.submit([7], deadline=monotonic())
    for job, where in ((waiting, "waiting for a slot"), (working, "being answered")):
        failed = bench.wait_for(job)
        assert isinstance(failed, Failed)
        assert isinstance(failed.error, DeadlineError)
        assert where in str(failed.error)


def test_closing_cancels_what_is_there(make_bench: Make) -> None:
    bench = make_bench(num_slots=1)
    jobs = [bench.submit_endless([5, 4])]
    jobs += [bench.submit([5, i]) for i in range(5, 8)]
    bench.scheduler.close()
    assert [bench.wait_for(job).reason for job in jobs] == ["cancelled"] * 4
    with pytest.raises(ClosingError):
        bench.submit([5])


def test_draining_finishes_what_is_there(make_bench: Make) -> None:
    bench = make_bench(num_slots=2)
    jobs = [bench.submit([5, i], max_new_tokens=30) for i in range(5, 12)]
    assert bench.scheduler.drain(20)
    assert all(bench.wait_for(job).reason in ("stop", "length") for job in jobs)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=40))
def test_turns_go_round(moves: list[tuple[str, bool]]) -> None:
    """Against the rule itself: the fewest running first, then who waited longest for a turn."""
    queue, running, order = WaitingJobs(), Counter[str](), dict[str, list[Job]]()
    turns: list[str] = []
    for client, takes in moves:
        if not takes:
            job = Job(Work(prompt_ids=(1,), sampling=Sampling(), reading=Reading()), client=client)
            queue.push(job)
            order.setdefault(client, []).append(job)
            if client not in turns:
                turns.append(client)
        elif turns:
            fewest = min(running[name] for name in turns)
            expected = next(name for name in turns if running[name] == fewest)
            job = queue.pop(running)
            assert job is order[expected].pop(0)
            running[expected] += 1
            turns.remove(expected)
            if order[expected]:
                turns.append(expected)
        assert len(queue) == sum(map(len, order.values()))
