from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.runtime.piece import Piece
from edgekit.runtime.split import Splitter

OPEN, CLOSE = "<think>", "</think>"
Spans = list[tuple[str, str]]


def merged(spans: Iterable[tuple[str, str]]) -> Spans:
    """Neighbours of one kind joined, empty ones left out: what must not depend on the chunks."""
    out: Spans = []
    for kind, text in spans:
        if kind == "retype":
            out.append((kind, ""))
        elif text and out and out[-1][0] == kind:
            out[-1] = (kind, out[-1][1] + text)
        elif text:
            out.append((kind, text))
    return out


def split(chunks: Iterable[str], *, starts_inside: bool = False) -> Spans:
    splitter = Splitter(OPEN, CLOSE, starts_inside=starts_inside)
    pieces = [piece for chunk in chunks for piece in splitter.push(chunk)]
    pieces += splitter.finish()
    assert splitter.finish() == []
    assert splitter.held == ""
    assert (splitter.thinking, splitter.answer) == settled(pieces)
    return merged((piece.kind, piece.text) for piece in pieces)


def settled(pieces: Sequence[Piece]) -> tuple[str, str]:
    """Thinking and answer as a reader of the pieces puts them together."""
    thinking, answer, since_tag = "", "", ""
    for piece in pieces:
        if piece.kind == "thinking":
            thinking += piece.text
        elif piece.kind == "answer":
            since_tag += piece.text
        elif piece.kind == "tag":
            answer, since_tag = answer + since_tag, ""
        else:
            thinking, since_tag = thinking + since_tag, ""
    return thinking, answer + since_tag


def reference(text: str, *, starts_inside: bool = False, cut: int | None = None) -> Spans:
    """The same from the whole text, looking back as far as it likes."""
    spans: Spans = [("tag", "")] if starts_inside else []
    is_thinking, is_first = starts_inside, True
    nested, owed, literal_opens, start, at = 0, 0 if starts_inside else 1, 0, 0, 0
    while at < len(text):
        tag = next((tag for tag in (OPEN, CLOSE) if text.startswith(tag, at)), "")
        since = text[start:at] if tag else ""
        lines = since.split("\n")
        is_fenced = sum(line.lstrip().startswith("```") for line in lines) % 2 == 1
        kind = "thinking" if is_thinking else "answer"
        counts = False
        if tag and is_thinking:
            counts = tag == CLOSE or (is_first and starts_inside and not since.strip())
            if tag == OPEN and not counts:
                nested += 1
            if tag == CLOSE:
                is_cut = cut is not None and cut < at + len(tag)
                is_thinking, owed = False, nested + is_cut
                cut = None if is_cut else cut
        elif tag and not is_fenced:
            if tag == OPEN:
                counts = is_thinking = not lines[-1].strip()
                if counts:
                    owed = nested = 0
                else:
                    literal_opens += 1
            elif not since.strip():
                counts, owed = True, max(0, owed - 1)
            elif literal_opens:
                literal_opens -= 1
            elif owed:
                counts, owed = True, owed - 1
                spans.append(("retype", ""))
        if counts:
            spans.append(("tag", tag))
            start, literal_opens, is_first = at + len(tag), 0, False
        else:
            spans.append((kind, tag or text[at]))
        at += len(tag) or 1
    return merged(with_space_in_tags(merged(spans), starts_inside))


def with_space_in_tags(spans: Spans, starts_inside: bool) -> Spans:
    """Whitespace around each tag moved into it."""
    out: Spans = [("tag", "")] if starts_inside else []
    for kind, text in spans:
        if kind == "tag":
            last = next((i for i in (-1, -2) if len(out) >= -i and out[i][0] != "retype"), None)
            if last is not None and out[last][0] in ("thinking", "answer"):
                solid = out[last][1].rstrip()
                text = out[last][1][len(solid) :] + text
                out[last] = (out[last][0], solid)
        elif kind != "retype" and out and out[-1][0] == "tag":
            solid = text.lstrip()
            out[-1] = ("tag", out[-1][1] + text[: len(text) - len(solid)])
            text = solid
        out.append((kind, text))
    return out


