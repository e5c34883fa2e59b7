"""An answer over a scripted session: what is shown, and what text does to the tokens."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from edgekit.models.convention import list_conventions
from edgekit.runtime.answer import Answer, Reading, closing_ids
from edgekit.runtime.generate import Generation
from edgekit.runtime.sampling import Sampler, Sampling
from edgekit.runtime.slot import Slot
from edgekit.runtime.split import Splitter
from edgekit.runtime.steer import Constraint
from edgekit.runtime.streamed import StreamedGeneration
from edgekit.runtime.structure import Structure, StructureCompiler
from edgekit.runtime.tools import read_tools

if TYPE_CHECKING:
    from edgekit.backends.base import Logits
    from edgekit.runtime.load import LoadedEngine

    MakeEngine = Callable[..., LoadedEngine]

NEMOTRON = list_conventions()["nemotron-v1"]
WEATHER = read_tools(
    [
        {
            "name": "weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
            },
        }
    ]
)
CALL = '<TOOLCALL>[{"name": "weather", "arguments": {"city": "Paris"}}]</TOOLCALL>'


def answer(engine: LoadedEngine, *, max_new_tokens: int | None = None, **reading: Any) -> Answer:
    reading.setdefault("convention", NEMOTRON)
    generation = Generation(
        Slot(engine.session),
        [1, 5, 6],
        sampler=Sampler(Sampling()),
        stop_ids=engine.tokenizer.stop_ids,
        max_new_tokens=max_new_tokens,
    )
    return Answer(generation, engine.tokenizer, Reading(**reading))


def kinds(made: Answer) -> list[tuple[str, str]]:
    """Neighbouring pieces of a kind joined."""
    joined: list[tuple[str, str]] = []
    for piece in made:
        if joined and joined[-1][0] == piece.kind and piece.kind != "call":
            joined[-1] = (piece.kind, joined[-1][1] + piece.text)
        else:
            joined.append((piece.kind, piece.text))
    return joined


def test_thinking_and_answer_are_told_apart(make_engine: MakeEngine) -> None:
    made = answer(make_engine("<think>\nhm, so\n</think>\n\nIt is so."))
    pieces = kinds(made)
    assert "".join(text for _, text in pieces) == "<think>\nhm, so\n</think>\n\nIt is so."
    assert made.thinking.strip() == "hm, so"
    assert made.text == "It is so."
    assert made.thinking_tokens > 3
    assert not made.was_cut


def test_without_a_convention_tags_are_text(make_engine: MakeEngine) -> None:
    made = answer(make_engine("<think>x</think>y"), convention=None)
    assert kinds(made) == [("answer", "<think>x</think>y")]
    assert (made.text, made.thinking, made.thinking_tokens) == ("<think>x</think>y", "", 0)


def test_a_model_that_goes_on_thinking_starts_inside(make_engine: MakeEngine) -> None:
    made = answer(make_engine("hm</think>\n\nyes"), starts_inside=True)
    assert [kind for kind, _ in kinds(made)] == ["thinking", "tag", "answer"]
    assert (made.thinking, made.text) == ("hm", "yes")


def test_a_lost_opening_tag_is_noticed(make_engine: MakeEngine) -> None:
    made = answer(make_engine("hm, so\n</think>\n\nIt is so."))
    assert ("retype", "") in kinds(made)
    assert (made.thinking.strip(), made.text) == ("hm, so", "It is so.")


def test_thinking_without_end_is_no_answer(make_engine: MakeEngine) -> None:
    made = answer(make_engine("<think>\nhm hm hm"), max_new_tokens=9)
    list(made)
    assert made.text == ""
    assert made.thinking


def test_a_budget_ends_thinking_and_the_answer_follows(make_engine: MakeEngine) -> None:
    engine = make_engine("<think>\n" + "hm " * 20, "It is so.")
    # the script goes on after its first text: what the model says is not what counts here
    made = answer(engine, thinking_limit=12, max_new_tokens=120)
    list(made)
    assert made.was_cut
    assert made.generation.new_ids[12 : 12 + len(closing_ids(engine.tokenizer, NEMOTRON))] == (
        closing_ids(engine.tokenizer, NEMOTRON)
    )
    assert made.thinking.rstrip().endswith(NEMOTRON.closing)
    way_out = f"\n\n{NEMOTRON.closing}\n</think>"  # the space after it is not thinking
    ids = engine.tokenizer.encode(way_out, add_special=False)
    assert made.thinking_tokens == 12 + len(ids)
    assert "hm hm" in made.text
    assert "</think>" not in made.text


class Streams:
    """The scripted session as a backend that samples by itself and shows no logits."""

    def __init__(self, engine: LoadedEngine) -> None:
        self.context_tokens = engine.session.context_tokens
        self.num_requests = 0
        self._session = engine.session

    def stream(
        self, token_ids: Sequence[int], *, sampling: Mapping[str, Any], max_new_tokens: int
    ) -> Generator[int]:
        self.num_requests += 1
        self._session.truncate(0, 0)
        token = int(self._session.prefill(0, token_ids)[0].argmax())
        for _ in range(max_new_tokens):
            yield token
            token = int(self._session.decode([0], [token])[0].argmax())

    def close(self) -> None: ...


def test_a_backend_without_logits_has_the_same_budget_by_stopping_and_going_on(
    make_engine: MakeEngine,
) -> None:
    says = "<think>\n" + "hm " * 20 + "</think>\n\nIt is so."
    own = answer(make_engine(says), thinking_limit=12, max_new_tokens=200)
    list(own)
    engine = make_engine(says)
    streams = Streams(engine)
    tokens = StreamedGeneration(
        streams, [1, 5, 6], sampling=Sampling(), max_new_tokens=200,
        stop_ids=engine.tokenizer.stop_ids,
    )  # fmt: skip
    streamed = Answer(tokens, engine.tokenizer, Reading(convention=NEMOTRON, thinking_limit=12))
    list(streamed)
    assert streams.num_requests == 2
    assert streamed.was_cut
    way_out = 12 + len(closing_ids(engine.tokenizer, NEMOTRON))
    assert streamed.generation.new_ids[:way_out] == own.generation.new_ids[:way_out]
    assert streamed.text == own.text
    assert streamed.text == "It is so."


def test_a_second_closing_tag_after_the_cut_does_not_leak(make_engine: MakeEngine) -> None:
    says = "<think>\nso many things to say, x = 3.\n</think>\n\nIt is 3."
    engine = make_engine(says)
    made = answer(engine, thinking_limit=6, max_new_tokens=200)
    list(made)
    assert made.was_cut
    assert made.text == "It is 3."
    assert "x = 3." in made.thinking


def test_answer_now_is_the_same_path(make_engine: MakeEngine) -> None:
    made = answer(make_engine("<think>\n" + "hm " * 30), max_new_tokens=150)
    for number, _ in enumerate(made):
        if number == 3:
            made.answer_now()
    assert made.was_cut
    assert made.thinking.rstrip().endswith(NEMOTRON.closing)


def test_answer_now_while_answering_changes_nothing(make_engine: MakeEngine) -> None:
    made = answer(make_engine("<think>a</think>bcdefg"))
    for piece in made:
        if piece.kind == "answer":
            made.answer_now()
    assert (made.text, made.was_cut) == ("bcdefg", False)


def test_a_mode_without_thinking_cuts_a_block_at_once(make_engine: MakeEngine) -> None:
    made = answer(make_engine("<think>\nhm hm hm hm"), thinking_limit=0, max_new_tokens=100)
    list(made)
    assert made.was_cut
    assert made.thinking_tokens <= len(closing_ids(make_engine("x").tokenizer, NEMOTRON)) + 9


def test_stopping_keeps_what_was_said_and_gives_no_reason(make_engine: MakeEngine) -> None:
    made = answer(make_engine("<think>a</think>b c d e f"))
    for piece in made:
        if piece.kind == "answer":
            made.stop()
    assert made.text
    assert made.generation.finish_reason is None
    assert len(made.text) < len("b c d e f")


def test_a_stop_string_counts_in_the_answer_only(make_engine: MakeEngine) -> None:
    made = answer(make_engine("<think>one END two</think>three END four"), stop=("END",))
    list(made)
    assert made.text == "three "
    assert made.generation.finish_reason == "stop"
    assert made.thinking == "one END two"


def test_a_call_is_taken_out_of_the_text(make_engine: MakeEngine) -> None:
    made = answer(make_engine(f"<think>which?</think>Let me see. {CALL}"), tools=WEATHER)
    list(made)
    assert made.text.strip() == "Let me see."
    [call] = made.tool_calls
    assert (call.name, call.arguments, call.problem) == ("weather", {"city": "Paris"}, None)
    data = made.to_dict()
    assert data["tool_calls"][0]["function"]["arguments"] == '{"city": "Paris"}'
    assert data["thinking"] == "which?"


def test_no_call_is_made_from_what_was_only_thought(make_engine: MakeEngine) -> None:
    made = answer(make_engine(f"<think>maybe {CALL}</think>No."), tools=WEATHER)
    list(made)
    assert (made.tool_calls, made.text) == ([], "No.")


def test_a_call_before_a_stray_closing_tag_was_thought(make_engine: MakeEngine) -> None:
    made = answer(make_engine(f"maybe {CALL} or not</think>No."), tools=WEATHER)
    list(made)
    assert (made.tool_calls, made.text) == ([], "No.")


def test_a_call_does_not_reach_over_a_thinking_block(make_engine: MakeEngine) -> None:
    half = CALL.index('"arguments"')
    says = f"<think>a</think>{CALL[:half]}\n<think>b</think>{CALL[half:]}"
    made = answer(make_engine(says), tools=WEATHER)
    list(made)
    assert made.tool_calls == []


class Shout:
    """A constraint: capital letters of one token each, then the end of the turn."""

    def __init__(self, allowed: Sequence[int], stop: int) -> None:
        self.num_taken = 0
        self._allowed, self._stop = list(allowed), stop

    def mask(self, logits: Logits) -> Logits:
        masked = np.full_like(logits, -np.inf)
        keep = self._allowed if self.num_taken < 4 else [self._stop]
        masked[keep] = logits[keep]
        return masked

    def accept(self, token_id: int) -> None:
        self.num_taken += 1

    def forced(self) -> list[int]:
        return []


@pytest.mark.parametrize("starts_inside", [True, False])
def test_a_structure_holds_for_the_answer_and_not_for_thinking(
    make_engine: MakeEngine, starts_inside: bool
) -> None:
    engine = make_engine("hm, so</think>\nlower case letters" if starts_inside else "lower case")
    letters = [engine.tokenizer.encode(c, add_special=False)[0] for c in "ABC"]
    [stop] = engine.tokenizer.encode("<|im_end|>", add_special=False)
    made = answer(engine, starts_inside=starts_inside, structure=lambda room: Shout(letters, stop))
    list(made)
    assert len(made.text) == 4
    assert set(made.text) <= set("ABC")
    assert made.thinking == ("hm, so" if starts_inside else "")
    assert made.generation.finish_reason == "stop"


def test_no_token_ends_a_block_and_begins_the_answer_where_a_structure_waits(
    make_engine: MakeEngine,
) -> None:
    engine = make_engine("hm</think>x")
    close = engine.tokenizer.encode(">", add_special=False)[0]
    [stop] = engine.tokenizer.encode("<|im_end|>", add_special=False)
    letters = [engine.tokenizer.encode(c, add_special=False)[0] for c in "ABC"]
    made = answer(
        engine,
        starts_inside=True,
        structure=lambda room: Shout(letters, stop),
        crossing_ids=np.array([close]),  # so the script's own end of the tag is not allowed
        max_new_tokens=8,
    )
    list(made)
    assert "</think>" not in engine.tokenizer.decode(made.generation.new_ids)


def test_a_second_block_has_no_budget_of_its_own(make_engine: MakeEngine) -> None:
    says = "<think>\n" + "hm " * 8 + "</think>ok\n<think>" + "ho " * 60 + "</think>done"
    made = answer(make_engine(says), thinking_limit=30, max_new_tokens=400)
    list(made)
    # what is left of the budget when the second block begins is nothing: it is led out at once
    assert made.thinking.count(NEMOTRON.closing) == 2
    assert made.text.startswith("ok")


def test_answer_now_counts_for_the_block_at_hand(make_engine: MakeEngine) -> None:
    says = "<think>\n" + "hm " * 30 + "</think>ok\n<think>" + "ho " * 30 + "</think>done"
    made = answer(make_engine(says), max_new_tokens=500)
    num_blocks = 0
    for piece in made:
        num_blocks += piece.kind == "tag" and "<think>" in piece.text
        if num_blocks == 1 and made.is_thinking:
            made.answer_now()
    assert made.thinking.count(NEMOTRON.closing) == 1
    assert made.thinking.count("ho ho") == 15


def test_a_tag_is_text_where_the_prompt_has_closed_the_block(make_engine: MakeEngine) -> None:
    says = "\n\nWrite </think> to end it."
    made = answer(make_engine(says), starts_after=True, thinking_limit=0)
    list(made)
    assert (made.text, made.thinking) == ("Write </think> to end it.", "")
    assert made.thinking_tokens == 0


def test_tokens_of_a_lost_block_are_thinking_too(make_engine: MakeEngine) -> None:
    made = answer(make_engine("hm, so\n</think>\n\nIt is so."))
    list(made)
    assert made.thinking_tokens > 3
    plain = answer(make_engine("It is so."))
    list(plain)
    assert plain.thinking_tokens == 0


@pytest.mark.parametrize("max_new_tokens", range(118, 160, 3))
def test_a_structure_after_a_cut_has_what_the_way_out_leaves(
    make_engine: MakeEngine, max_new_tokens: int
) -> None:
    engine = make_engine("<think>\n" + "hm " * 200)
    schema = {
        "type": "object", "properties": {"s": {"type": "string"}}, "required": ["s"],
        "additionalProperties": False,
    }  # fmt: skip
    compiler = StructureCompiler(engine.tokenizer, vocab_size=engine.session.vocab_size)

    def structure(room: int) -> Constraint:
        constraint = compiler.constraint(Structure(json_schema=schema))
        constraint.end_within(room)
        return constraint

    made = answer(
        engine, starts_inside=True, thinking_limit=5, max_new_tokens=max_new_tokens,
        structure=structure,
    )  # fmt: skip
    list(made)
    assert made.was_cut
    assert set(json.loads(made.text)) == {"s"}


def test_what_is_read_while_it_comes_loses_nothing(make_engine: MakeEngine) -> None:
    splitter = Splitter("<think>", "</think>")
    is_over = threading.Event()

    def look() -> None:
        while not is_over.is_set():
            assert splitter.thinking is not None
            assert splitter.answer is not None

    looker = threading.Thread(target=look)
    looker.start()
    text = "<think>" + "abcde fghij " * 4000 + "</think>" + "klmno " * 4000
    try:
        for at in range(0, len(text), 4):
            splitter.push(text[at : at + 4])
        splitter.finish()
    finally:
        is_over.set()
        looker.join()
    assert splitter.thinking.strip() == ("abcde fghij " * 4000).strip()
    assert splitter.answer.strip() == ("klmno " * 4000).strip()


def test_stopping_ends_a_long_prefill(make_engine: MakeEngine) -> None:
    engine = make_engine("one")
    generation = Generation(
        Slot(engine.session), [5] * 100, sampler=Sampler(Sampling()), chunk_tokens=10
    )
    made = Answer(generation, engine.tokenizer, Reading())
    made.stop()
    assert list(made) == []
    assert generation.new_ids == []
    assert engine.session.length(0) == 0
