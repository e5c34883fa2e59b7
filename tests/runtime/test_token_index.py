from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.runtime import token_index
from edgekit.runtime.token_index import Habit, TokenIndex

TEXTS = st.integers(1, 4).flatmap(lambda n: st.lists(st.integers(0, n), max_size=40))


def common_suffix(ids: Sequence[int], place: int) -> int:
    """The slow definition: tokens before `place` that equal the last ones."""
    length = 0
    while length < place and ids[place - 1 - length] == ids[len(ids) - 1 - length]:
        length += 1
    return length


@given(text=TEXTS, known=st.integers(0, 40))
def test_the_match_is_the_longest_there_is(text: list[int], known: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_index, "_CHAIN_PLACES", 1000)
        patch.setattr(token_index, "_SEARCHED_TOKENS", 1000)
        index = TokenIndex(text[:known])
        for token_id in text[known:]:
            guess = None if index.place is None else index.ids[index.place]
            said = index.append(token_id)
            assert said == (None if guess is None else guess == token_id)
            check(index)


def check(index: TokenIndex) -> None:
    ids = index.ids
    longest = max((common_suffix(ids, place) for place in range(len(ids))), default=0)
    if index.place is None:
        assert (longest, index.length) == (longest, 0)
        assert longest < 2
    elif index.length == 1:  # beside a lost match
        assert longest < 2
        assert ids[index.place - 1] == ids[-1]
    else:
        assert index.length == longest == common_suffix(ids, index.place)


@given(text=TEXTS)
def test_a_bounded_search_gives_a_true_match(text: list[int]) -> None:
    index = TokenIndex()
    for token_id in text:
        index.append(token_id)
        if index.place is not None:
            assert 1 <= index.length <= common_suffix(index.ids, index.place)


@given(text=TEXTS)
def test_a_text_read_at_once_has_a_match_as_long(text: list[int]) -> None:
    one_by_one = TokenIndex()
    for token_id in text:
        one_by_one.append(token_id)
    at_once = TokenIndex(text)
    assert at_once.ids == one_by_one.ids == text
    if one_by_one.length >= 2 or at_once.length:
        assert at_once.length == one_by_one.length


def test_of_equal_matches_the_latest_is_taken() -> None:
    index = TokenIndex([1, 2, 3, 9, 1, 2, 4, 8, 1, 2])
    assert (index.place, index.length) == (6, 2)


def test_a_longer_match_is_better_than_a_later_one() -> None:
    index = TokenIndex([7, 1, 2, 3, 9, 1, 2, 4, 7, 1, 2])
    assert (index.place, index.length) == (3, 3)


def test_a_changed_word_does_not_lose_the_source() -> None:
    index = TokenIndex([10, 11, 12, 13, 14, 15, 16, 17, 18, 99])
    found = []
    for token_id in (10, 11, 12, 13, 50, 15, 16):  # 50 in place of 14
        index.append(token_id)
        found.append((index.place, index.length))
    assert found == [(None, 0), (2, 2), (3, 3), (4, 4), (None, 0), (6, 1), (7, 2)]


def test_a_short_match_leaves_nothing_to_return_to() -> None:
    index = TokenIndex([10, 11, 12, 13, 14, 15, 99])
    for token_id in (10, 11, 12, 50, 14):
        index.append(token_id)
    assert index.place is None


def test_a_source_that_was_left_long_ago_is_forgotten() -> None:
    index = TokenIndex([10, 11, 12, 13, 14, 15, 16, 17, 18, 99])
    for token_id in (10, 11, 12, 13, *range(50, 60), 15):
        index.append(token_id)
    assert index.place is None


@pytest.mark.parametrize(
    ("text", "guess", "habit"),
    [
        ([5, 6], 7, Habit.ONCE),
        ([5, 6, 7], 7, Habit.ONCE),
        ([5, 6, 8], 7, Habit.SPLIT),
        ([5, 6, 7, 5, 6, 7], 7, Habit.ALIKE),
        ([5, 6, 8, 5, 6, 7], 7, Habit.SPLIT),
        ([5, 6, 8, *[5, 6, 7] * 3], 7, Habit.ALIKE),  # only the last three count
    ],
)
def test_a_habit_is_how_a_pair_went_on(text: list[int], guess: int, habit: Habit) -> None:
    assert TokenIndex(text).habit((5, 6), guess) is habit