def cut_up(text: str, at: Iterable[int]) -> list[str]:
    places = [0, *sorted(at), len(text)]
    return [text[a:b] for a, b in pairwise(places)]


PARTS = [
    OPEN, CLOSE, OPEN, CLOSE, "<", "</", "<th", "ink>", "think>", "/think>", "<<", "</think",
    "```", "``", "`", "\n```", "```\n", "\n", " ", "\n\n", "\t", "\u3000", "\r\n", "a", "word ",
    ".", "你好", "😀", "\ud800", "\udfff", "e\u0301", ">", "/", "<think></think>",
]  # fmt: skip
texts = st.lists(st.sampled_from(PARTS), max_size=24).map("".join)


@given(text=texts, starts_inside=st.booleans(), data=st.data())
@settings(deadline=None, max_examples=600)
def test_any_text_in_any_chunks_is_split_as_the_whole(
    text: str, starts_inside: bool, data: st.DataObject
) -> None:
    places = data.draw(st.lists(st.integers(0, len(text)), max_size=12))
    expected = reference(text, starts_inside=starts_inside)
    assert split(cut_up(text, places), starts_inside=starts_inside) == expected
    assert split(text, starts_inside=starts_inside) == expected  # one by one
    assert "".join(part for _, part in expected) == text


@given(before=texts, after=texts, starts_inside=st.booleans())
@settings(deadline=None, max_examples=300)
def test_after_a_cut_one_more_close_tag_belongs_to_the_thinking(
    before: str, after: str, starts_inside: bool
) -> None:
    splitter = Splitter(OPEN, CLOSE, starts_inside=starts_inside)
    pieces = splitter.push(before)
    cut = len(before) if splitter.is_thinking else None
    if splitter.is_thinking:
        splitter.cut()
    pieces += [*splitter.push(after), *splitter.finish()]
    expected = reference(before + after, starts_inside=starts_inside, cut=cut)
    assert merged((piece.kind, piece.text) for piece in pieces) == expected


@given(text=texts, starts_inside=st.booleans())
@settings(deadline=None, max_examples=300)
def test_only_whitespace_and_the_beginning_of_a_tag_are_held(
    text: str, starts_inside: bool
) -> None:
    splitter = Splitter(OPEN, CLOSE, starts_inside=starts_inside)
    for character in text:
        splitter.push(character)
        rest = splitter.held.lstrip()
        assert any(tag.startswith(rest) and tag != rest for tag in (OPEN, CLOSE))


@pytest.mark.parametrize("pieces", ["<|a b|> x <|/a b|> y", "\n<|a b c <|/a \n<|a b|>"])
def test_tags_may_hold_spaces(pieces: str) -> None:
    whole = Splitter("<|a b|>", "<|/a b|>")
    expected = [*whole.push(pieces), *whole.finish()]
    each = Splitter("<|a b|>", "<|/a b|>")
    got = [piece for character in pieces for piece in each.push(character)] + each.finish()
    assert merged((p.kind, p.text) for p in got) == merged((p.kind, p.text) for p in expected)


def test_a_tag_of_one_character_is_found() -> None:
    splitter = Splitter("◁", "▷")
    got = [*splitter.push("◁why▷ so"), *splitter.finish()]
    assert [(p.kind, p.text) for p in got] == [
        ("tag", "◁"), ("thinking", "why"), ("tag", "▷ "), ("answer", "so"),
    ]  # fmt: skip


def thinking_and_answer(text: str, *, starts_inside: bool = False) -> tuple[str, str]:
    splitter = Splitter(OPEN, CLOSE, starts_inside=starts_inside)
    for character in text:
        splitter.push(character)
    splitter.finish()
    return splitter.thinking, splitter.answer


@pytest.mark.parametrize(
    ("text", "thinking", "answer"),
    [
        ("<think>why</think>so", "why", "so"),
        ("<think>\nwhy\n</think>\n\nso\n", "why", "so\n"),
        ("\n\n<think>why</think>so", "why", "so"),
        ("no thinking", "", "no thinking"),
        ("  no thinking", "", "  no thinking"),
        ("", "", ""),
    ],
)
def test_whitespace_around_tags_is_neither_thinking_nor_answer(
    text: str, thinking: str, answer: str
) -> None:
    assert thinking_and_answer(text) == (thinking, answer)


