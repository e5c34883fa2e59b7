from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from edgekit.errors import InputError
from edgekit.models.convention import list_conventions
from edgekit.runtime.answer import closing_ids
from edgekit.runtime.chat import Chat
from edgekit.runtime.chat_options import ChatOptions
from edgekit.runtime.load import LoadedEngine

MakeEngine = Callable[..., LoadedEngine]
THINKER = "Llama-3.1-Nemotron-Nano-8B-v1"


def open_chat(engine: LoadedEngine, **options: Any) -> tuple[Chat, list[str]]:
    notes: list[str] = []
    return Chat(engine, ChatOptions(**options), notify=notes.append), notes


def ask(chat: Chat, text: str) -> str:
    answer = chat.ask(text)
    pieces = list(answer)
    chat.keep(answer)
    said = [piece.text for piece in pieces if piece.kind == "answer"]
    assert "".join(said) == answer.text
    return answer.text


def held(engine: LoadedEngine) -> str:
    """The text of what the session holds, special tokens too."""
    ids = engine.session.held[0]  # type: ignore[attr-defined]  # the session of the fixture
    return engine.tokenizer.decode(ids, skip_special=False)


def test_an_answer_is_the_text_up_to_the_end_of_turn(make_engine: MakeEngine) -> None:
    chat, _ = open_chat(make_engine("hello 🙂 world"))
    assert ask(chat, "hi") == "hello 🙂 world"


def test_the_next_question_is_asked_with_the_history(make_engine: MakeEngine) -> None:
    engine = make_engine("one", "two")
    chat, _ = open_chat(engine, system="Be kind.")
    ask(chat, "a")
    ask(chat, "b")
    assert held(engine) == (
        "<|im_start|>system\nBe kind.<|im_end|><|im_start|>user\na<|im_end|>"
        "<|im_start|>assistant\none<|im_end|><|im_start|>user\nb<|im_end|>"
        "<|im_start|>assistant\ntwo"
    )


def test_the_history_is_not_prefilled_again(make_engine: MakeEngine) -> None:
    chat, _ = open_chat(make_engine("one", "two"))
    ask(chat, "a")
    answer = chat.ask("b")
    list(answer)
    assert answer.generation.cached_tokens > 20
    assert answer.generation.prompt_tokens - answer.generation.cached_tokens < 40


def test_a_stop_string_ends_the_answer(make_engine: MakeEngine) -> None:
    chat, _ = open_chat(make_engine("hello END world"), stop=("END",))
    answer = chat.ask("hi")
    assert "".join(piece.text for piece in answer) == answer.text == "hello "
    assert answer.generation.finish_reason == "stop"


def test_a_stop_string_in_the_last_token_is_a_stop(make_engine: MakeEngine) -> None:
    chat, _ = open_chat(make_engine("ab"), stop=("b",), max_new_tokens=2)
    answer = chat.ask("hi")
    list(answer)
    assert answer.generation.finish_reason == "stop"


def test_the_token_limit_ends_the_answer(make_engine: MakeEngine) -> None:
    chat, _ = open_chat(make_engine("abcdef"), max_new_tokens=3)
    answer = chat.ask("hi")
    list(answer)
    assert (len(answer.generation.new_ids), answer.generation.finish_reason) == (3, "length")


def test_without_a_limit_an_answer_may_fill_the_context(make_engine: MakeEngine) -> None:
    chat, _ = open_chat(make_engine("hi" * 300))
    answer = chat.ask("hi")
    list(answer)
    assert answer.generation.finish_reason == "length"
    assert answer.generation.prompt_tokens + len(answer.generation.new_ids) == 600


def test_an_interrupted_answer_is_kept_as_far_as_said(make_engine: MakeEngine) -> None:
    engine = make_engine("abcdef", fail_at=3)
    chat, _ = open_chat(engine)
    answer = chat.ask("hi")
    with pytest.raises(KeyboardInterrupt):
        list(answer)
    chat.keep(answer)
    assert chat.messages[-1] == {"role": "assistant", "content": "abc"}


