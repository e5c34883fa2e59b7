from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.runtime.tools.literal import MAX_DEPTH, read_arguments, read_literal

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(value=values)
@settings(deadline=None, max_examples=300)
def test_json_and_python_are_read_back(value: Any) -> None:
    assert read_literal(json.dumps(value)) == value
    assert read_literal(json.dumps(value, ensure_ascii=False, indent=2)) == value
    assert read_literal(repr(value)) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (" [1, -2.5, 1e3, .5, 5., +1,] ", [1, -2.5, 1000.0, 0.5, 5.0, 1]),
        ("{'a': True, \"b\": null, 'c': (1, 'x'),}", {"a": True, "b": None, "c": [1, "x"]}),
        ("()", []),
        ("(1)", 1),
        ("(1,)", [1]),
        ("([1, 2])", [1, 2]),
        ("'it\\'s'", "it's"),
        ('"a\nb"', "a\nb"),
        (r'"\d \u00e9 \x41 \U0001F600 \/ \\"', "\\d é A 😀 / \\"),
        (r'"\ud83d\ude00"', "😀"),
        (r'"\ud83d!"', "\N{REPLACEMENT CHARACTER}!"),
        (r'"\U00110000"', r"\U00110000"),
        ("'a\\\nb'", "ab"),
        ('{"a": 1, "a": 2}', {"a": 2}),
        ("9007199254740993", 9007199254740993),
        ("-0", 0),
    ],
)
def test_what_lies_between_json_and_python_is_read(text: str, value: Any) -> None:
    assert read_literal(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "", "word", "'open", "[1", "[1 2]", "[,]", "{1: 2}", "{'a'}", "{'a' 1}", "{a: 1}", "NaN",
        "Infinity", "1e999", "007", "1_0", "1+1", "--1", "1j", "f'x'", "b'x'", "'a' 'b'", "[] []",
        "a.b", "f(1)", "[*a]", "{**a}", "x=1", "0x10", "9" * 5000, "[" * (MAX_DEPTH + 1),
        "[" * 50 + "]" * 49, "lambda: 1", "not True", "...",
    ],
)  # fmt: skip
def test_what_is_no_literal_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"character|beyond|deep|digits"):
        read_literal(text)


def test_nesting_up_to_the_limit_is_read() -> None:
    text = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert json.dumps(read_literal(text)) == text


@pytest.mark.parametrize(
    ("text", "positional", "named"),
    [
        ("()", [], {}),
        ("( 1 , 'two', three = [3], )", [1, "two"], {"three": [3]}),
        ("(None, from=True)", [None], {"from": True}),
        ("(größe=1)", [], {"größe": 1}),
    ],
)
def test_arguments_are_read(text: str, positional: list[Any], named: dict[str, Any]) -> None:
    assert read_arguments(text) == (positional, named)


@pytest.mark.parametrize(
    "text", ["", "(", "(a)", "(a=)", "(a=1 b=2)", "(a=1, 2)", "(a=1, a=2)", "(1) + 2", "(,)"]
)
def test_what_is_no_list_of_arguments_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"character|twice|after"):
        read_arguments(text)
