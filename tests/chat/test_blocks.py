from __future__ import annotations

import pytest

from edgekit.chat.blocks import LONG_CHARS, Block, BlockSplitter


def blocks(text: str) -> list[tuple[str, str, bool]]:
    """Kind, text and gap of every block, however the text comes in pieces."""
    whole = BlockSplitter()
    found = whole.push(text) + whole.finish()
    single = BlockSplitter()
    one_by_one = [block for char in text for block in single.push(char)] + single.finish()
    assert one_by_one == found
    return [(block.kind, block.text, block.has_gap) for block in found]


def texts(text: str) -> list[str]:
    return [found for _, found, _ in blocks(text)]


def test_a_blank_line_ends_a_paragraph() -> None:
    assert blocks("a\nb\n\n\nc") == [("text", "a\nb", False), ("text", "c", True)]


def test_a_fence_is_given_line_by_line() -> None:
    assert blocks("a\n```py\nx\n\ny\n```\nb") == [
        ("text", "a", False), ("fence", "py", False), ("code", "x", False), ("code", "", False),
        ("code", "y", False), ("end", "", False), ("text", "b", False),
    ]  # fmt: skip


@pytest.mark.parametrize("inner", ["```", "~~~", "`````x", "# a", "- a"])
def test_a_fence_ends_at_its_own_kind_only(inner: str) -> None:
    kinds = [kind for kind, _, _ in blocks(f"````\n{inner}\n````")]
    assert kinds == ["fence", "code", "end"]


def test_headings_and_rules_stand_for_themselves() -> None:
    assert texts("# a\nb\n## c\n---\nd") == ["# a", "b", "## c", "---", "d"]


@pytest.mark.parametrize("mark", ["-", "*", "+", "1.", "2)"])
def test_each_item_of_a_list_is_a_block(mark: str) -> None:
    assert blocks(f"a:\n{mark} b\n  c\n{mark} d\n\n{mark} e") == [
        ("text", "a:", False), ("text", f"{mark} b\n  c", False), ("text", f"{mark} d", False),
        ("text", f"{mark} e", True),
    ]  # fmt: skip


def test_what_is_indented_below_an_item_belongs_to_it() -> None:
    item = "1. a\n\n   ```py\n   x\n\n- y\n   ```\n\n   b"
    assert texts(f"{item}\n\nc") == [item, "c"]


def test_a_list_ends_at_text_after_a_blank_line() -> None:
    assert blocks("- a\n\nb") == [("text", "- a", False), ("text", "b", True)]


def test_mathematics_is_given_as_it_is() -> None:
    assert blocks("\\[\n- a\n\\]\n$$ x $$\nb") == [
        ("raw", "\\[", False), ("raw", "- a", False), ("raw", "\\]", False),
        ("raw", "$$ x $$", False), ("text", "b", False),
    ]  # fmt: skip


def test_mathematics_that_is_never_closed_ends_at_a_blank_line() -> None:
    assert blocks("\\[ a\n\n# b")[-1] == ("text", "# b", True)


def test_a_long_paragraph_is_cut_where_it_may_be() -> None:
    asked: list[str] = []

    def after_first_space(source: str) -> int:
        asked.append(source)
        return source.index(" ") + 1

    splitter = BlockSplitter(after_first_space)
    assert splitter.push("ab " * (LONG_CHARS // 3)) == []
    first = splitter.push("cd ef")
    assert [block.text for block in first] == ["ab", "ab"]
    assert all(len(source) == LONG_CHARS for source in asked)


@pytest.mark.parametrize("start", ["- ", "> ", "| a |\n|---|\n| "])
def test_only_paragraphs_are_cut(start: str) -> None:
    splitter = BlockSplitter(lambda source: 10)
    assert splitter.push(start + "word " * LONG_CHARS) == []


def test_the_tail_is_what_is_not_finished() -> None:
    splitter = BlockSplitter()
    assert splitter.tail is None
    splitter.push("a\n\nb *c")
    assert splitter.tail == Block(kind="text", text="b *c", has_gap=True)
    splitter.push("\n```py\nx = ")
    assert splitter.tail == Block(kind="code", text="x = ")