def test_a_question_interrupted_before_the_first_word_is_forgotten(
    make_engine: MakeEngine,
) -> None:
    chat, _ = open_chat(make_engine("abc", fail_at=0))
    answer = chat.ask("hi")
    with pytest.raises(KeyboardInterrupt):
        list(answer)
    chat.keep(answer)
    assert chat.messages == []


def test_an_empty_answer_is_kept(make_engine: MakeEngine) -> None:
    chat, _ = open_chat(make_engine(""))
    assert ask(chat, "hi") == ""
    assert len(chat.messages) == 2


def test_pruning_is_told(make_engine: MakeEngine) -> None:
    chat, notes = open_chat(
        make_engine("one", "two", "three", context_tokens=450), max_new_tokens=8
    )
    ask(chat, "a" * 180)
    ask(chat, "b" * 180)
    ask(chat, "c" * 180)
    assert notes == ["note: the context of 450 tokens is full, forgot the oldest 2 messages"]
    assert [m["content"][:1] for m in chat.messages] == ["b", "t", "c", "t"]


def test_a_question_that_does_not_fit_is_not_kept(make_engine: MakeEngine) -> None:
    chat, _ = open_chat(make_engine("one"))
    with pytest.raises(InputError, match="the context holds 600"):
        chat.ask("a" * 700)
    assert chat.messages == []


def test_reset_forgets_the_messages_but_not_the_instructions(make_engine: MakeEngine) -> None:
    engine = make_engine("one", "two")
    chat, _ = open_chat(engine, system="Be kind.")
    ask(chat, "a")
    chat.reset()
    ask(chat, "b")
    assert "one" not in held(engine)
    assert "Be kind." in held(engine)


@pytest.mark.parametrize(("think", "said"), [("off", "off"), ("on", "on"), (None, "on")])
def test_a_thinking_model_is_always_told(
    make_engine: MakeEngine, think: str | None, said: str
) -> None:
    engine = make_engine("one", model=THINKER)
    chat, _ = open_chat(engine, think=think)
    ask(chat, "a")
    assert f"system\ndetailed thinking {said}<|im_end|>" in held(engine)


def test_the_toggle_has_the_system_turn_and_the_instructions_the_users(
    make_engine: MakeEngine,
) -> None:
    engine = make_engine("one", model=THINKER)
    chat, _ = open_chat(engine, think="off", system="Be kind.")
    ask(chat, "a")
    assert "system\ndetailed thinking off<|im_end|>" in held(engine)
    assert "user\nBe kind.\n\na<|im_end|>" in held(engine)


def test_thinking_can_be_switched_between_answers(make_engine: MakeEngine) -> None:
    engine = make_engine("one", "two", "three", model=THINKER)
    chat, _ = open_chat(engine, think="off")
    ask(chat, "a")
    assert "assistant\n<think>\n</think>one" in held(engine)
    chat.set_think("on")
    ask(chat, "b")
    assert held(engine) == (
        "<|im_start|>system\ndetailed thinking on<|im_end|><|im_start|>user\na<|im_end|>"
        "<|im_start|>assistant\none<|im_end|><|im_start|>user\nb<|im_end|>"
        "<|im_start|>assistant\ntwo"
    )
    chat.set_think("off")
    ask(chat, "c")
    assert "detailed thinking off" in held(engine)
    assert "detailed thinking on" not in held(engine)


def test_thoughts_are_not_sent_again(make_engine: MakeEngine) -> None:
    engine = make_engine("<think>\nhm</think>\n\none", "two", model=THINKER)
    chat, _ = open_chat(engine)
    ask(chat, "a")
    ask(chat, "b")
    assert "hm" not in held(engine)
    assert "assistant\none<|im_end|>" in held(engine)
    # but the person can still read them, and save them
    assert chat.messages[1] == {"role": "assistant", "content": "one", "reasoning_content": "hm"}


