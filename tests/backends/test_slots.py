"""The bookkeeping of KV slots, over a pass that only remembers what it was asked."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgekit.backends.slots import SlotSession
from edgekit.errors import BackendError, InputError

VOCAB = 50


@dataclass(frozen=True)
class Pass:
    """One call of `_run`."""

    slot: int
    ids: list[list[int]]
    before: list[int]
    wanted: int


class RecordingSession(SlotSession):
    """Logits row of a token: its id in column 0, its position in column 1.

    Like a real one it gives the same array again and again.
    """

    def __init__(
        self, *, chunk_tokens: int = 8, max_logits: int | None = None, context_tokens: int = 40
    ) -> None:
        super().__init__(
            context_tokens=context_tokens,
            num_slots=5,
            vocab_size=VOCAB,
            chunk_tokens=chunk_tokens,
            max_logits=max_logits,
        )
        self.passes: list[Pass] = []
        self.fail_at: int | None = None
        self._out = np.zeros((5, 64, VOCAB), np.float32)

    def _run(
        self, slot: int, count: int, ids: NDArray[np.int64], before: list[int], wanted: int
    ) -> NDArray[np.float32]:
        if self.fail_at == len(self.passes):
            raise BackendError("made to fail")
        assert ids.shape[0] == count == len(before)
        assert ids.dtype == np.int64
        self.passes.append(Pass(slot, ids.tolist(), list(before), wanted))
        self._out[...] = -1
        tokens = ids.shape[1]
        out = self._out[:count, :wanted]
        out[..., 0] = ids[:, tokens - wanted :]
        out[..., 1] = np.array(before)[:, None] + np.arange(tokens - wanted, tokens)
        return out

    def close(self) -> None:
        pass


def sizes(session: RecordingSession) -> list[tuple[int, int]]:
    """Tokens and wanted rows of every pass."""
    return [(len(done.ids[0]), done.wanted) for done in session.passes]


@pytest.mark.parametrize(
    ("count", "num_logits", "max_logits", "expected"),
    [
        # chunks of 8 from the front; only the last one's rows are wanted
        (20, 1, None, [(8, 0), (8, 0), (4, 1)]),
        (8, 1, None, [(8, 1)]),
        (9, 1, None, [(8, 0), (1, 1)]),
        # without a limit every row of a chunk can be wanted
        (20, 20, None, [(8, 8), (8, 8), (4, 4)]),
        (20, 6, None, [(8, 0), (8, 2), (4, 4)]),
        # 3 rows at most: positions 0..9 are unwanted, 10..19 go 3 by 3; the second piece takes
        # 8, 9 and as many wanted ones as may be
        (20, 10, 3, [(8, 0), (5, 3), (3, 3), (3, 3), (1, 1)]),
        (20, 1, 3, [(8, 0), (8, 0), (4, 1)]),
        (5, 5, 3, [(3, 3), (2, 2)]),
        # the chunk ends before the limit is reached
        (12, 12, 30, [(8, 8), (4, 4)]),
    ],
)
def test_a_prompt_goes_through_in_pieces(
    count: int, num_logits: int, max_logits: int | None, expected: list[tuple[int, int]]
) -> None:
    session = RecordingSession(max_logits=max_logits)
    session.prefill(0, list(range(count)), num_logits=num_logits)
    assert sizes(session) == expected


@settings(max_examples=200, deadline=None)
@given(
    held=st.integers(0, 10),
    count=st.integers(1, 30),
    data=st.data(),
    chunk_tokens=st.integers(1, 12),
    max_logits=st.none() | st.integers(1, 12),
)
def test_pieces_are_the_prompt_and_rows_are_its_last(
    held: int, count: int, data: st.DataObject, chunk_tokens: int, max_logits: int | None
) -> None:
    num_logits = data.draw(st.integers(1, count))
    session = RecordingSession(chunk_tokens=chunk_tokens, max_logits=max_logits)
    if held:
        session.prefill(2, [1] * held)
        session.passes.clear()
    tokens = [7 + i for i in range(count)]
    rows = session.prefill(2, tokens, num_logits=num_logits)
    assert [i for done in session.passes for i in done.ids[0]] == tokens
    at = held
    for done in session.passes:
        assert done.before == [at]
        assert len(done.ids[0]) <= chunk_tokens
        assert max_logits is None or done.wanted <= max_logits
        at += len(done.ids[0])
    # worked out without the session: the last rows, in order, at their positions
    assert rows[:, 0].tolist() == tokens[count - num_logits :]
    assert rows[:, 1].tolist() == list(range(held + count - num_logits, held + count))
    assert session.length(2) == held + count


def test_a_prompt_of_one_piece_is_not_copied() -> None:
    session = RecordingSession()
    rows = session.prefill(0, [1, 2, 3], num_logits=2)
    assert np.shares_memory(rows, session._out)


def test_rows_of_pieces_do_not_overwrite_each_other() -> None:
    session = RecordingSession(chunk_tokens=2)
    rows = session.prefill(0, [5, 6, 7, 8, 9], num_logits=5)
    assert rows[:, 0].tolist() == [5, 6, 7, 8, 9]


def held(session: RecordingSession) -> RecordingSession:
    """Slot i holds i + 1 tokens."""
    for slot in range(5):
        session.prefill(slot, [1] * (slot + 1))
    session.passes.clear()
    return session


def test_a_step_over_scattered_slots_is_one_pass_that_idle_ones_take_part_in() -> None:
    session = held(RecordingSession())
    rows = session.decode([4, 0, 1, 3], [44, 40, 41, 43])
    assert session.passes == [Pass(0, [[40], [41], [0], [43], [44]], [1, 2, 3, 4, 5], 1)]
    # rows in the order of the call
    assert rows[:, 0].tolist() == [44, 40, 41, 43]
    assert rows[:, 1].tolist() == [5, 1, 2, 4]
    assert [session.length(slot) for slot in range(5)] == [2, 3, 3, 5, 6]


def test_more_idle_slots_than_others_are_passed_by() -> None:
    session = held(RecordingSession())
    rows = session.decode([4, 0], [44, 40])
    assert session.passes == [Pass(0, [[40]], [1], 1), Pass(4, [[44]], [5], 1)]
    assert rows[:, 0].tolist() == [44, 40]


def test_an_idle_slot_that_is_full_takes_no_part() -> None:
    session = held(RecordingSession(context_tokens=10))
    session.prefill(1, [1] * 8)
    session.passes.clear()
    session.decode([0, 2], [40, 42])
    assert session.passes == [Pass(0, [[40]], [1], 1), Pass(2, [[42]], [3], 1)]


def test_a_piece_that_fails_leaves_the_slot_as_it_was() -> None:
    session = RecordingSession(chunk_tokens=2)
    session.prefill(0, [1, 2])
    session.fail_at = 2
    with pytest.raises(BackendError, match="made to fail"):
        session.prefill(0, [3, 4, 5])
    assert session.length(0) == 2
    session.fail_at = None
    session.prefill(0, [3])
    assert session.passes[-1].before == [2]


def test_a_run_that_fails_leaves_all_slots_as_they_were() -> None:
    session = RecordingSession()
    session.fail_at = 1  # the first run of two succeeds
    with pytest.raises(BackendError, match="made to fail"):
        session.decode([0, 4], [1, 1])
    assert [session.length(slot) for slot in range(5)] == [0] * 5


@pytest.mark.parametrize("bad", [-1, VOCAB])
def test_a_bad_id_is_found_before_anything_runs(bad: int) -> None:
    session = RecordingSession(chunk_tokens=2)
    with pytest.raises(InputError, match=r"within 0\.\.49"):
        session.prefill(0, [1, 2, 3, bad])
    with pytest.raises(InputError, match="within"):
        session.decode([0, 1], [1, bad])
    assert session.passes == []


def test_a_token_too_many_is_found_before_anything_runs() -> None:
    session = RecordingSession()
    session.prefill(0, [1] * 39)
    session.passes.clear()
    with pytest.raises(InputError, match=r"39 \+ 2 tokens do not fit a context of 40"):
        session.prefill(0, [1, 1])
    session.decode([0], [1])
    with pytest.raises(InputError, match=r"40 \+ 1 tokens"):
        session.decode([1, 0], [1, 1])
    assert len(session.passes) == 1


@pytest.mark.parametrize("length", [-1, 4])
def test_no_slot_is_truncated_to_what_it_does_not_hold(length: int) -> None:
    session = RecordingSession()
    session.prefill(1, [1, 2, 3])
    with pytest.raises(ValueError, match="slot 1 holds 3 tokens"):
        session.truncate(1, length)
    session.truncate(1, 0)
    assert session.length(1) == 0
