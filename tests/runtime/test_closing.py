from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.runtime.closing import StringScan

VALUES = st.recursive(
    st.one_of(st.none(), st.integers(), st.text(max_size=4)),
    lambda parts: st.one_of(
        st.lists(parts, max_size=3), st.dictionaries(st.text(max_size=3), parts, max_size=3)
    ),
)


@given(value=VALUES, cuts=st.lists(st.integers(0, 60), max_size=6))
def test_a_string_is_open_or_not_however_the_text_is_cut(value: object, cuts: list[int]) -> None:
    text = json.dumps(value, ensure_ascii=False).encode()
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    scan = StringScan()
    for start, end in pairwise(places):
        scan.push(text[start:end])
    assert not scan.is_open
    assert not scan.is_escaped


@pytest.mark.parametrize(
    ("text", "is_open", "is_escaped", "is_in_word"),
    [
        (b'{"a', True, False, True),
        (b'{"a\\', True, True, False),
        (b'{"a\\"', True, False, False),
        (b'{"a\\\\"', False, False, False),
        (b"[12", False, False, True),
        (b"[12,", False, False, False),
    ],
)
def test_the_state_behind_a_text(
    text: bytes, is_open: bool, is_escaped: bool, is_in_word: bool
) -> None:
    scan = StringScan()
    scan.push(text)
    twin = scan.copy()
    scan.push(b'"')
    assert (twin.is_open, twin.is_escaped, twin.is_in_word) == (is_open, is_escaped, is_in_word)
