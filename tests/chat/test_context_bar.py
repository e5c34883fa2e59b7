from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from edgekit.chat.context_bar import describe_context, shares, small_bar


@dataclass
class Use:
    total_tokens: int = 1000
    parts: list[tuple[str, int]] = field(
        default_factory=lambda: [("system", 100), ("tools", 0), ("conversation", 400)]
    )
    reserve_tokens: int = 250


def test_the_bar_has_every_part_in_proportion() -> None:
    # 10 cells for 1000 tokens: 1 of the system, 4 of the conversation, 5 free
    assert describe_context(Use(), width=10).splitlines() == [
        "█▓▓▓▓░░░░░",
        "█ system 100  ▓ conversation 400  ░ free 500, 250 of them for the answer",
        "500 of 1,000 tokens",
    ]


def test_a_context_that_is_too_full_has_no_room() -> None:
    text = describe_context(Use(total_tokens=450), width=10)
    assert "░ free 0" in text
    assert text.startswith("██▓▓▓▓▓▓▓▓")


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=8), st.integers(8, 200))
def test_the_cells_are_all_given_and_none_is_left_out(amounts: list[int], cells: int) -> None:
    counts = shares(amounts, cells)
    assert sum(counts) == cells
    assert all(count > 0 for amount, count in zip(amounts, counts, strict=True) if amount)


def test_a_small_bar() -> None:
    assert small_bar(500, 1000) == "████░░░░"
    assert small_bar(0, 0) == "░░░░░░░░"
    assert small_bar(2000, 1000) == "████████"
