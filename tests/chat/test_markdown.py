from __future__ import annotations

import re
from itertools import pairwise
from time import perf_counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from edgekit.chat.markdown import MarkdownStream
from edgekit.chat.render import Renderer

_SGR = re.compile(r"\x1b\[[0-9;]*m")
WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "lazy", "dogs", "so", "that", "we", "see"]


def plain(lines: list[str]) -> list[str]:
    return [_SGR.sub("", line) for line in lines]


def printed(text: str, *, width: int = 40, cuts: list[int] | None = None) -> list[str]:
    """The lines that are printed of a text that comes in pieces."""
    stream = MarkdownStream(Renderer(width))
    places = [0, *sorted(min(cut, len(text)) for cut in cuts or []), len(text)]
    lines = []
    for start, end in pairwise(places):
        lines += stream.push(text[start:end])
        assert len(stream.tail(5)) <= 5
    return lines + stream.finish()


ATOMS = st.sampled_from(
    ["**", "*", "`", "```", "```py\n", "~~~\n", "\n", "\n\n", "- ", "1. ", "  ", "# ", "> ",
     "| a | b |\n|---|---|\n", "| 1 |", "[x](", "http://a", ")", "![", "\\(", "\\)", "\\[", "$$",
     "---\n", "日本", "🙂", "👨‍👩‍👧", "👍🏽", "\t", "<b>", "&lt;", "def f():\n", "'''", "\x1b[31m",
     "a" * 50, "The quick brown fox. " * 20, "word "]
)  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(
    st.lists(ATOMS, max_size=60).map("".join),
    st.sampled_from([1, 2, 5, 20, 80]),
    st.lists(st.integers(0, 2000), max_size=20),
)
def test_any_text_gives_the_same_lines_in_any_pieces(
    text: str, width: int, cuts: list[int]
) -> None:
    lines = printed(text, width=width, cuts=cuts)
    assert lines == printed(text, width=width)
    left = "".join(plain(lines))
    assert not re.search(r"[\x00-\x08\x0a-\x1f\x7f-\x9f]", left)


def test_blocks_are_rendered() -> None:
    text = "# Head\n\nSome **bold** `code`.\n\n- one\n- two\n\n2. x\n\n> said\n\n---\n"
    assert printed(text) == [
        "\x1b[1;4mHead\x1b[0m", "", "Some \x1b[1mbold\x1b[0m \x1b[36mcode\x1b[0m.", "", "• one",
        "• two", "", "2. x", "", "\x1b[2m▌ \x1b[0m\x1b[2msaid\x1b[0m", "", "\x1b[2m───\x1b[0m",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "vector<int> x, <b>bold</b> & <br>",
        "\\( a_1 * b_1 * c \\) and $$x*y*z$$",
        "one\ntwo\n  three",
        "[text] and a_b_c and 2 * 3 * 4",
        "Title\n===",
    ],
)
def test_nothing_that_was_written_is_lost(text: str) -> None:
    shown = "\n".join(plain(printed(text, width=80)))
    assert shown.split() == text.split()


def test_the_address_of_a_link_and_of_a_picture_is_shown() -> None:
    assert plain(printed("[here](http://a.b) ![pic](http://c.d)", width=80)) == [
        "here (http://a.b) pic (http://c.d)"
    ]


def test_an_item_keeps_its_code_and_hangs() -> None:
    text = "1. run:\n\n   ```sh\n   ls -l\n   ```\n\n2. " + "word " * 9
    assert plain(printed(text, width=30)) == [
        "1. run:", "   ls -l", "", "2. word word word word word", "   word word word word",
    ]  # fmt: skip


def test_code_is_printed_line_by_line_and_whole() -> None:
    stream = MarkdownStream(Renderer(20))
    long = "x = '" + "a" * 50 + "'"
    assert plain(stream.push(f"```py\n{long}\ny")) == ["── py", long]
    assert plain(stream.tail(5)) == ["y"]
    assert plain(stream.push(" = 1\n```\n")) == ["y = 1", "──"]


