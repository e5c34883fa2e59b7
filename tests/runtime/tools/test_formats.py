from __future__ import annotations

import json
import re
from typing import Any

import pytest

from edgekit.errors import InputError
from edgekit.runtime.tools import TOOL_FORMATS, ToolParser, lower_messages, read_tools

TOOLS = read_tools(
    [
        {
            "name": "weather",
            "description": "Température.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
        {"name": "clock", "parameters": {"type": "object"}},
    ]
)
CALLS = [
    {
        "id": "call_1",
        "type": "function",
        "function": {"name": "weather", "arguments": '{"city":"Zürich"}'},
    },
    {"id": "call_2", "type": "function", "function": {"name": "clock", "arguments": "{}"}},
]
RESULTS = [
    {"role": "tool", "tool_call_id": "call_1", "content": '{"celsius": 7}'},
    {"role": "tool", "tool_call_id": "call_2", "content": "noon"},
]

NEMOTRON_TOOLS = (
    '<AVAILABLE_TOOLS>[{"name": "weather", "description": "Température.", "parameters": '
    '{"type": "object", "properties": {"city": {"type": "string"}}}}, '
    '{"name": "clock", "parameters": {"type": "object"}}]</AVAILABLE_TOOLS>'
)
HERMES_TOOLS = """\
# Tools

You can call the functions below. Their signatures stand in <tools></tools>, one JSON object a line:
<tools>
{"type": "function", "function": {"name": "weather", "description": "Température.", \
"parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}}
{"type": "function", "function": {"name": "clock", "parameters": {"type": "object"}}}
</tools>

To call a function, write a JSON object with its name and its arguments in <tool_call></tool_call>:
<tool_call>
{"name": <name of the function>, "arguments": <object with the arguments>}
</tool_call>
Write one such block for each call."""
LLAMA_TOOLS = """\
You can call the functions below. To call one, answer with nothing but JSON:
{"name": name of the function, "parameters": object with the names and values of its arguments}
Write values, never variables. If no function is needed, answer in words.

{
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Température.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {
                    "type": "string"
                }
            }
        }
    }
}

{
    "type": "function",
    "function": {
        "name": "clock",
        "parameters": {
            "type": "object"
        }
    }
}"""


@pytest.mark.parametrize(
    ("name", "text"),
    [("nemotron", NEMOTRON_TOOLS), ("hermes", HERMES_TOOLS), ("llama3_json", LLAMA_TOOLS)],
)
def test_tools_are_told_in_exactly_these_words(name: str, text: str) -> None:
    assert TOOL_FORMATS[name].system_text(TOOLS) == text
    assert TOOL_FORMATS[name].system_text([]) == ""


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "nemotron",
            '<TOOLCALL>[{"name": "weather", "arguments": {"city": "Zürich"}}, '
            '{"name": "clock", "arguments": {}}]</TOOLCALL>',
        ),
        (
            "hermes",
            '<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich"}}\n</tool_call>\n'
            '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>',
        ),
        (
            "llama3_json",
            '{"name": "weather", "parameters": {"city": "Zürich"}}; '
            '{"name": "clock", "parameters": {}}',
        ),
    ],
)
def test_calls_are_spelled_as_the_model_spells_them(name: str, text: str) -> None:
    assert TOOL_FORMATS[name].call_text(CALLS) == text
    parser = ToolParser(TOOLS)
    pieces = [*parser.push(text), *parser.finish()]
    found = [(piece.call.name, piece.call.arguments) for piece in pieces if piece.call]
    assert found == [("weather", {"city": "Zürich"}), ("clock", {})]


@pytest.mark.parametrize(
    ("name", "messages"),
    [
        ("nemotron", [("user", '<TOOL_RESPONSE>[{"celsius": 7}, "noon"]</TOOL_RESPONSE>')]),
        (
            "hermes",
            [
                (
                    "user",
                    '<tool_response>\n{"celsius": 7}\n</tool_response>\n'
                    "<tool_response>\nnoon\n</tool_response>",
                )
            ],
        ),
        ("llama3_json", [("ipython", '{"celsius": 7}'), ("ipython", "noon")]),
    ],
)
def test_results_are_told_in_order(name: str, messages: list[tuple[str, str]]) -> None:
    told = TOOL_FORMATS[name].result_messages(RESULTS)
    assert [(message["role"], message["content"]) for message in told] == messages
    assert TOOL_FORMATS[name].result_messages([]) == []