def test_an_answer_interrupted_while_thinking_is_forgotten(make_engine: MakeEngine) -> None:
    chat, _ = open_chat(make_engine("<think>hm, well", model=THINKER, fail_at=12), lookup=False)
    answer = chat.ask("a")
    with pytest.raises(KeyboardInterrupt):
        list(answer)
    chat.keep(answer)
    assert answer.thinking.startswith("hm")
    assert chat.messages == []


def test_thinking_greedily_is_warned_about(make_engine: MakeEngine) -> None:
    _, notes = open_chat(make_engine(model=THINKER), think="on", temperature=0.0)
    assert len(notes) == 1
    assert "temperature 0" in notes[0]


def test_thinking_samples_as_its_model_card_says(make_engine: MakeEngine) -> None:
    _, notes = open_chat(make_engine(model=THINKER), think="on")
    assert notes == []


def test_a_model_without_toggle_refuses_the_flag(make_engine: MakeEngine) -> None:
    with pytest.raises(InputError, match="no switch for thinking: tiny"):
        open_chat(make_engine(), think="on")


def test_a_bad_sampling_value_is_known_before_an_engine_is() -> None:
    with pytest.raises(InputError, match="top_p must be"):
        ChatOptions(top_p=2.0)


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(InputError, match="must not be empty"):
        ChatOptions(stop=("",))


def test_a_budget_is_set_and_shown(make_engine: MakeEngine) -> None:
    chat, _ = open_chat(make_engine(model=THINKER), budget=100)
    assert (chat.think, chat.budget) == ("on", 100)
    chat.set_budget(0)
    assert (chat.think, chat.budget) == ("off", 0)
    chat.set_think("on")
    assert chat.budget == 100
    chat.set_budget(-1)
    assert (chat.think, chat.budget) == ("on", -1)
    with pytest.raises(InputError, match="number of tokens"):
        chat.set_budget(-2)


def test_a_budget_needs_a_model_that_thinks(make_engine: MakeEngine) -> None:
    with pytest.raises(InputError, match="no switch for thinking"):
        open_chat(make_engine(), budget=10)
    with pytest.raises(InputError, match="a thinking budget of 10 without thinking"):
        ChatOptions(think="off", budget=10)


def test_a_budget_leads_to_an_answer(make_engine: MakeEngine) -> None:
    chat, _ = open_chat(make_engine("<think>\n" + "hm " * 60, model=THINKER), budget=10)
    answer = chat.ask("a")
    list(answer)
    assert answer.was_cut
    assert answer.text
    way_out = closing_ids(chat._engine.tokenizer, list_conventions()["nemotron-v1"])
    assert answer.generation.new_ids[10 : 10 + len(way_out)] == way_out


def test_with_too_few_tokens_for_both_the_model_answers_at_once(make_engine: MakeEngine) -> None:
    engine = make_engine("one", model=THINKER)
    chat, notes = open_chat(engine, max_new_tokens=8)
    assert ask(chat, "a") == "one"
    assert "detailed thinking off" in held(engine)
    assert notes == ["note: too few new tokens are left to think and answer: not thinking"]


def test_a_model_without_a_file_is_judged_aloud(make_engine: MakeEngine) -> None:
    _, notes = open_chat(make_engine(model="Qwen3-0.6B"))
    [note] = notes
    assert "no file for Qwen3-0.6B" in note
    assert "its name" in note
    assert "enable_thinking" in note


def test_the_last_question_is_answered_again(make_engine: MakeEngine) -> None:
    chat, _ = open_chat(make_engine("one", "two", "three"))
    ask(chat, "a")
    ask(chat, "b")
    answer = chat.retry()
    list(answer)
    chat.keep(answer)
    assert [m["content"] for m in chat.messages] == ["a", "one", "b", "three"]


def test_the_last_question_can_be_changed(make_engine: MakeEngine) -> None:
    chat, _ = open_chat(make_engine("one", "two"))
    ask(chat, "a")
    answer = chat.edit("A")
    list(answer)
    chat.keep(answer)
    assert [m["content"] for m in chat.messages] == ["A", "two"]


