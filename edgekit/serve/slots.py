"""Continuous batching over the KV slots of an engine that gives logits.

One thread, one round after the other:

    1. jobs that wait get free slots: each the one that holds most of its prompt already
    2. one chunk of one prompt goes through the engine; beside other answers all but its last token
    3. one step for every answer that is being made, all in one pass, which for a new one is that of
       its prompt's last token

So a long prompt keeps the others waiting for one chunk at a time, which is as long as this engine
does in 70 ms: measured at the start, and shorter where much comes before it. Of several prompts the
one with least left goes first, and none is passed over more than a few times in a row.

An answer that is alone also guesses tokens from its context; beside others that would not pay.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import monotonic, perf_counter

from edgekit.errors import BackendError
from edgekit.runtime.answer import Answer
from edgekit.runtime.asking import Asker
from edgekit.runtime.drafters import make_lookup
from edgekit.runtime.generate import Generation, Known
from edgekit.runtime.piece import Piece
from edgekit.runtime.sampling import Sampler
from edgekit.runtime.slot import Slot, decode_slots
from edgekit.runtime.token_source import Step
from edgekit.serve.job import EndReason, Event, Failed, Job, Made
from edgekit.serve.refusals import DeadlineError
from edgekit.serve.scheduler import Delivery, Scheduler, ended

_CHUNK_SECONDS = 0.07
_CHUNK_TOKENS = (32, 48, 64, 96, 128, 192, 256, 384, 512)
_MAX_PASSED_OVER = 4
_WORTH_KEEPING_TOKENS = 16
"""A shared beginning shorter than this (a BOS, a header) is no reason to take a slot's cache."""


@dataclass(eq=False, slots=True, kw_only=True)
class _Active:
    """A job in a slot."""

    job: Job
    slot: Slot
    generation: Generation
    answer: Answer
    began: float
    chunk_tokens: int
    """Of its prompt at once."""
    next_id: int | None = None
    """The last token, which the engine has not seen yet; `None` while its prompt goes through."""
    passed_over: int = 0
    """Chunks of other prompts since the last one of its own."""
    pieces: list[Piece] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    said: list[Step] = field(default_factory=list)
    """Not delivered yet, as `pieces` and `steps`."""