def test_a_tag_cut_over_chunks_is_found() -> None:
    assert split(["<thi", "nk>why</", "thin", "k>so"]) == [
        ("tag", OPEN), ("thinking", "why"), ("tag", CLOSE), ("answer", "so"),
    ]  # fmt: skip


def test_only_a_close_tag_makes_everything_before_it_thinking() -> None:
    assert split(["why ", "not\n", "</think>\n", "so"]) == [
        ("answer", "why not"), ("retype", ""), ("tag", "\n</think>\n"), ("answer", "so"),
    ]  # fmt: skip


def test_the_prompt_may_end_with_the_open_tag() -> None:
    assert thinking_and_answer("why</think>so", starts_inside=True) == ("why", "so")


def test_an_open_tag_that_repeats_the_one_of_the_prompt_is_only_a_tag() -> None:
    text = "\n<think>\nwhy</think>so </think> on"
    assert thinking_and_answer(text, starts_inside=True) == ("why", "so </think> on")


def test_thinking_that_is_never_closed_leaves_no_answer() -> None:
    assert thinking_and_answer("<think>on and on </thi") == ("on and on </thi", "")
    assert thinking_and_answer("on and on\n", starts_inside=True) == ("on and on\n", "")


@pytest.mark.parametrize("text", ["<think></think>so", "<think>\n\n</think>\n\nso"])
def test_an_empty_block_is_empty_thinking(text: str) -> None:
    assert thinking_and_answer(text) == ("", "so")


def test_a_nested_block_ends_with_its_second_close_tag() -> None:
    assert split("<think>a <think>b</think> c</think>so") == [
        ("tag", OPEN), ("thinking", "a <think>b"), ("tag", CLOSE + " "),
        ("answer", "c"), ("retype", ""), ("tag", CLOSE), ("answer", "so"),
    ]  # fmt: skip


def test_an_open_tag_without_its_close_tag_inside_a_block_changes_nothing() -> None:
    assert thinking_and_answer("<think><think>why</think>so") == ("<think>why", "so")


def test_a_second_close_tag_at_once_is_a_tag() -> None:
    assert split("<think>why</think>\n</think>\nso") == [
        ("tag", OPEN), ("thinking", "why"), ("tag", "</think>\n</think>\n"), ("answer", "so"),
    ]  # fmt: skip


def test_a_close_tag_that_is_not_owed_is_answer() -> None:
    answer = "it ends with </think>, which closes it"
    assert thinking_and_answer(f"<think>why</think>{answer}") == ("why", answer)


def test_an_answer_that_names_both_tags_keeps_them() -> None:
    answer = "Between <think> and </think> it thinks."
    assert thinking_and_answer(answer) == ("", answer)


def test_a_budget_cut_leaves_no_close_tag_in_the_answer() -> None:
    splitter = Splitter(OPEN, CLOSE)
    pieces = splitter.push("<think>on and on")
    splitter.cut()
    pieces += splitter.push("\nI must answer now.\n</think>\n\n")
    pieces += splitter.push("and on.\n</think>\n\nso</think>")
    pieces += splitter.finish()
    assert settled(pieces) == ("on and on\nI must answer now.and on.", "so</think>")


def test_a_cut_in_the_middle_of_the_close_tag_ends_the_thinking_once() -> None:
    splitter = Splitter(OPEN, CLOSE, starts_inside=True)
    splitter.push("on</thin")
    splitter.cut()
    splitter.push("\n</think>so")
    assert (splitter.thinking, splitter.answer) == ("on</thin", "so")


@pytest.mark.parametrize("between", ["so\n", "so\n\n  ", ""])
def test_an_open_tag_first_in_a_line_begins_another_block(between: str) -> None:
    text = f"<think>why</think>{between}<think>more</think>then"
    assert thinking_and_answer(text) == ("whymore", between.rstrip() + "then")