def test_a_string_over_many_lines_keeps_its_colour() -> None:
    lines = printed("```py\n'''doc\nstring'''\nx = 1\n```")
    assert lines[2].count("\x1b[32m") == 1
    assert "\x1b[32m" not in lines[3]


def test_a_language_that_nobody_knows_is_plain() -> None:
    assert printed("```nonsense\nif x:\n```")[1] == "if x:"


def test_a_table_is_as_wide_as_its_cells() -> None:
    lines = plain(printed("| a | 漢字 |\n|---|---|\n| 1 | x |\n| 22 | yy |\n\nafter", width=40))
    assert lines == [" a   漢字", " ────────", " 1   x", " 22  yy", "", "after"]


@pytest.mark.parametrize("text", ["日本語の長い文章です。" * 40, "🙂 你好 naïve " * 40, "é" * 500])
def test_wide_characters_are_counted(text: str) -> None:
    assert max(cell_len(line) for line in plain(printed(text, width=41))) in (39, 40, 41)


def test_emoji_of_many_characters_are_wrapped_for_any_terminal() -> None:
    # a family is 2 or 6 cells wide, a thumb with a tone 2 or 4: 4 x 6 or 6 x 4 fit in 25
    for cluster, most in (("👨‍👩‍👧", 4), ("👍🏽", 6), ("🇩🇪", 6)):
        lines = printed(f"{cluster} " * 12, width=25)
        assert "".join(lines).count(cluster) == 12
        assert max(line.count(cluster) for line in lines) <= most


def test_what_is_open_looks_closed_while_it_is_written() -> None:
    stream = MarkdownStream(Renderer(40))
    stream.push("some **bold")
    assert stream.tail(3) == ["some \x1b[1mbold\x1b[0m"]
    stream.push("** and `co")
    assert stream.tail(3)[0].endswith("\x1b[36mco\x1b[0m")


def test_the_tail_is_cut_at_its_beginning() -> None:
    stream = MarkdownStream(Renderer(10))
    stream.push("- one two three four five")
    assert plain(stream.tail(2)) == ["  three", "  four", "  five"][-2:]
    assert stream.tail(0) == []


def test_a_new_width_counts_for_what_comes() -> None:
    renderer = Renderer(40)
    stream = MarkdownStream(renderer)
    lines = stream.push("one two three four\n\n")
    renderer.width = 10
    lines += stream.push("one two three four\n\n")
    assert lines == ["one two three four", "", "one two", "three four"]


def test_a_long_paragraph_is_printed_on_the_way_as_if_it_came_at_once() -> None:
    text = " ".join(f"{WORDS[n % 12]} **{WORDS[n % 7]}**" for n in range(200))
    stream = MarkdownStream(Renderer(80))
    early = stream.push(text)
    lines = early + stream.finish()
    assert len(early) > 15
    assert lines == Renderer(80).markdown(text)


@pytest.mark.parametrize(
    "text",
    [
        " ".join(WORDS * 600),
        "\n\n".join([" ".join(WORDS * 5)] * 120),
        "- " + "\n- ".join([" ".join(WORDS)] * 500),
        "```python\n" + "x = f(1, 'abc')  # note\n" * 1600,
        "```js\n" + "var a = 1; " * 3500,
        "a" * 40_000,
    ],
    ids=["wall", "paragraphs", "list", "code", "one line of code", "one word"],
)
def test_the_cost_grows_with_the_length_and_not_with_its_square(text: str) -> None:
    def cost_s(part: str) -> float:
        stream, started = MarkdownStream(Renderer(80)), perf_counter()
        for at in range(0, len(part), 40):
            stream.push(part[at : at + 40])
            stream.tail(18)
        return perf_counter() - started

    # five times as long: five times the cost, and not twenty-five times
    assert cost_s(text[:15_000]) < 12 * min(cost_s(text[:3000]) for _ in range(2)) + 0.2