class SlotScheduler(Scheduler):
    """`Scheduler` over a `Session`."""

    def __init__(self, asker: Asker, *, queue_limit: int, deliver: Delivery) -> None:
        session = asker.engine.session
        super().__init__(
            asker, num_slots=session.num_slots, queue_limit=queue_limit, deliver=deliver
        )
        # the one used longest ago comes first
        self._free = [Slot(session, index) for index in range(session.num_slots)]
        self._active: list[_Active] = []
        self._outbox: list[tuple[Job, Event]] = []
        self._chunk_tokens = _CHUNK_TOKENS[-1]
        self._num_new = 0
        """Tokens of all answers since the last flush."""

    def start(self) -> None:
        """Measure how long a chunk may be, then begin to work. Raises what the session raises."""
        self._chunk_tokens = _measure_chunk(self._free[0])
        thread = threading.Thread(target=self._work, name="edgekit-slots", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _work(self) -> None:
        try:
            while self._next_round():
                self._drop_unwanted()
                self._prefill_one()
                self._decode_all()
                self._flush()
            self._flush()
        except Exception as exc:
            self._broke(exc)

    def _next_round(self) -> bool:
        """Wait until there is something to do and give out slots; False: it is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._active or len(self._waiting) or self._is_over())
            self._last_sign = monotonic()
            self._outbox += self._give_up_waiting()
            if self._is_over() and not self._active:
                return False
            jobs: list[Job] = []
            while len(self._waiting) and len(jobs) < len(self._free):
                jobs.append(self._take_next())
        for job in jobs:
            self._admit(job)
        return True

    def _admit(self, job: Job) -> None:
        began = monotonic()
        slot = self._choose_slot(job)
        work = job.work
        try:
            generation = Generation(
                slot,
                work.prompt_ids,
                sampler=Sampler(work.sampling, bias=work.bias),
                max_new_tokens=work.max_new_tokens,
                stop_ids=self.asker.engine.tokenizer.stop_ids,
                with_logprobs=work.with_logprobs,
                top_logprobs=work.top_logprobs,
                drafter=make_lookup(self.asker.engine),
            )
            answer = Answer(generation, self.asker.engine.tokenizer, work.reading)
        except Exception as exc:  # whatever is wrong with this job is no matter for the others
            self._free.append(slot)
            self._outbox.append((job, self._noted_failure(exc, job)))
            self._released(job, began)
            return
        self._active.append(
            _Active(
                job=job,
                slot=slot,
                generation=generation,
                answer=answer,
                began=began,
                chunk_tokens=self._chunk_tokens,
            )
        )

    def _choose_slot(self, job: Job) -> Slot:
        """The free slot that holds most of the prompt; where none holds much, the least used.

        A slot with another conversation is worth keeping as long as there is a choice.
        """
        shared = [slot.common_prefix(job.work.prompt_ids) for slot in self._free]
        most = max(shared)
        place = shared.index(most) if most >= _WORTH_KEEPING_TOKENS else 0
        return self._free.pop(place)

    def _drop_unwanted(self) -> None:
        now = monotonic()
        for one in list(self._active):
            job = one.job
            if self._state == "failed":
                self._fail(one, Failed(BackendError("the engine does not answer any more")))
            elif job.is_cancelled:
                self._end(one, "cancelled")
            elif job.is_late(now) and job.deadline is not None:
                seconds = job.deadline - job.submitted
                self._fail(one, Failed(DeadlineError(seconds=seconds, was_waiting=False)))

    def _prefill_one(self) -> None:
        """One chunk of the prompt whose turn it is."""
        is_joining = any(one.next_id is not None for one in self._active)
        if is_joining:  # nothing is left of a prompt that its slot holds
            for one in [one for one in self._active if one.next_id is None]:
                with self._isolated(one):
                    one.next_id = one.generation.fill(0)
        some = [one for one in self._active if one.next_id is None]
        if not some:
            return
        late = [one for one in some if one.passed_over >= _MAX_PASSED_OVER]
        chosen = late[0] if late else min(some, key=lambda one: one.generation.left_to_prefill)
        for one in some:
            one.passed_over = 0 if one is chosen else one.passed_over + 1
        with self._isolated(chosen):
            began, left = perf_counter(), chosen.generation.left_to_prefill
            step = None
            if is_joining:
                chosen.next_id = chosen.generation.fill(chosen.chunk_tokens)
            else:  # nobody's pass for its last token to go with
                step = chosen.generation.prefill(chosen.chunk_tokens)
            if left > chosen.chunk_tokens:
                chosen.chunk_tokens = next_chunk(chosen.chunk_tokens, perf_counter() - began)
            if chosen.generation.is_prefilled:
                self._took(chosen, step)

    def _decode_all(self) -> None:
        """One step for every answer; those that know what follows take several."""
        is_alone = len(self._active) == 1
        together: list[_Active] = []
        # in the order of the slots the logits need not be copied
        for one in sorted(self._active, key=lambda one: one.slot.index):
            if one.next_id is None:
                continue
            with self._isolated(one):
                known = one.generation.known_next(with_guesses=is_alone)
                if known is None:
                    together.append(one)
                else:
                    self._run_known(one, one.next_id, known)
        if not together:
            return
        slots = [one.slot for one in together]
        try:
            logits = decode_slots(slots, [i for one in together if (i := one.next_id) is not None])
        except Exception as exc:  # the pass was for all of them
            event = self._noted_failure(exc, *(one.job for one in together))
            for one in together:
                self._fail(one, event)
            return
        for one, row in zip(together, logits, strict=True):
            with self._isolated(one):
                one.generation.num_passes += len(one.generation.new_ids) > 0
                self._took(one, one.generation.advance(row))

    def _run_known(self, one: _Active, last_id: int, known: Known) -> None:
        steps = one.generation.run_known(last_id, known)
        is_last = False
        while not is_last and one in self._active:
            try:
                step: Step | None = next(steps)
            except StopIteration as end:
                step, is_last = end.value, True
            self._took(one, step)
        steps.close()  # takes back what was not taken

    def _took(self, one: _Active, step: Step | None) -> None:
        """A new token, or the end of the answer."""
        one.next_id = None if step is None else step.token_id
        if step is not None:
            self._num_new += 1
            one.steps.append(step)
            was_thinking = one.answer.is_thinking
            one.pieces += one.answer.push(step)
            if one.job.work.with_logprobs and not (was_thinking or one.answer.is_thinking):
                one.said.append(step)
            if one.job.work.one_call and one.answer.tool_calls:
                one.generation.finish("stop")
        reason = one.generation.finish_reason
        if step is None or reason is not None:
            self._end(one, reason or "cancelled")

    def _end(self, one: _Active, reason: EndReason) -> None:
        one.pieces += one.answer.finish()
        self._put_out(one)
        self._outbox.append((one.job, ended(one.job, one.answer, reason, began=one.began)))
        self._release(one)

    def _fail(self, one: _Active, event: Failed) -> None:
        self._put_out(one)
        self._outbox.append((one.job, event))
        self._release(one)

    def _release(self, one: _Active) -> None:
        self._active.remove(one)
        self._free.append(one.slot)  # with its tokens: the next turn may begin with them
        self._released(one.job, one.began)

    def _put_out(self, one: _Active) -> None:
        if one.pieces or one.steps:
            self._outbox.append((one.job, Made(one.pieces, one.steps, one.said)))
            one.pieces, one.steps, one.said = [], [], []

    def _flush(self) -> None:
        if self._num_new:
            self._counted(self._num_new)
            self._num_new = 0
        for one in self._active:
            if one.pieces:
                self._put_out(one)
        if self._outbox:
            self._deliver(self._outbox)
            self._outbox = []

    @contextmanager
    def _isolated(self, one: _Active) -> Iterator[None]:
        """Whatever goes wrong inside ends this job, and no other."""
        try:
            yield
        except Exception as exc:
            event = self._noted_failure(exc, one.job)
            if one in self._active:
                self._fail(one, event)


def next_chunk(tokens: int, seconds: float) -> int:
    """How many tokens to take after a chunk of `tokens` that took `seconds`: the deeper in a
    context, the longer attention takes."""
    if seconds <= _CHUNK_SECONDS:
        return tokens
    return max((size for size in _CHUNK_TOKENS if size < tokens), default=tokens)


def _measure_chunk(slot: Slot, clock: Callable[[], float] = perf_counter) -> int:
    """The longest chunk that takes no longer than it may, at least the shortest one."""
    chosen = _CHUNK_TOKENS[0]
    for size in _CHUNK_TOKENS:
        if size >= slot.context_tokens:
            break
        ids = [place % slot.session.vocab_size for place in range(size)]
        best = float("inf")
        for _ in range(2):  # the first pass also allocates
            slot.truncate(0)
            began = clock()
            slot.fill(ids)
            best = min(best, clock() - began)
        if best > _CHUNK_SECONDS:
            break
        chosen = size
    slot.truncate(0)
    return chosen