def test_an_open_tag_within_a_line_is_answer() -> None:
    text = "<think>why</think>write <think> first"
    assert thinking_and_answer(text) == ("why", "write <think> first")


def test_tags_in_a_fence_are_answer() -> None:
    answer = "see:\n```xml\n<think>\nx\n</think>\n```\ndone"
    assert thinking_and_answer(answer) == ("", answer)
    assert thinking_and_answer(f"<think>why</think>{answer}") == ("why", answer)


def test_backticks_within_a_line_are_no_fence() -> None:
    assert thinking_and_answer("a ``` b</think>so") == ("a ``` b", "so")


def test_after_a_fence_tags_count_again() -> None:
    assert thinking_and_answer("```\n<think>\n```\n</think>so") == ("```\n<think>\n```", "so")


def test_a_tool_call_before_the_close_tag_is_thinking() -> None:
    text = "<think>call <tool_call>{}</tool_call></think>so"
    assert thinking_and_answer(text) == ("call <tool_call>{}</tool_call>", "so")


def test_text_is_given_at_once_where_no_tag_can_come_of_it() -> None:
    splitter = Splitter(OPEN, CLOSE)
    splitter.push("<think>why</think>so")
    assert splitter.push(" a <") == [Piece(kind="answer", text=" a <")]
    assert splitter.push("thi") == [Piece(kind="answer", text="thi")]
    assert splitter.push("nk> \n") == [Piece(kind="answer", text="nk>")]
    assert splitter.held == " \n"
    assert splitter.push("</") == [Piece(kind="answer", text=" \n</")]
    assert splitter.push("\n<") == []
    assert splitter.held == "\n<"


def test_the_state_says_where_the_text_ends() -> None:
    splitter = Splitter(OPEN, CLOSE)
    seen = []
    for text in ("\n", "<think>", "why", "</think>", "so"):
        splitter.push(text)
        seen.append((splitter.state, splitter.is_thinking))
    assert seen == [
        ("start", False), ("thinking", True), ("thinking", True), ("answer", False),
        ("answer", False),
    ]  # fmt: skip


def test_a_prompt_that_ends_with_the_open_tag_is_thinking_from_the_start() -> None:
    splitter = Splitter(OPEN, CLOSE, starts_inside=True)
    assert (splitter.state, splitter.is_thinking) == ("start", True)
    splitter.push("why")
    assert (splitter.state, splitter.is_thinking) == ("thinking", True)


@pytest.mark.parametrize(
    "tags",
    [("", "b"), ("a", ""), ("<a>", "<a>"), ("a", "ab"), ("a\n", "b"), (" a", "b"), ("`", "b")],
)
def test_tags_that_cannot_be_told_apart_from_text_are_refused(tags: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match="tag"):
        Splitter(*tags)


def test_a_million_random_chunks_are_split_as_the_whole() -> None:
    rng = random.Random(20250801)
    parts = [*PARTS, *("plain words, " for _ in range(40))]
    num_chunks = 0
    for number in range(1000):
        text = "".join(rng.choices(parts, k=1200))
        chunks: list[str] = []
        at = 0
        while at < len(text):
            size = rng.choice((1, 1, 2, 3, 4, 5, 30)) if len(chunks) < 999 else len(text)
            chunks.append(text[at : at + size])
            at += size
        assert len(chunks) == 1000
        rng.shuffle(chunks)
        num_chunks += len(chunks)
        starts_inside = rng.random() < 0.5
        spans = split(chunks, starts_inside=starts_inside)
        assert "".join(part for _, part in spans) == "".join(chunks)
        if number % 25 == 0:
            assert spans == reference("".join(chunks), starts_inside=starts_inside)
    assert num_chunks == 1_000_000


@pytest.mark.parametrize("unit", ["<", "</think>", "<think>", " ", "\n", "`", "\n`", "\n<think"])
def test_a_long_adversarial_text_goes_through_unchanged(unit: str) -> None:
    text = unit * (200_000 // len(unit))
    spans = split([*text[:100_000], text[100_000:]])
    assert "".join(part for _, part in spans) == text
