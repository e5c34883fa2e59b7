from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from edgekit.errors import EngineError, InputError
from edgekit.runtime.template import ChatTemplate

# each as its model ships it, or cut to the parts that differ
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% endif %}"
)
LLAMA3 = """\
{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{#- the system message comes out first #}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if message.role == 'assistant' and '</think>' in message.content %}
        {%- set content = message.content.split('</think>')[-1].lstrip() %}
    {%- else %}
        {%- set content = message.content | trim %}
    {%- endif %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + content + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""  # noqa: E501  # as the model ships it
QWEN = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- "# Tools\\n\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if message.role == "user" %}{%- set ns.last = index %}{%- break %}{%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == "system" and loop.first %}{%- continue %}{%- endif %}
    {%- if message.role == "tool" %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if message.reasoning_content is string and loop.index0 > ns.last %}
            {{- '<think>\\n' + message.reasoning_content.strip('\\n') + '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- message.content }}
        {%- if message.tool_calls %}
            {%- for call in message.tool_calls %}
                {{- '\\n<tool_call>\\n' + call.function.name + ' ' }}
                {{- call.function.arguments | tojson(indent=2, sort_keys=true) }}
                {{- '\\n</tool_call>' }}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""  # noqa: E501  # as the model ships it
STRICT = """\
{{ bos_token }}{% for message in messages %}
    {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{ raise_exception('Conversation roles must alternate user/assistant/...') }}
    {% endif %}
    {% if message['role'] == 'user' %}
