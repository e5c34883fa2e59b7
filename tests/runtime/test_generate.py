from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit.errors import BackendError, InputError
from edgekit.runtime.generate import Generation
from edgekit.runtime.sampling import Sampler, Sampling
from edgekit.runtime.slot import Slot, decode_slots

if TYPE_CHECKING:
    from tests.conftest import HashSession

    MakeSession = Callable[..., HashSession]

PROMPT = [3, 1, 4, 1, 5]


def greedy() -> Sampler:
    return Sampler(Sampling())


def ids(slot: Slot, prompt: list[int], **options: Any) -> list[int]:
    options.setdefault("max_new_tokens", 8)
    options.setdefault("sampler", greedy())
    return [step.token_id for step in Generation(slot, prompt, **options)]


def test_tokens_are_what_the_definition_gives(make_session: MakeSession) -> None:
    reference = make_session()
    expected = [int(reference.prefill(0, PROMPT)[0].argmax())]
    for _ in range(7):
        expected.append(int(reference.decode([0], expected[-1:])[0].argmax()))
    assert ids(Slot(make_session()), PROMPT) == expected


def test_the_prompt_is_prefilled_in_one_call(make_session: MakeSession) -> None:
    session = make_session()
    ids(Slot(session), PROMPT, max_new_tokens=3)
    assert session.calls == [("prefill", 5), ("decode", 1), ("decode", 1)]


def test_a_chunked_prefill_gives_the_same_tokens(make_session: MakeSession) -> None:
    session = make_session()
    assert ids(Slot(session), PROMPT, chunk_tokens=2) == ids(Slot(make_session()), PROMPT)
    assert session.calls[:3] == [("prefill", 2), ("prefill", 2), ("prefill", 1)]


