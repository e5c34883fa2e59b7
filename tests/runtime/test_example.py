from __future__ import annotations

import re

import pytest

from edgekit.runtime.example import example_of


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("", ""),
        ("abc", "abc"),
        ("^abc$", "abc"),
        ("b+c", "bc"),
        ("a*b?c{2}d{3,}", "ccddd"),
        ("[a-z]cole", "acole"),
        ("[^a-z]", "0"),
        ("[]x]", "]"),
        ("[x-z]{2}", "xx"),
        ("[\\d_-]+", "0"),
        ("[\\x41-\\x43]", "A"),
        ("\\d{3}-\\d{4}", "000-0000"),
        ("\\w+@\\w+\\.(com|org|io)", "a@a.io"),
        ("(?:foo|ab)-(?P<n>x)", "ab-x"),
        ("(?!a)(?<=b)c", "c"),
        ("\\u0041\\x42\\n\\bx", "AB\nx"),
        ("\\p{Letter}cole", "acole"),
        ("(?i)abc", "abc"),
        ("a{0}b", "b"),
        ("a{x}", "a{x}"),
        ("(abc|)", ""),
    ],
)
def test_the_shortest_text_is_found(pattern: str, text: str) -> None:
    assert example_of(pattern) == text
    if "\\p" not in pattern and "?" not in pattern:
        assert re.search(pattern, text)


@pytest.mark.parametrize("pattern", ["(", "[", "[a", "a\\", "(" * 100_000, "[a-", "\\x{ffffffff}"])
def test_a_broken_pattern_has_none(pattern: str) -> None:
    assert len(example_of(pattern)) <= 2000


def test_a_long_one_is_cut() -> None:
    assert len(example_of("((a{1000}){1000}){1000}")) == 2000