def test_without_a_question_there_is_nothing_to_repeat(make_engine: MakeEngine) -> None:
    chat, _ = open_chat(make_engine())
    with pytest.raises(InputError, match="no question yet"):
        chat.retry()
    with pytest.raises(InputError, match="no question yet"):
        chat.edit("a")


def test_a_changed_question_that_does_not_fit_changes_nothing(make_engine: MakeEngine) -> None:
    chat, _ = open_chat(make_engine("one"))
    ask(chat, "a")
    before = list(chat.messages)
    with pytest.raises(InputError, match="the context holds 600"):
        chat.edit("a" * 700)
    assert chat.messages == before


ADD = [{"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "number"}}}}]
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'


def test_a_call_is_answered_with_its_result(make_engine: MakeEngine) -> None:
    engine = make_engine(CALL, "It is 3.", CALL, context_tokens=2000)
    chat, _ = open_chat(engine)
    chat.set_tools(ADD)
    assert [tool.name for tool in chat.tools] == ["add"]
    answer = chat.ask("1 + 2?")
    list(answer)
    chat.keep(answer)
    [call] = answer.tool_calls
    assert chat.messages[-1]["tool_calls"] == [call.to_dict()]
    with pytest.raises(InputError, match="open tool calls"):
        chat.give_results([("other", "3")])
    result = chat.give_results([(call.id, "3")])
    list(result)
    chat.keep(result)
    assert result.text == "It is 3."
    assert [m["role"] for m in chat.messages] == ["user", "assistant", "tool", "assistant"]
    assert "<tool_response>" in held(engine)
    again = chat.ask("and again?")
    list(again)
    assert (again.text, again.generation.finish_reason, len(again.tool_calls)) == ("", "stop", 1)
    assert again.tool_calls[0].id != call.id
    chat.set_tools(None)
    assert chat.tools == ()


def test_results_without_a_call_are_refused(make_engine: MakeEngine) -> None:
    chat, _ = open_chat(make_engine("one"))
    with pytest.raises(InputError, match="open tool calls"):
        chat.give_results([("call_0", "3")])


def test_what_fills_the_context_is_known(make_engine: MakeEngine) -> None:
    engine = make_engine("one", context_tokens=2000)
    chat, _ = open_chat(engine, system="Be kind.")
    empty = chat.context_use()
    assert empty.total_tokens == 2000
    assert dict(empty.parts)["conversation"] == 0
    chat.set_tools(ADD)
    ask(chat, "a")
    use = chat.context_use()
    parts = dict(use.parts)
    assert parts["system"] == dict(empty.parts)["system"] > 0
    assert parts["tools"] > 50
    assert parts["conversation"] > 0
    assert sum(parts.values()) + use.free_tokens == 2000
    assert use.reserve_tokens == 500


def test_a_conversation_is_taken_up_where_it_was_left(make_engine: MakeEngine) -> None:
    engine = make_engine("two")
    chat, _ = open_chat(engine)
    chat.load([{"role": "user", "content": "a"}, {"role": "assistant", "content": "one"}])
    ask(chat, "b")
    assert "assistant\none<|im_end|><|im_start|>user\nb" in held(engine)


def test_what_was_said_before_is_guessed_and_changes_nothing(make_engine: MakeEngine) -> None:
    says = "the quick brown fox jumps over the lazy dog, the quick brown fox jumps over it"
    with_lookup, _ = open_chat(make_engine(says))
    without, _ = open_chat(make_engine(says), lookup=False)
    answers = [
        with_lookup.ask("the quick brown fox jumps"),
        without.ask("the quick brown fox jumps"),
    ]
    for answer in answers:
        list(answer)
    assert answers[0].text == answers[1].text == says
    assert answers[0].generation.accepted_tokens >= 5
    assert answers[0].generation.num_passes < answers[1].generation.num_passes
    assert answers[1].generation.drafted_tokens == 0


def test_instructions_may_carry_the_toggle(make_engine: MakeEngine) -> None:
    engine = make_engine("one", "two", model=THINKER)
    chat, _ = open_chat(engine, system="detailed thinking off\nBe kind.")
    assert (chat.think, chat.system) == ("off", "Be kind.")
    chat.set_system("detailed thinking on")
    assert (chat.think, chat.system) == ("on", None)
    ask(chat, "a")
    assert held(engine).count("detailed thinking") == 1


def test_a_flag_comes_before_a_toggle_in_the_instructions(make_engine: MakeEngine) -> None:
    chat, _ = open_chat(
        make_engine(model=THINKER), system="detailed thinking off. Be kind.", think="on"
    )
    assert (chat.think, chat.system) == ("on", "Be kind.")


def test_a_structure_holds_after_thinking_and_is_complete(make_engine: MakeEngine) -> None:
    from edgekit.runtime.structure import Structure

    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"],
              "additionalProperties": False}  # fmt: skip
    engine = make_engine("hm, what?\n</think>\n\nI think it is 3, no?", model=THINKER)
    chat, _ = open_chat(engine, structure=Structure(json_schema=schema), max_new_tokens=300)
    answer = chat.ask("a")
    list(answer)
    assert answer.thinking.strip() == "hm, what?"
    assert isinstance(json.loads(answer.text)["n"], int)
    assert answer.generation.finish_reason == "stop"


def test_a_bad_structure_is_known_before_a_question(make_engine: MakeEngine) -> None:
    from edgekit.runtime.structure import Structure

    with pytest.raises(InputError):
        open_chat(make_engine(), structure=Structure(regex="("))


@pytest.mark.parametrize("again", ["retry", "edit"])
def test_another_answer_stopped_before_its_first_word_leaves_the_one_there_was(
    make_engine: MakeEngine, again: str
) -> None:
    engine = make_engine("one", "two", "three")
    chat, _ = open_chat(engine)
    ask(chat, "a")
    ask(chat, "b")
    before = [dict(message) for message in chat.messages]
    answer = chat.retry() if again == "retry" else chat.edit("c")
    answer.stop()
    list(answer)
    chat.keep(answer)
    assert chat.messages == before


def test_results_can_be_given_again_after_an_interrupt(make_engine: MakeEngine) -> None:
    chat, _ = open_chat(make_engine(CALL, "It is 3.", context_tokens=2000))
    chat.set_tools(ADD)
    ask(chat, "1 + 2?")
    call_id = chat.messages[-1]["tool_calls"][0]["id"]
    stopped = chat.give_results([(call_id, "3")])
    stopped.stop()
    list(stopped)
    chat.keep(stopped)
    answer = chat.give_results([(call_id, "3")])
    list(answer)
    assert answer.text == "It is 3."


def test_past_calls_stay_in_the_models_words_without_tools(make_engine: MakeEngine) -> None:
    engine = make_engine(CALL, "It is 3.", "Yes.", context_tokens=2000)
    chat, _ = open_chat(engine)
    chat.set_tools(ADD)
    ask(chat, "1 + 2?")
    result = chat.give_results([(chat.messages[-1]["tool_calls"][0]["id"], "3")])
    list(result)
    chat.keep(result)
    chat.set_tools(None)
    ask(chat, "sure?")
    assert "<tool_response>" in held(engine)
    assert '"name": "add"' in held(engine)
    assert "<|im_start|>tool" not in held(engine)


def test_a_mode_for_want_of_room_has_its_own_sampling(make_engine: MakeEngine) -> None:
    chat, _ = open_chat(make_engine("one", model=THINKER), max_new_tokens=8)
    answer = chat.ask("a")
    sampler = answer.generation._sampler  # type: ignore[attr-defined]  # of Generation
    assert sampler.sampling.temperature == 0


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"max_new_tokens": 0}, "at least 1"), ({"think": "on", "budget": 0}, "budget of 0")],
)
def test_options_that_contradict_themselves_are_refused(
    options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(InputError, match=reason):
        ChatOptions(**options)