def test_of_a_chunked_prefill_only_the_end_gives_logits(
    make_session: MakeSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where prompts go through kernels of their own, logits are a pass through the others."""
    session, wanted = make_session(), []
    prefill = session.prefill

    def noted(slot: int, token_ids: Sequence[int], *, num_logits: int = 1) -> Any:
        wanted.append(num_logits)
        return prefill(slot, token_ids, num_logits=num_logits)

    monkeypatch.setattr(session, "prefill", noted)
    ids(Slot(session), PROMPT, chunk_tokens=2, max_new_tokens=1)
    assert wanted == [0, 0, 1]


def test_a_prompt_but_for_its_last_token(make_session: MakeSession) -> None:
    session = make_session()
    slot = Slot(session)
    generation = Generation(slot, PROMPT, sampler=greedy(), max_new_tokens=3)
    assert generation.fill(0) is None
    assert session.calls == []
    assert generation.fill(3) is None
    assert generation.left_to_prefill == 2
    assert generation.fill(3) == PROMPT[-1]
    assert session.calls == [("prefill", 3), ("prefill", 1)]
    assert generation.fill(3) == PROMPT[-1]  # nothing is sent twice
    assert slot.tokens == PROMPT[:-1]
    next_id, said = PROMPT[-1], []
    while generation.finish_reason is None:
        step = generation.advance(decode_slots([slot], [next_id])[0])
        assert step is not None
        said.append(next_id := step.token_id)
    assert said == ids(Slot(make_session()), PROMPT, max_new_tokens=3)


def test_what_a_slot_holds_is_not_filled_again(make_session: MakeSession) -> None:
    session = make_session()
    slot = Slot(session)
    slot.prefill(PROMPT)
    session.calls.clear()
    generation = Generation(slot, [*PROMPT, 9], sampler=greedy(), max_new_tokens=1)
    assert generation.fill(0) == 9
    assert (generation.cached_tokens, session.calls) == (5, [])


def test_only_the_rest_of_a_known_prompt_is_prefilled(make_session: MakeSession) -> None:
    session = make_session()
    slot = Slot(session)
    said = ids(slot, PROMPT)
    session.calls.clear()
    longer = [*PROMPT, *said, 7, 8]
    generation = Generation(slot, longer, sampler=greedy(), max_new_tokens=1)
    list(generation)
    # the last token said was never sent to the session
    assert generation.cached_tokens == len(PROMPT) + len(said) - 1
    assert session.calls == [("prefill", 3)]


def test_a_reused_prefix_gives_the_tokens_of_a_fresh_run(make_session: MakeSession) -> None:
    slot = Slot(make_session())
    said = ids(slot, PROMPT)
    longer = [*PROMPT, *said, 7, 8]
    assert ids(slot, longer) == ids(Slot(make_session()), longer)


def test_a_prompt_known_whole_prefills_its_last_token(make_session: MakeSession) -> None:
    session = make_session()
    slot = Slot(session)
    first = ids(slot, PROMPT)
    session.calls.clear()
    assert ids(slot, PROMPT) == first
    assert session.calls[0] == ("prefill", 1)


def test_reuse_can_be_switched_off(make_session: MakeSession) -> None:
    session = make_session()
    slot = Slot(session)
    ids(slot, PROMPT)
    session.calls.clear()
    generation = Generation(slot, PROMPT, sampler=greedy(), reuse_prefix=False, max_new_tokens=1)
    list(generation)
    assert (generation.cached_tokens, session.calls) == (0, [("prefill", 5)])


@given(
    prompts=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), min_size=2, max_size=6),
    counts=st.lists(st.integers(1, 6), min_size=6, max_size=6),
    fail_at=st.integers(0, 20),
)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_history_of_a_slot_leaves_the_next_answer_right(
    make_session: MakeSession, prompts: list[list[int]], counts: list[int], fail_at: int
) -> None:
    session = make_session(vocab_size=4)
    session.fail_at = fail_at
    slot = Slot(session)
    for prompt, count in zip(prompts, counts, strict=False):
        fresh = ids(Slot(make_session(vocab_size=4)), prompt, max_new_tokens=count)
        with suppress(KeyboardInterrupt):
            assert ids(slot, prompt, max_new_tokens=count) == fresh
        assert slot.tokens == session.held[0]


def test_a_stop_id_ends_the_answer_and_is_not_given(make_session: MakeSession) -> None:
    free = ids(Slot(make_session()), PROMPT)
    generation = Generation(
        Slot(make_session()), PROMPT, sampler=greedy(), stop_ids={free[3]}, max_new_tokens=8
    )
    assert [step.token_id for step in generation] == free[:3]
    assert generation.finish_reason == "stop"
    assert generation.new_ids == free[:3]


def test_a_stop_id_at_once_gives_an_empty_answer(make_session: MakeSession) -> None:
    first = ids(Slot(make_session()), PROMPT)[0]
    generation = Generation(Slot(make_session()), PROMPT, sampler=greedy(), stop_ids={first})
    assert list(generation) == []
    assert generation.finish_reason == "stop"
    assert generation.ttft_ms is None


def test_the_token_limit_ends_the_answer_with_length(make_session: MakeSession) -> None:
    generation = Generation(Slot(make_session()), PROMPT, sampler=greedy(), max_new_tokens=4)
    assert len(list(generation)) == 4
    assert generation.finish_reason == "length"


def test_the_reason_is_known_with_the_last_token(make_session: MakeSession) -> None:
    generation = Generation(Slot(make_session()), PROMPT, sampler=greedy(), max_new_tokens=2)
    assert [generation.finish_reason for _ in generation] == [None, "length"]


@pytest.mark.parametrize("asked", [None, 1000])
def test_the_limit_is_clipped_to_the_room_left(
    make_session: MakeSession, asked: int | None
) -> None:
    session = make_session(context_tokens=12)
    generation = Generation(Slot(session), PROMPT, sampler=greedy(), max_new_tokens=asked)
    assert len(list(generation)) == 7  # 12 - 5
    assert generation.finish_reason == "length"


def test_a_prompt_that_leaves_one_token_is_answered(make_session: MakeSession) -> None:
    assert len(ids(Slot(make_session(context_tokens=6)), PROMPT)) == 1


@pytest.mark.parametrize("context_tokens", [5, 3])
def test_a_prompt_that_does_not_fit_names_both_numbers(
    make_session: MakeSession, context_tokens: int
) -> None:
    session = make_session(context_tokens=context_tokens)
    with pytest.raises(InputError, match=f"has 5 tokens, the context holds {context_tokens}"):
        Generation(Slot(session), PROMPT, sampler=greedy())


def test_a_prompt_that_does_not_fit_leaves_the_slot_alone(make_session: MakeSession) -> None:
    slot = Slot(make_session(context_tokens=8))
    ids(slot, PROMPT, max_new_tokens=1)
    with pytest.raises(InputError):
        Generation(slot, [*PROMPT] * 2, sampler=greedy())
    assert slot.tokens == PROMPT


def test_an_empty_prompt_is_refused(make_session: MakeSession) -> None:
    with pytest.raises(InputError, match="no tokens"):
        Generation(Slot(make_session()), [], sampler=greedy())


def test_a_limit_below_one_is_refused(make_session: MakeSession) -> None:
    with pytest.raises(InputError, match="at least 1: 0"):
        Generation(Slot(make_session()), PROMPT, sampler=greedy(), max_new_tokens=0)


def test_an_id_outside_the_vocabulary_leaves_an_empty_slot(make_session: MakeSession) -> None:
    slot = Slot(make_session(vocab_size=5))
    with pytest.raises(InputError):
        ids(slot, [1, 5])
    assert slot.tokens == []


def test_an_answer_closed_early_leaves_what_was_sent(make_session: MakeSession) -> None:
    session = make_session()
    slot = Slot(session)
    steps = iter(Generation(slot, PROMPT, sampler=greedy()))
    given_ids = [next(steps).token_id for _ in range(3)]
    steps.close()  # type: ignore[attr-defined]  # it is a generator
    assert slot.tokens == session.held[0] == [*PROMPT, *given_ids[:2]]


@pytest.mark.parametrize("call", range(4))
def test_an_interrupted_answer_has_no_reason_and_can_go_on(
    make_session: MakeSession, call: int
) -> None:
    session = make_session()
    session.fail_at = call
    slot = Slot(session)
    generation = Generation(slot, PROMPT, sampler=greedy(), max_new_tokens=8)
    with pytest.raises(KeyboardInterrupt):
        list(generation)
    assert generation.finish_reason is None
    assert slot.tokens == session.held[0]
    so_far = [*PROMPT, *generation.new_ids]
    rest = 8 - len(generation.new_ids)
    whole = ids(Slot(make_session()), PROMPT)
    assert [*generation.new_ids, *ids(slot, so_far, max_new_tokens=rest)] == whole


def test_an_interrupted_chunk_keeps_the_chunks_before(make_session: MakeSession) -> None:
    session = make_session()
    session.fail_at = 2
    slot = Slot(session)
    with pytest.raises(KeyboardInterrupt):
        ids(slot, PROMPT, chunk_tokens=2)
    assert slot.tokens == PROMPT[:4]


def test_bad_logits_leave_the_slot_as_it_is(make_session: MakeSession) -> None:
    session = make_session()
    session.prefill = lambda *_, **__: np.full((1, 50), np.nan, np.float32)  # type: ignore[method-assign]
    slot = Slot(session)
    with pytest.raises(BackendError):
        ids(slot, PROMPT)
    assert slot.tokens == session.held[0] == []


def test_the_penalty_sees_the_prompt_and_the_answer(make_session: MakeSession) -> None:
    seen: list[list[int]] = []

    class Spy(Sampler):
        def sample(self, logits: Any, history: Any) -> int:
            seen.append(list(history))
            return super().sample(logits, history)

    said = ids(Slot(make_session()), PROMPT, sampler=Spy(Sampling()), max_new_tokens=3)
    assert seen == [PROMPT, [*PROMPT, said[0]], [*PROMPT, *said[:2]]]


def test_the_logprob_is_the_models_own(make_session: MakeSession) -> None:
    logits = make_session().prefill(0, PROMPT)[0].astype(np.float64)
    expected = logits.max() - np.log(np.exp(logits).sum())
    step = Generation(Slot(make_session()), PROMPT, sampler=greedy(), with_logprobs=True).start()
    assert step is not None
    assert step.logprob == pytest.approx(expected)


def test_times_are_taken_for_every_token(make_session: MakeSession) -> None:
    generation = Generation(Slot(make_session()), PROMPT, sampler=greedy(), max_new_tokens=5)
    list(generation)
    times = [generation.sent_ns, *generation.token_ns]
    assert len(generation.token_ns) == 5
    assert times == sorted(times)


def test_throughputs_follow_from_the_times(make_session: MakeSession) -> None:
    generation = Generation(Slot(make_session()), PROMPT, sampler=greedy())
    generation.cached_tokens = 1
    generation.sent_ns, generation.token_ns = 0, [2_000_000, 3_000_000, 6_000_000]
    assert generation.ttft_ms == 2.0
    assert generation.prefill_tokens_per_s == 2000.0  # 5 - 1 in 2 ms
    assert generation.decode_tokens_per_s == 500.0  # the last two in 4 ms


def test_one_token_has_no_decode_throughput(make_session: MakeSession) -> None:
    generation = Generation(Slot(make_session()), PROMPT, sampler=greedy(), max_new_tokens=1)
    list(generation)
    assert generation.decode_tokens_per_s is None


def test_a_scheduler_drives_many_slots_in_one_pass(make_session: MakeSession) -> None:
    session = make_session(num_slots=3)
    prompts = [[1, 2, 3], [4], [1, 2, 9, 9]]
    made = [
        Generation(Slot(session, i), prompt, sampler=greedy(), max_new_tokens=4)
        for i, prompt in enumerate(prompts)
    ]
    steps = [generation.start() for generation in made]
    while not all(generation.finish_reason for generation in made):
        rows = decode_slots([g.slot for g in made], [s.token_id for s in steps if s])
        steps = [g.advance(row) for g, row in zip(made, rows, strict=True)]
    alone = [ids(Slot(make_session()), prompt, max_new_tokens=4) for prompt in prompts]
    assert [generation.new_ids for generation in made] == alone
    assert [slot.tokens for slot in (g.slot for g in made)] == session.held


def test_a_new_slot_is_empty(make_session: MakeSession) -> None:
    session = make_session()
    session.prefill(0, PROMPT)
    assert Slot(session).tokens == []
    assert session.length(0) == 0


def test_a_slot_outside_the_session_is_a_mistake(make_session: MakeSession) -> None:
    with pytest.raises(ValueError, match="slot 1 of a session with 1"):
        Slot(make_session(), 1)


@pytest.mark.parametrize(
    ("other", "expected"), [([3, 1], 2), ([3, 1, 4, 1, 5, 9], 5), ([9], 0), ([3, 9, 4], 1)]
)
def test_the_common_prefix_is_counted(
    make_session: MakeSession, other: list[int], expected: int
) -> None:
    slot = Slot(make_session())
    slot.prefill(PROMPT)
    assert slot.common_prefix(other) == expected
