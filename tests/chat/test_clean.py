from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.chat.clean import clean_line, clean_text


@given(st.text())
def test_nothing_is_left_that_steers_a_terminal(text: str) -> None:
    kinds = {char: unicodedata.category(char) for char in clean_text(text)}
    assert [char for char, kind in kinds.items() if kind in ("Cc", "Cs")] in (
        [], ["\n"], ["\t"], ["\t", "\n"], ["\n", "\t"],
    )  # fmt: skip
    assert not set(kinds) & set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "[31mred[0m"),
        ("\x1b]0;title\x07", "]0;title"),
        ("\x9b2J", "2J"),
        ("a\r\nb", "a\nb"),
        ("\u202eabc", "abc"),
        ("\ud800", "\ufffd"),
        ("naïve 你好 🙂 👨‍👩‍👧", "naïve 你好 🙂 👨‍👩‍👧"),
    ],
)
def test_what_is_no_text_goes(text: str, shown: str) -> None:
    assert clean_text(text) == shown


def test_a_line_has_no_line_breaks() -> None:
    assert clean_line(" a\n\tb\u2028c ") == "a b c"
