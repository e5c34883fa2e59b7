"""Tokens that are known before they are sampled: forced, constrained, drafted."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit.errors import InputError
from edgekit.runtime.generate import Generation
from edgekit.runtime.sampling import Sampler, Sampling
from edgekit.runtime.slot import Slot
from edgekit.runtime.streamed import StreamedGeneration

if TYPE_CHECKING:
    from edgekit.backends.base import Logits
    from tests.conftest import HashSession

    MakeSession = Callable[..., HashSession]

PROMPT = [3, 1, 0, 1, 2]


class Oracle:
    """A drafter that knows what comes, but for every `wrong`-th guess."""

    def __init__(self, future: Sequence[int], *, size: int = 3, wrong: int = 0) -> None:
        self.future = list(future)
        self.observed: list[tuple[int, int]] = []
        self._size = size
        self._wrong = wrong
        self._count = 0

    def propose(self, context_ids: Sequence[int], limit: int) -> list[int]:
        at = len(context_ids) - len(PROMPT)
        guess = self.future[at : at + min(self._size, limit)]
        for i in range(len(guess)):
            self._count += 1
            if self._wrong and self._count % self._wrong == 0:
                guess[i] = (guess[i] + 1) % 4
        return guess

    def observe(self, num_proposed: int, num_accepted: int) -> None:
        self.observed.append((num_proposed, num_accepted))


class Even:
    """A constraint: even ids only, and 2 comes after every 0."""

    def __init__(self) -> None:
        self.taken: list[int] = []

    def mask(self, logits: Logits) -> Logits:
        masked = logits.copy()
        masked[1::2] = -np.inf
        if self.taken[-1:] == [0]:
            masked[[i for i in range(len(masked)) if i != 2]] = -np.inf
        return masked

    def accept(self, token_id: int) -> None:
        assert token_id % 2 == 0
        self.taken.append(token_id)

    def forced(self) -> list[int]:
        return [2] if self.taken[-1:] == [0] else []


def run(session: HashSession, **options: Any) -> Generation:
    options.setdefault("max_new_tokens", 12)
    options.setdefault("sampler", Sampler(Sampling()))
    generation = Generation(Slot(session), PROMPT, **options)
    list(generation)
    return generation


SAMPLINGS = [Sampling(), Sampling(temperature=1.5, seed=7), Sampling(temperature=0.8, top_p=0.9,
             top_k=3, repetition_penalty=1.2, seed=1)]  # fmt: skip


@given(
    size=st.integers(1, 6),
    wrong=st.integers(0, 4),
    count=st.integers(1, 14),
    sampling=st.sampled_from(SAMPLINGS),
    stop=st.integers(0, 3),
    with_constraint=st.booleans(),
)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_guesses_change_nothing_but_the_number_of_passes(
    make_session: MakeSession,
    size: int,
    wrong: int,
    count: int,
    sampling: Sampling,
    stop: int,
    with_constraint: bool,
) -> None:
    def answer(drafter: Oracle | None) -> Generation:
        slot = Slot(make_session(vocab_size=4))
        generation = Generation(
            slot, PROMPT, sampler=Sampler(sampling), max_new_tokens=count, stop_ids={stop},
            drafter=drafter,
        )  # fmt: skip
        generation.constraint = Even() if with_constraint else None
        list(generation)
        return generation

    plain = answer(None)
    oracle = Oracle(plain.new_ids, size=size, wrong=wrong)
    drafted = answer(oracle)
    assert (drafted.new_ids, drafted.finish_reason) == (plain.new_ids, plain.finish_reason)
    assert drafted.slot.tokens == plain.slot.tokens
    assert drafted.num_passes <= plain.num_passes
    assert drafted.drafted_tokens == sum(proposed for proposed, _ in oracle.observed)
    assert drafted.accepted_tokens == sum(accepted for _, accepted in oracle.observed)


def test_right_guesses_share_passes(make_session: MakeSession) -> None:
    plain = run(make_session())
    session = make_session()
    drafted = run(session, drafter=Oracle(plain.new_ids))
    # 12 tokens: one of the prefill, then 4 a pass; the last pass may guess only two
    assert session.calls == [("prefill", 5), ("prefill", 4), ("prefill", 4), ("prefill", 3)]
    assert (drafted.num_passes, drafted.drafted_tokens, drafted.accepted_tokens) == (3, 8, 8)


def test_a_wrong_guess_costs_its_rest(make_session: MakeSession) -> None:
    plain = run(make_session(vocab_size=4))
    wrong = plain.new_ids.copy()
    wrong[2] = (wrong[2] + 1) % 4
    oracle = Oracle(wrong)
    drafted = run(make_session(vocab_size=4), drafter=oracle)
    assert drafted.new_ids == plain.new_ids
    # the second of the guesses after the first token is wrong
    assert oracle.observed[0] == (3, 1)


@given(stop_at=st.integers(0, 11), size=st.integers(1, 6))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_closing_between_two_steps_leaves_no_guess_in_the_slot(
    make_session: MakeSession, stop_at: int, size: int
) -> None:
    plain = run(make_session())
    slot = Slot(make_session())
    generation = Generation(
        slot, PROMPT, sampler=Sampler(Sampling()), max_new_tokens=12,
        drafter=Oracle(plain.new_ids, size=size),
    )  # fmt: skip
    steps = iter(generation)
    for _ in range(stop_at + 1):
        next(steps)
    steps.close()  # type: ignore[attr-defined]  # a generator
    assert slot.tokens == [*PROMPT, *plain.new_ids[:stop_at]]


def test_an_interrupted_pass_leaves_the_slot_right(make_session: MakeSession) -> None:
    plain = run(make_session())
    session = make_session()
    session.fail_at = 2
    slot = Slot(session)
    generation = Generation(
        slot, PROMPT, sampler=Sampler(Sampling()), max_new_tokens=12, drafter=Oracle(plain.new_ids)
    )
    with suppress(KeyboardInterrupt):
        list(generation)
    assert slot.tokens == [*PROMPT, *plain.new_ids[:4]]


def test_forced_tokens_come_next_and_share_a_pass(make_session: MakeSession) -> None:
    session = make_session()
    generation = Generation(
        Slot(session), PROMPT, sampler=Sampler(Sampling()), max_new_tokens=8, stop_ids={9}
    )
    given_ids = []
    for step in generation:
        given_ids.append(step.token_id)
        if len(given_ids) == 2:
            generation.force([9, 8, 7])  # a stop id too: what is forced is not judged
    assert given_ids[2:5] == [9, 8, 7]
    assert len(given_ids) == 8
    reference = make_session()
    after = reference.prefill(0, [*PROMPT, *given_ids[:5]])[0]
    assert given_ids[5] == int(after.argmax())
    assert session.calls[:3] == [("prefill", 5), ("decode", 1), ("prefill", 4)]


def test_forcing_within_a_pass_of_guesses_throws_the_rest_away(make_session: MakeSession) -> None:
    plain = run(make_session())
    generation = Generation(
        Slot(make_session()), PROMPT, sampler=Sampler(Sampling()), max_new_tokens=12,
        drafter=Oracle(plain.new_ids, size=6),
    )  # fmt: skip
    given_ids = []
    for step in generation:
        given_ids.append(step.token_id)
        if len(given_ids) == 3:
            generation.force([40, 41])
    assert given_ids[:5] == [*plain.new_ids[:3], 40, 41]
    assert generation.slot.tokens == [*PROMPT, *given_ids[:-1]]


def test_forced_tokens_end_at_the_limit(make_session: MakeSession) -> None:
    generation = Generation(
        Slot(make_session()), PROMPT, sampler=Sampler(Sampling()), max_new_tokens=3
    )
    generation.force([1, 2, 3, 4, 5])
    assert [step.token_id for step in generation] == [1, 2, 3]
    assert generation.finish_reason == "length"


def test_a_constraint_holds_and_its_only_choices_cost_no_pass(make_session: MakeSession) -> None:
    generation = Generation(
        Slot(make_session(vocab_size=6)), PROMPT, sampler=Sampler(Sampling()), max_new_tokens=30
    )
    constraint = Even()
    generation.constraint = constraint
    said = [step.token_id for step in generation]
    assert constraint.taken == said
    zeros = [i for i, token in enumerate(said[:-1]) if token == 0]
    assert zeros
    assert all(said[i + 1] == 2 for i in zeros)
    assert generation.num_passes < len(said) - 1


class Streams:
    """A backend that samples by itself: greedy over a `HashSession`, with a log of its requests."""

    def __init__(self, session: HashSession) -> None:
        self.context_tokens = session.context_tokens
        self.requests: list[tuple[list[int], int]] = []
        self.num_closed = 0
        self._session = session

    def stream(
        self, token_ids: Sequence[int], *, sampling: Mapping[str, Any], max_new_tokens: int
    ) -> Generator[int]:
        assert Sampling(**sampling).temperature == 0
        self.requests.append((list(token_ids), max_new_tokens))
        self._session.truncate(0, 0)
        token = int(self._session.prefill(0, token_ids)[0].argmax())
        try:
            for _ in range(max_new_tokens):
                yield token
                token = int(self._session.decode([0], [token])[0].argmax())
        finally:
            self.num_closed += 1

    def close(self) -> None: ...


def test_a_streamed_answer_is_the_one_of_the_own_loop(make_session: MakeSession) -> None:
    plain = run(make_session(), max_new_tokens=8)
    streams = Streams(make_session())
    streamed = StreamedGeneration(streams, PROMPT, sampling=Sampling(), max_new_tokens=8)
    assert [step.token_id for step in streamed] == plain.new_ids
    assert (streamed.finish_reason, streamed.prompt_tokens) == ("length", 5)
    assert streams.requests == [(PROMPT, 8)]
    assert streamed.decode_tokens_per_s is not None


def test_a_stop_id_ends_a_stream(make_session: MakeSession) -> None:
    plain = run(make_session())
    streams = Streams(make_session())
    streamed = StreamedGeneration(
        streams, PROMPT, sampling=Sampling(), stop_ids={plain.new_ids[4]}, max_new_tokens=12
    )
    first = plain.new_ids.index(plain.new_ids[4])
    assert [step.token_id for step in streamed] == plain.new_ids[:first]
    assert (streamed.finish_reason, streams.num_closed) == ("stop", 1)


def test_forcing_stops_a_stream_and_goes_on_with_another(make_session: MakeSession) -> None:
    own = Generation(Slot(make_session()), PROMPT, sampler=Sampler(Sampling()), max_new_tokens=8)
    streams = Streams(make_session())
    streamed = StreamedGeneration(streams, PROMPT, sampling=Sampling(), max_new_tokens=8)
    given_ids: list[list[int]] = []
    for generation in (own, streamed):
        given_ids.append([])
        for step in generation:
            given_ids[-1].append(step.token_id)
            if len(given_ids[-1]) == 2:
                generation.force([9, 8])
    assert given_ids[0] == given_ids[1]
    assert streams.requests == [(PROMPT, 8), ([*PROMPT, *given_ids[0][:4]], 4)]
    assert streams.num_closed == 2


def test_a_stream_that_is_left_is_cancelled(make_session: MakeSession) -> None:
    streams = Streams(make_session())
    steps = iter(StreamedGeneration(streams, PROMPT, sampling=Sampling(), max_new_tokens=8))
    next(steps)
    steps.close()  # type: ignore[attr-defined]  # a generator
    assert streams.num_closed == 1


def test_a_structure_needs_logits(make_session: MakeSession) -> None:
    streamed = StreamedGeneration(Streams(make_session()), PROMPT, sampling=Sampling())
    streamed.constraint = Even()
    with pytest.raises(InputError, match="shows no logits") as caught:
        list(streamed)
    assert caught.value.hint
