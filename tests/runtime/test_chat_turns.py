from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from edgekit.errors import InputError
from edgekit.runtime.chat import Chat, ChatOptions
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
    assert "".join(pieces) == answer.text
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
    assert "".join(answer) == answer.text == "hello "
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


def test_the_toggle_comes_before_the_instructions(make_engine: MakeEngine) -> None:
    engine = make_engine("one", model=THINKER)
    chat, _ = open_chat(engine, think="off", system="Be kind.")
    ask(chat, "a")
    assert "system\ndetailed thinking off\n\nBe kind.<|im_end|>" in held(engine)


def test_thinking_can_be_switched_between_answers(make_engine: MakeEngine) -> None:
    engine = make_engine("one", "two", model=THINKER)
    chat, _ = open_chat(engine, think="off")
    ask(chat, "a")
    chat.set_think("on")
    ask(chat, "b")
    assert "detailed thinking on" in held(engine)


def test_thoughts_are_not_sent_again(make_engine: MakeEngine) -> None:
    engine = make_engine("<think>\nhm</think>\n\none", "two", model=THINKER)
    chat, _ = open_chat(engine)
    ask(chat, "a")
    ask(chat, "b")
    assert "hm" not in held(engine)
    assert "assistant\none<|im_end|>" in held(engine)


def test_an_answer_interrupted_while_thinking_is_forgotten(make_engine: MakeEngine) -> None:
    chat, _ = open_chat(make_engine("<think>hm, well", model=THINKER, fail_at=12))
    answer = chat.ask("a")
    with pytest.raises(KeyboardInterrupt):
        list(answer)
    chat.keep(answer)
    assert answer.text.startswith("<think>")
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
