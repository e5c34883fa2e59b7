from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.errors import InputError
from edgekit.precision import PRECISIONS
from edgekit.runtime import draft_policy
from edgekit.runtime.draft_policy import (
    MARGINAL_COST,
    MAX_DRAFT_TOKENS,
    Acceptance,
    Credit,
    draft_length,
    marginal_cost,
    measure_marginal_cost,
)

if TYPE_CHECKING:
    from edgekit.backends.base import Logits
    from tests.conftest import HashSession

    MakeSession = Callable[..., HashSession]


def tokens_per_cost(rates: Sequence[float], length: int, cost: float) -> float:
    """The definition."""
    tokens, survives = 1.0, 1.0
    for rate in rates[:length]:
        survives *= rate
        tokens += survives
    return tokens / (1 + cost * length)


@given(
    rates=st.lists(st.floats(0, 1), max_size=8),
    cost=st.floats(0.01, 1),
    limit=st.integers(0, 10),
)
def test_no_other_length_gives_more(rates: list[float], cost: float, limit: int) -> None:
    length = draft_length(rates, marginal_cost=cost, limit=limit)
    lengths = range(min(limit, len(rates)) + 1)
    best = max(tokens_per_cost(rates, k, cost) for k in lengths)
    assert length in lengths
    if length:
        assert tokens_per_cost(rates, length, cost) == pytest.approx(best)
        assert best >= 1.05
    else:
        assert best < 1.05 + 1e-9


@pytest.mark.parametrize(
    ("rate", "cost", "length"),
    [
        # 1.5 / 1.3 = 1.15 with one; the second adds 0.25 tokens for 0.3: less per cost
        (0.5, 0.3, 1),
        # 1.3 / 1.3 = 1: nothing gained
        (0.3, 0.3, 0),
        # 1.9/1.3, 2.71/1.6, 3.44/1.9, 4.10/2.2 = 1.861, 4.69/2.5 = 1.874, 5.22/2.8 = 1.863
        (0.9, 0.3, 5),
        (1.0, 0.3, 16),
    ],
)
def test_the_length_fits_what_is_expected(rate: float, cost: float, length: int) -> None:
    assert draft_length([rate] * 16, marginal_cost=cost, limit=16) == length


def test_guesses_that_come_true_are_believed_more() -> None:
    acceptance = Acceptance({"short": 0.4, "long": 0.9})
    assert acceptance.rate("short") == pytest.approx(0.4)
    for _ in range(40):
        acceptance.note("short", is_true=True)
        acceptance.note("long", is_true=False)
    assert acceptance.rate("short") > 0.9
    assert acceptance.rate("long") < 0.1


@given(
    asked=st.lists(st.integers(0, 30), max_size=300),
    cost=st.floats(0.01, 1),
)
def test_what_is_never_taken_costs_one_pass_and_a_hundredth(asked: list[int], cost: float) -> None:
    credit, spent = Credit(), 0.0
    for passes, wanted in enumerate(asked, 1):
        credit.earn()
        count = min(wanted, credit.affords(cost))
        credit.settle(cost=cost * count, saved=0)
        spent += cost * count
        assert spent <= 1 + passes / 100 + 1e-9


def test_success_makes_longer_drafts_affordable() -> None:
    credit = Credit()
    credit.earn()
    assert credit.affords(0.3) == 3  # 1.01 / 0.3
    credit.settle(cost=0.9, saved=3)
    assert credit.affords(0.3) == 10  # 3.11 / 0.3
    credit.settle(cost=3.0, saved=10)
    assert credit.affords(0.3) == MAX_DRAFT_TOKENS
    assert credit.passes == 6.0  # what is saved up has an end


def test_what_costs_nothing_is_not_counted() -> None:
    assert Credit().affords(0.0) == MAX_DRAFT_TOKENS


def test_every_precision_has_a_cost() -> None:
    costs = {name: marginal_cost(name) for name in PRECISIONS}
    assert all(0 < cost <= MARGINAL_COST for cost in costs.values())
    assert costs["fp16"] < costs["int4_awq"]


def test_the_marginal_cost_is_measured_on_passes(
    make_session: MakeSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = make_session()
    now_ns = 0
    prefill = session.prefill

    def timed(slot: int, token_ids: Sequence[int], *, num_logits: int = 1) -> Logits:
        nonlocal now_ns
        now_ns += 1000 + 250 * (len(token_ids) - 1)
        return prefill(slot, token_ids, num_logits=num_logits)

    session.prefill(0, [4, 2])
    monkeypatch.setattr(session, "prefill", timed)
    monkeypatch.setattr(draft_policy, "perf_counter_ns", lambda: now_ns)
    assert measure_marginal_cost(session) == pytest.approx(0.25)
    assert session.held == [[4, 2]]


def test_a_full_slot_cannot_be_measured(make_session: MakeSession) -> None:
    session = make_session(context_tokens=4)
    with pytest.raises(InputError):
        measure_marginal_cost(session)
    assert session.held == [[]]