CHAT: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Weather?", "name": "ann"},
    {"role": "assistant", "content": "I look.", "tool_calls": CALLS[:1]},
    RESULTS[0],
    {"role": "assistant", "content": None, "tool_calls": CALLS[1:]},
    RESULTS[1],
    {"role": "assistant", "content": "7 degrees.", "tool_calls": None},
]


@pytest.mark.parametrize("name", TOOL_FORMATS)
def test_a_chat_with_calls_becomes_one_of_texts(name: str) -> None:
    row = TOOL_FORMATS[name]
    first, second = row.call_text(CALLS[:1]), row.call_text(CALLS[1:])
    before = {"nemotron": "I look.", "hermes": "I look.\n", "llama3_json": ""}[name]
    assert lower_messages(CHAT, row) == [
        *CHAT[:2],
        {"role": "assistant", "content": before + first},
        *row.result_messages(RESULTS[:1]),
        {"role": "assistant", "content": second},
        *row.result_messages(RESULTS[1:]),
        {"role": "assistant", "content": "7 degrees."},
    ]


def test_results_that_follow_each_other_are_one_turn() -> None:
    lowered = lower_messages([*RESULTS, *RESULTS], TOOL_FORMATS["nemotron"])
    [turn] = lowered
    assert turn["content"].count("noon") == 2


def test_messages_without_tools_stay_as_they_are() -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]
    assert lower_messages(messages, TOOL_FORMATS["hermes"]) == messages


def test_content_in_parts_and_arguments_as_an_object_are_taken() -> None:
    message = {
        "role": "assistant",
        "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
        "tool_calls": [{"function": {"name": "clock", "arguments": {"x": 1}}}],
    }
    [lowered] = lower_messages([message], TOOL_FORMATS["hermes"])
    assert lowered["content"] == (
        'ab\n<tool_call>\n{"name": "clock", "arguments": {"x": 1}}\n</tool_call>'
    )


@pytest.mark.parametrize(
    ("message", "error"),
    [
        (
            {"role": "assistant", "tool_calls": "f"},
            "`messages[1].tool_calls` must be a list: 'f'",
        ),
        (
            {"role": "assistant", "tool_calls": [CALLS[0], {"function": {}}]},
            "`messages[1].tool_calls[1]` has no function with a name: {'function': {}}",
        ),
        (
            {"role": "assistant", "tool_calls": [5]},
            "`messages[1].tool_calls[0]` has no function with a name: 5",
        ),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]},
            "`messages[1].tool_calls[0].function.arguments` is not JSON: ",
        ),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]},
            "`messages[1].tool_calls[0].function.arguments` must be a JSON object: [1]",
        ),
        (
            {"role": "tool", "content": [{"type": "image_url"}]},
            "`messages[1].content` must be text: [{'type': 'image_url'}]",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_place(message: dict[str, Any], error: str) -> None:
    with pytest.raises(InputError, match=re.escape(error)):
        lower_messages([{"role": "user", "content": "hi"}, message], TOOL_FORMATS["nemotron"])


def test_a_result_that_is_json_stays_as_it_is() -> None:
    for text in ("7", "[1,  2]", '"x"', "null"):
        [message] = TOOL_FORMATS["nemotron"].result_messages([{"role": "tool", "content": text}])
        assert message["content"] == f"<TOOL_RESPONSE>[{text}]</TOOL_RESPONSE>"
    odd = 'say "hi"\n'
    [message] = TOOL_FORMATS["nemotron"].result_messages([{"role": "tool", "content": odd}])
    inside = message["content"].removeprefix("<TOOL_RESPONSE>").removesuffix("</TOOL_RESPONSE>")
    assert json.loads(inside) == [odd]
