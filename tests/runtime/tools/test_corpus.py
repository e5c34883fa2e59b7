"""What `scripts/bfcl` measures, on a small corpus of our own and on arguments of any kind."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.runtime.tools import Tool
from toolcalls.check import calls_in, damaged, is_read_back, parse
from toolcalls.dialects import BARE_TEXT, DIALECTS, Call
from toolcalls.questions import read_questions

_DATA = Path(__file__).parents[2] / "data" / "tool_calls"
QUESTIONS = list(read_questions(_DATA / "questions.jsonl", _DATA / "answers.jsonl"))


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_call_is_read_back_from_every_dialect(dialect: str) -> None:
    rng = random.Random(dialect)
    assert [q.id for q in QUESTIONS if not is_read_back(q, dialect, rng)] == []


@pytest.mark.parametrize("dialect", DIALECTS)
def test_damaged_calls_go_through_as_text_or_calls(dialect: str) -> None:
    rng = random.Random(dialect)
    for question in QUESTIONS:
        names = {tool.name for tool in question.tools}
        for text in damaged(DIALECTS[dialect](question.calls), rng, step=5):
            pieces = parse(question.tools, text, rng)  # compares the text
            assert {name for name, _ in calls_in(pieces)} <= names


def test_reference_calls_are_valid() -> None:
    for question in QUESTIONS:
        tools = {tool.name: tool for tool in question.tools}
        for name, arguments in question.calls:
            assert tools[name].problem(arguments) is None


names = st.text("abcdefgh_", min_size=1, max_size=6)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=12)
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
calls = st.lists(
    st.tuples(st.sampled_from(["a", "a.b", "a-b"]), st.dictionaries(names, values, max_size=3)),
    min_size=1,
    max_size=3,
)


@given(
    calls=calls, dialect=st.sampled_from(sorted(DIALECTS.keys() - BARE_TEXT)), seed=st.integers()
)
@settings(deadline=None, max_examples=400)
def test_any_arguments_are_read_back(calls: list[Call], dialect: str, seed: int) -> None:
    tools = [Tool(name=name, parameters={"type": "object"}) for name in ("a", "a.b", "a-b")]
    pieces = parse(tools, DIALECTS[dialect](calls), random.Random(seed))
    assert calls_in(pieces) == calls