[INST] {{ message['content'] }} [/INST]
    {% else %}
{% generation %}
{% set said = message['content'] %}
{{ said }}{{ eos_token }}{% endgeneration %}{{ said is defined }}
    {% endif %}
{% endfor %}
"""

SPECIAL = {"bos_token": "<s>", "eos_token": "<|im_end|>"}
USER = {"role": "user", "content": ' What\'s <b>"this"</b> & that? 你好 🙂\n'}
SYSTEM = {"role": "system", "content": "Be brief.\n"}
SAID = {"role": "assistant", "content": "<think>\nhm\n</think>\n\n  A thing."}
TOOL = {
    "type": "function",
    "function": {"name": "météo", "description": "<Wetter>", "parameters": {"b": 1, "a": [None]}},
}
CALL = {
    "role": "assistant",
    "content": "",
    "reasoning": "\nfirst the weather\n",
    "tool_calls": [{"function": {"name": "météo", "arguments": {"ort": "Köln", "a": True}}}],
}
RESULT = {"role": "tool", "content": '{"c": 12}'}
CHATS: dict[str, list[dict[str, Any]]] = {
    "one": [USER],
    "system": [SYSTEM, USER],
    "turns": [USER, SAID, USER],
    "system and turns": [SYSTEM, USER, SAID, USER, SAID, USER],
    "null field": [USER, {**SAID, "tool_calls": None}, USER],
}


def hugging_face(
    inner: tokenizers.Tokenizer, source: str, messages: list[dict[str, Any]], **options: Any
) -> str:
    from transformers import PreTrainedTokenizerFast

    make: Any = PreTrainedTokenizerFast
    reference = make(tokenizer_object=inner, chat_template=source, **SPECIAL)
    text = reference.apply_chat_template(messages, tokenize=False, **options)
    assert isinstance(text, str)
    return text


@pytest.mark.parametrize("has_prompt", [True, False])
@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("source", [SMOLLM2, LLAMA3, QWEN], ids=["smollm2", "llama3", "qwen"])
def test_the_text_is_that_of_transformers(
    byte_level: tokenizers.Tokenizer, source: str, chat: str, has_prompt: bool
) -> None:
    ours = ChatTemplate(source, special_tokens=SPECIAL)
    assert ours.render(CHATS[chat], add_generation_prompt=has_prompt) == hugging_face(
        byte_level, source, CHATS[chat], add_generation_prompt=has_prompt
    )


@pytest.mark.parametrize("variables", [{}, {"enable_thinking": False}])
def test_tools_and_variables_are_those_of_transformers(
    byte_level: tokenizers.Tokenizer, variables: dict[str, Any]
) -> None:
    messages: list[dict[str, Any]] = [SYSTEM, USER, CALL, RESULT]
    expected = hugging_face(
        byte_level, QWEN, messages, tools=[TOOL], add_generation_prompt=True, **variables
    )
    ours = ChatTemplate(QWEN, special_tokens=SPECIAL)
    assert ours.render(messages, tools=[TOOL], **variables) == expected
    assert "first the weather" in expected
    assert '"description": "<Wetter>"' in expected


@pytest.mark.parametrize("chat", ["one", "turns"])
def test_generation_blocks_are_those_of_transformers(
    byte_level: tokenizers.Tokenizer, chat: str
) -> None:
    expected = hugging_face(byte_level, STRICT, CHATS[chat], add_generation_prompt=True)
    assert ChatTemplate(STRICT, special_tokens=SPECIAL).render(CHATS[chat]) == expected


def test_a_variable_replaces_a_special_token() -> None:
    template = ChatTemplate("{{ bos_token }}", special_tokens=SPECIAL)
    assert template.render([USER], bos_token="[B]") == "[B]"


def test_the_date_can_be_asked_for() -> None:
    text = ChatTemplate("{{ strftime_now('%Y') }}").render([USER])
    assert len(text) == 4
    assert text.isdigit()


def test_a_refusal_of_the_template_is_an_input_error_with_its_words() -> None:
    with pytest.raises(InputError, match="Conversation roles must alternate"):
        ChatTemplate(STRICT, special_tokens=SPECIAL).render([SYSTEM, USER])


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[0].content + 1 }}",
        "{{ messages[7].content.x }}",
        "{{ 1 // 0 }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__ }}",
        "{% for i in range(10**9) %}{% endfor %}",
        "{% include 'x' %}",
    ],
)
def test_a_failing_template_is_an_input_error(source: str) -> None:
    with pytest.raises(InputError, match="the chat template fails on these messages"):
        ChatTemplate(source).render([USER])


@pytest.mark.parametrize("source", ["{% if %}", "{{ x | no_such_filter }}", "{% generation %}"])
def test_a_broken_template_is_an_engine_error(source: str) -> None:
    with pytest.raises(EngineError, match="chat template of this engine is damaged"):
        ChatTemplate(source)


def test_no_template_is_an_input_error_with_a_way_out() -> None:
    with pytest.raises(InputError, match="has no chat template") as caught:
        ChatTemplate(None).render([USER])
    assert caught.value.hint is not None
    assert "completion" in caught.value.hint


def test_no_message_is_an_input_error() -> None:
    with pytest.raises(InputError, match="no message"):
        ChatTemplate(SMOLLM2).render([])


def test_a_template_cannot_change_the_messages() -> None:
    messages = [{"role": "user", "content": "a"}]
    with pytest.raises(InputError):
        ChatTemplate("{{ messages[0].update(content='b') }}").render(messages)
    assert messages == [{"role": "user", "content": "a"}]


def test_tools_take_the_template_named_for_them() -> None:
    template = ChatTemplate({"default": "plain", "tool_use": "tools"})
    assert template.render([USER]) == "plain"
    assert template.render([USER], tools=[TOOL]) == "tools"


def test_named_templates_without_default_are_an_input_error() -> None:
    with pytest.raises(InputError, match="no default one: rag, tool_use"):
        ChatTemplate({"tool_use": "", "rag": ""}).render([USER])


def write_config(directory: Path, value: object) -> None:
    (directory / "tokenizer_config.json").write_text(json.dumps({"chat_template": value}))


def load(directory: Path) -> str:
    return ChatTemplate.load(directory, special_tokens=SPECIAL).render([USER])


def test_a_template_is_read_from_the_tokenizer_configuration(tmp_path: Path) -> None:
    write_config(tmp_path, "{{ eos_token }}")
    assert load(tmp_path) == "<|im_end|>"


def test_named_templates_are_read_from_the_tokenizer_configuration(tmp_path: Path) -> None:
    write_config(tmp_path, [{"name": "default", "template": "a"}, {"name": "x", "template": "b"}])
    assert load(tmp_path) == "a"


def test_a_template_is_read_from_its_json_file(tmp_path: Path) -> None:
    (tmp_path / "chat_template.json").write_text('{"chat_template": "from json"}')
    assert load(tmp_path) == "from json"


def test_the_jinja_file_comes_first(tmp_path: Path) -> None:
    write_config(tmp_path, "from the configuration")
    (tmp_path / "chat_template.jinja").write_text("from the file")
    assert load(tmp_path) == "from the file"


def test_additional_templates_are_read_beside_the_jinja_file(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("plain")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("tools")
    template = ChatTemplate.load(tmp_path, special_tokens={})
    assert template.render([USER], tools=[TOOL]) == "tools"


def test_a_directory_without_template_loads(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no chat template"):
        load(tmp_path)


@pytest.mark.parametrize("value", [7, [7], [{"name": "default"}], [{"name": "a", "template": 1}]])
def test_an_unreadable_template_is_an_engine_error(tmp_path: Path, value: object) -> None:
    write_config(tmp_path, value)
    with pytest.raises(EngineError, match="unreadable chat template"):
        load(tmp_path)


def test_a_jinja_file_that_is_not_text_is_an_engine_error(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(EngineError, match="unreadable chat template"):
        load(tmp_path)
