"""What the model is sent, byte for byte."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.models.convention import Convention, list_conventions
from edgekit.runtime.prompt import PromptFormat, split_system
from edgekit.runtime.template import ChatTemplate
from edgekit.runtime.tools import read_tools

BOS = "<|begin_of_text|>"
NEMOTRON = list_conventions()["nemotron-v1"]

# What Nemotron's template is known to do: Llama 3's headers, one system turn even where it is
# empty, and past answers without their thinking.
LLAMA3 = (
    "{{ bos_token }}"
    "{% if messages[0].role == 'system' %}"
    "{% set head = messages[0].content %}{% set rest = messages[1:] %}"
    "{% else %}{% set head = '' %}{% set rest = messages %}{% endif %}"
    "{{ '<|start_header_id|>system<|end_header_id|>\n\n' ~ head | trim ~ '<|eot_id|>' }}"
    "{% for m in rest %}{% set text = m.content %}"
    "{% if m.role == 'assistant' and '</think>' in text %}"
    "{% set text = text.split('</think>')[-1].lstrip() %}{% endif %}"
    "{{ '<|start_header_id|>' ~ m.role ~ '<|end_header_id|>\n\n' ~ text | trim ~ '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
QWEN = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}"
    "<think>\n\n</think>\n\n{% endif %}"
)
R1 = (
    "{{ bos_token }}{% for m in messages %}{{ '<｜' ~ m.role ~ '｜>' ~ m.content }}{% endfor %}"
    "{{ '<｜Assistant｜><think>\n' }}"
)
HI = [{"role": "user", "content": "Hi"}]


def prompt_format(source: str, convention: Convention | None) -> PromptFormat:
    return PromptFormat(ChatTemplate(source, special_tokens={"bos_token": BOS}), convention)


def turn(role: str, text: str) -> str:
    return f"<|start_header_id|>{role}<|end_header_id|>\n\n{text}<|eot_id|>"


ASSISTANT = "<|start_header_id|>assistant<|end_header_id|>\n\n"


def test_nemotron_thinks() -> None:
    prompt = prompt_format(LLAMA3, NEMOTRON).render(HI, think="on")
    assert prompt.text == BOS + turn("system", "detailed thinking on") + turn("user", "Hi") + (
        ASSISTANT
    )
    assert not prompt.starts_inside


def test_nemotron_answers_at_once() -> None:
    # the model card's second example of "off" begins the answer with an empty block
    prompt = prompt_format(LLAMA3, NEMOTRON).render(HI, think="off")
    assert prompt.text == BOS + turn("system", "detailed thinking off") + turn("user", "Hi") + (
        ASSISTANT + "<think>\n</think>"
    )


def test_the_toggle_is_always_sent() -> None:
    prompt = prompt_format(LLAMA3, NEMOTRON)
    assert prompt.render(HI) == prompt.render(HI, think="on")


def test_nemotron_wants_instructions_in_the_first_question() -> None:
    messages = [*HI, {"role": "assistant", "content": "Hello."}, {"role": "user", "content": "Bye"}]
    text = prompt_format(LLAMA3, NEMOTRON).render(messages, think="on", system="Be brief.").text
    assert text == (
        BOS + turn("system", "detailed thinking on") + turn("user", "Be brief.\n\nHi")
        + turn("assistant", "Hello.") + turn("user", "Bye") + ASSISTANT
    )  # fmt: skip


def test_other_families_want_instructions_below_the_toggle() -> None:
    words = list_conventions()["think-words"]
    text = prompt_format(LLAMA3, words).render(HI, think="on", system="Be brief.").text
    assert text == (
        BOS + turn("system", "/think\n\nBe brief.") + turn("user", "Hi") + ASSISTANT
    )  # fmt: skip


def test_a_model_with_one_mode_gets_the_system_text_as_it_is() -> None:
    plain = prompt_format(LLAMA3, None)
    assert plain.render(HI).text == BOS + turn("system", "") + turn("user", "Hi") + ASSISTANT
    assert turn("system", "Be brief.") in plain.render(HI, system="Be brief.").text


def test_structured_thinking_begins_the_block_itself() -> None:
    prompt = prompt_format(LLAMA3, NEMOTRON).render(HI, think="on", must_think=True)
    assert prompt.text.endswith(ASSISTANT + "<think>\n")
    assert prompt.starts_inside
    off = prompt_format(LLAMA3, NEMOTRON).render(HI, think="off", must_think=True)
    assert not off.starts_inside


def test_a_template_with_a_variable_is_given_it_and_writes_the_empty_block_once() -> None:
    qwen = prompt_format(QWEN, list_conventions()["enable-thinking"])
    on = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert qwen.render(HI, think="on").text == on
    assert qwen.render(HI, think="off").text == on + "<think>\n\n</think>\n\n"
    with_system = qwen.render(HI, think="on", system="Be brief.").text
    assert with_system == "<|im_start|>system\nBe brief.<|im_end|>\n" + on


def test_a_model_that_always_thinks_starts_inside_its_block_and_can_be_led_out() -> None:
    always = prompt_format(R1, list_conventions()["always"])
    on = always.render(HI, think="on", system="Be brief.")
    assert on.text == BOS + "<｜user｜>Be brief.\n\nHi<｜Assistant｜><think>\n"
    assert on.starts_inside
    off = always.render(HI, think="off")
    assert off.text == BOS + "<｜user｜>Hi<｜Assistant｜><think>\n\n</think>\n\n"
    assert not off.starts_inside


@given(
    thought=st.text(alphabet="ab \n<>/think", max_size=20),
    said=st.text(alphabet="xyz.", min_size=1, max_size=9),
    name=st.sampled_from(["reasoning_content", "reasoning", "thinking"]),
)
def test_past_thinking_never_comes_back(thought: str, said: str, name: str) -> None:
    history = [
        *HI,
        {"role": "assistant", "content": f"<think>\n{thought}SECRET\n</think>\n\n{said}"},
        {"role": "user", "content": "more"},
        {"role": "assistant", "content": said, name: thought + "SECRET"},
        {"role": "user", "content": "again"},
    ]
    keeps_everything = "{% for m in messages %}{{ m }}{% endfor %}"
    for source in (LLAMA3, QWEN, keeps_everything):
        text = prompt_format(source, NEMOTRON).render(history, think="on").text
        assert "SECRET" not in text
        assert text.count(said) >= 2


def test_the_bytes_are_those_of_transformers(make_tiny: Callable[..., Path]) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(make_tiny("llama"))
    tokenizer.chat_template = LLAMA3
    ours = PromptFormat(ChatTemplate(LLAMA3, special_tokens=tokenizer.special_tokens_map), NEMOTRON)
    for think in ("on", "off"):
        messages = [
            {"role": "system", "content": f"detailed thinking {think}"},
            *HI,
            {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHello."},
            {"role": "user", "content": "And?"},
        ]
        theirs = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        begun = "" if think == "on" else "<think>\n</think>"
        mode: Any = think
        assert ours.render(messages[1:], think=mode).text == theirs + begun


TOOLS = read_tools(
    [
        {
            "type": "function",
            "function": {
                "name": "add",
                "description": "Add two numbers.",
                "parameters": {"type": "object", "properties": {"a": {"type": "number"}}},
            },
        }
    ]
)


def test_a_template_that_takes_tools_gets_them() -> None:
    text = prompt_format(QWEN, None).render(HI, tools=TOOLS).text
    assert '"name": "add"' in text
    assert text.count("<|im_start|>system") == 1


def test_a_template_that_takes_none_gets_the_models_own_words_for_them() -> None:
    history: list[dict[str, Any]] = [
        {"role": "user", "content": "1 + 2?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {
                    "id": "call_0",
                    "type": "function",
                    "function": {"name": "add", "arguments": '{"a": 1}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "call_0", "name": "add", "content": "3"},
    ]
    text = prompt_format(LLAMA3, NEMOTRON).render(history, think="off", tools=TOOLS).text
    head = BOS + "<|start_header_id|>system<|end_header_id|>\n\ndetailed thinking off\n\n"
    assert text.startswith(head + "<AVAILABLE_TOOLS>[")
    assert (
        turn("assistant", '<TOOLCALL>[{"name": "add", "arguments": {"a": 1}}]</TOOLCALL>') in text
    )
    assert "<TOOL_RESPONSE>" in text
    assert turn("tool", "3") not in text


def test_past_thinking_that_was_never_closed_does_not_come_back() -> None:
    for content in ("<think>\nSECRET", [{"type": "text", "text": "<think>SECRET</think>fine"}]):
        history: list[dict[str, Any]] = [*HI, {"role": "assistant", "content": content}, *HI]
        text = prompt_format("{{ messages }}", NEMOTRON).render(history, think="on").text
        assert "SECRET" not in text


def test_a_template_gets_past_arguments_as_values_and_not_as_text() -> None:
    source = (
        "{% if tools %}{% endif %}{% for m in messages %}{% for c in m.tool_calls or [] %}"
        "{{ c.function.arguments | tojson }}{% endfor %}{% endfor %}"
    )
    call = {"id": "call_0", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    history: list[dict[str, Any]] = [
        *HI, {"role": "assistant", "content": "", "tool_calls": [call]},
    ]  # fmt: skip
    assert prompt_format(source, None).render(history, tools=TOOLS).text == '{"a": 1}'
    assert call["function"] == {"name": "f", "arguments": '{"a": 1}'}


@pytest.mark.parametrize("source", [LLAMA3, QWEN])
def test_whether_a_template_takes_tools_is_read_from_its_variables(source: str) -> None:
    assert ChatTemplate(source).takes_tools == (source == QWEN)
    assert not ChatTemplate("{# tools #}{{ 'tools' }}").takes_tools


def test_a_system_message_may_carry_the_toggle() -> None:
    messages = [{"role": "system", "content": "detailed thinking off\n\nBe brief."}, *HI]
    assert split_system(messages, NEMOTRON) == ("Be brief.", "off", HI)
    assert split_system(messages, None) == (messages[0]["content"], None, HI)
    assert split_system(HI, NEMOTRON) == (None, None, HI)
