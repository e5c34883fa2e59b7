from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.errors import InputError
from edgekit.runtime.budget import check_budget, thinking_limit


@pytest.mark.parametrize(
    ("budget", "max_new_tokens", "limit"),
    [
        # a quarter of 400 is kept for the answer, 20 lead out of thinking: 280
        (-1, 400, 280), (1000, 400, 280), (100, 400, 100), (0, 400, 0),
        # of many tokens 1,024 are enough: 32768 - 20 - 1024
        (-1, 32768, 31724), (31724, 32768, 31724), (31725, 32768, 31724),
        # nothing is left to think
        (-1, 26, 0), (-1, 27, 1), (50, 10, 0),
    ],
)  # fmt: skip
def test_the_answer_keeps_its_share(budget: int, max_new_tokens: int, limit: int) -> None:
    assert thinking_limit(budget, max_new_tokens=max_new_tokens, closing_tokens=20) == limit


@given(
    budget=st.integers(-1, 10**6), new=st.integers(1, 10**6), closing=st.integers(1, 100)
)  # fmt: skip
def test_there_is_always_room_for_an_answer(budget: int, new: int, closing: int) -> None:
    limit = thinking_limit(budget, max_new_tokens=new, closing_tokens=closing)
    assert limit == 0 or limit + closing < new
    assert budget < 0 or limit <= budget


@pytest.mark.parametrize("budget", [-2, True, 1.5, "10", None])
def test_what_is_no_budget_is_refused(budget: Any) -> None:
    with pytest.raises(InputError, match="number of tokens"):
        check_budget(budget)
