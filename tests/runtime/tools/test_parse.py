from __future__ import annotations

import json
import random
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.runtime.piece import Piece
from edgekit.runtime.tools import Tool, ToolParser, read_tools

WEATHER = {
    "name": "get_weather",
    "description": "Tell the weather.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city"],
    },
}
ADD = {
    "name": "math.add",
    "parameters": {
        "type": "object",
        "properties": {
            "a": {"type": "number"}, "b": {"type": "number"}, "exact": {"type": "boolean"},
            "terms": {"type": "array"},
        },
    },
}  # fmt: skip
TOOLS = read_tools([WEATHER, ADD])
BERN = '{"name": "get_weather", "arguments": {"city": "Bern"}}'
SUM = '{"name": "math.add", "arguments": {"a": 1, "b": 2.5}}'
Spans = list[tuple[Any, ...]]


def spans(chunks: Iterable[str], tools: Iterable[Tool] = TOOLS) -> Spans:
    """The pieces, neighbours of text joined."""
    parser = ToolParser(tools)
    pieces = [piece for chunk in chunks for piece in parser.push(chunk)]
    pieces += parser.finish()
    assert parser.finish() == []
    out: Spans = []
    for piece in pieces:
        if piece.call is None and out and out[-1][0] == "answer":
            out[-1] = ("answer", out[-1][1] + piece.text)
        elif piece.call is None:
            out.append((piece.kind, piece.text))
        else:
            out.append(("call", piece.text, piece.call))
    return out


def calls(text: str, tools: Iterable[Tool] = TOOLS) -> list[tuple[str, dict[str, Any]]]:
    """Names and arguments of the calls in `text`, which comes one character at a time."""
    found = spans(text, tools)
    assert "".join(span[1] for span in found) == text
    return [(span[2].name, span[2].arguments) for span in found if span[0] == "call"]


def answer(text: str) -> str:
    return "".join(span[1] for span in spans(text) if span[0] == "answer")


A_BERN = ("get_weather", {"city": "Bern"})
A_SUM = ("math.add", {"a": 1, "b": 2.5})


@pytest.mark.parametrize(
    "text",
    [
        f"<TOOLCALL>[{BERN}, {SUM}]</TOOLCALL>",
        f"<toolcall>\n[\n{BERN},\n{SUM}\n]\n</toolcall>",
        f"<TOOL_CALL>[{BERN},{SUM}]</TOOLCALL>",
        f"<ANGLED_TOOLS>{BERN} {SUM}</ANGLED_TOOLS>",
        f"<tool_call>\n{BERN}\n</tool_call>\n<tool_call>\n{SUM}\n</tool_call>",
        f"<tool_call>{BERN}<tool_call>{SUM}",
        f"<TOOLCALL>[{BERN}, {SUM}]",
        f"<TOOLCALL>[{BERN}, {SUM}</TOOLCALL>",
        f"<TOOLCALL>[{BERN}, {SUM}",
        f"<TOOLCALL>{BERN}, {SUM}]</TOOLCALL>",
        f"<TOOLCALL>[{BERN}, {SUM},]</TOOLCALL>",
        f"<TOOLCALL>[{BERN}}}, {SUM}}}]</TOOLCALL>",
        f"<TOOLCALL>[{BERN}, {SUM[:-1]}]</TOOLCALL>",
        f"<TOOLCALL>[{BERN}, {SUM[:-2]}</TOOLCALL>",
        f"<|python_tag|>{BERN}; {SUM}",
        f"  {BERN};{SUM}",
        f"{BERN}\n{SUM}",
        f"[{BERN}, {SUM}]",
        f"```json\n[{BERN}, {SUM}]\n```\n",
        f"```\n{BERN}\n{SUM}\n```",
        f"```json \n{BERN}, {SUM}",
        "[get_weather(city='Bern'), math.add(a=1, b=2.5)]",
        'get_weather(city="Bern")\nmath.add(1, b = 2.5)',
        "get_weather('Bern'); math.add({'a': 1, 'b': 2.5})",
        "<tool_call>get_weather(city='Bern'), math.add(1, 2.5)</tool_call>",
        '<function=get_weather>{"city": "Bern"}</function>'
        "<function=math.add><parameter=a>1</parameter><parameter=b>2.5</parameter></function>",
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nBern\n</parameter>\n</function>\n"
        "<function=math.add>\n<parameter=a>\n1\n</parameter>\n<parameter=b>\n2.5\n</parameter>\n"
        "</function>\n</tool_call>",
    ],
)
def test_two_calls_are_found_in_every_spelling_and_nothing_is_left_over(text: str) -> None:
    assert calls(text) == [A_BERN, A_SUM]
    assert answer(text).strip() == ""


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "get_weather", "parameters": {"city": "Bern"}}',
        '{"name": "get_weather", "arguments": "{\\"city\\": \\"Bern\\"}"}',
        '{"function": {"name": "get_weather", "arguments": {"city": "Bern"}}}',
        '{"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Bern"}}}',
        '{"type": "function", "name": "get_weather", "parameters": {"city": "Bern"}}',
        '{"function": "get_weather", "arguments": {"city": "Bern"}}',
        '{"arguments": {"city": "Bern"}, "name": "get_weather"}',
        "{'name': 'get_weather', 'arguments': {'city': 'Bern'}}",
        '{"name": "get_weather", "arguments": {"city": "Bern",},}',
        '{"name" : "get_weather" , "arguments" : {"city":"Bern"}, "comment": "x"}',
    ],
)
def test_an_object_may_be_spelled_in_many_ways(text: str) -> None:
    assert calls(text) == [A_BERN]
    assert calls(f"So: <tool_call>{text}</tool_call>") == [A_BERN]


@pytest.mark.parametrize(
    "text",
    [
        "plain",
        "",
        " \n",
        "{",
        "[",
        "[1, 2]",
        "{}",
        '{"city": "Bern"}',
        '{"name": "Bern", "arguments": {}}',
        '{"name": "get_weather"}',
        '{"name": "get_weather", "version": 2}',
        '{"name": 5, "arguments": {}}',
        '{"name": "get_weather", "arguments": {"city": "Bern"}',
        '{"name": "get_weather", "arguments": {"city": NaN}}',
        '{"name": "get_weather", "arguments": {"city": 1e999}}',
        '{"name": "get_weather", "arguments": {"city": a + b}}',
        f"For example: {BERN}",
        f"```json\n{BERN}\n```\nis how it is called",
        f'```json\n[{BERN}, {{"name": "no"}}]\n```',
        f"```text\n{BERN}\n```",
        f"Look:\n```json\n{BERN}\n```",
        "<tool_call>get the weather</tool_call>",
        '<tool_call>{"name": "no", "arguments": {}}</tool_call>',
        "<TOOLCALL>[]</TOOLCALL>",
        "`<tool_call>` begins a call",
        "<tool_cal",
        "<function=no><parameter=a>1</parameter></function>",
        "<function=get_weather><parameter=city>Bern</parameter>",
        "<function=get_weather><parameter=city>Bern",
        "<function=get_weather>[1]</function>",
        "get_weather tells the weather",
        "get_weather() tells the weather",
        "get_weather(city) tells the weather",
        "get_weather(city=city)",
        "get_weather(city='Bern', city='Rome')",
        "get_weather(city='Bern', 'Rome')",
        "get_weather('Bern', city='Rome')",
        "get_weather('Bern', 1, 2)",
        "get_weatherman(city='Bern')",
        "get_weather(city=open('Bern'))",
        "math(a=1)",
        "math.add(a=1",
    ],
)
def test_what_is_no_call_is_text(text: str) -> None:
    assert calls(text) == []
    assert answer(text) == text


@pytest.mark.parametrize(
    "echo",
    [
        WEATHER,
        {"type": "function", "function": WEATHER},
        {"name": "get_weather", "parameters": WEATHER["parameters"]},
        {"name": "get_weather", "parameters": {"type": "object"}},
        {"name": "get_weather", "arguments": {"properties": {"city": {"type": "string"}}}},
    ],
)
def test_a_declaration_repeated_is_no_call(echo: dict[str, Any]) -> None:
    assert calls(json.dumps(echo)) == []
    assert calls(f"<TOOLCALL>[{json.dumps(echo)}]</TOOLCALL>") == []


def test_an_argument_may_have_a_name_that_schemas_use() -> None:
    schema = {"type": "object", "properties": {"type": {}, "properties": {}}}
    tools = read_tools([{"name": "draw", "parameters": schema}])
    arguments = {"type": "object", "properties": {"color": "red"}}
    call = {"name": "draw", "arguments": arguments}
    assert calls(json.dumps(call), tools) == [("draw", arguments)]


def test_a_call_in_the_middle_of_prose_leaves_the_prose() -> None:
    found = spans([f"I look.\n<TOOLCALL>[{BERN}]</TOOLCALL>\nDone."])
    assert [span[:2] for span in found] == [
        ("answer", "I look.\n"), ("call", f"<TOOLCALL>[{BERN}]</TOOLCALL>"), ("answer", "\nDone."),
    ]  # fmt: skip


def test_a_call_after_a_spelling_that_failed_is_found() -> None:
    text = f'<tool_call>oh <tool_call>{{"name": <tool_call>{BERN}</tool_call>'
    assert calls(text) == [A_BERN]
    assert answer(text) == '<tool_call>oh <tool_call>{"name": '


def test_a_bad_object_in_a_list_leaves_the_calls_before_it() -> None:
    text = f'<TOOLCALL>[{BERN}, {{"name": "no"}}]</TOOLCALL>'
    assert calls(text) == [A_BERN]
    assert answer(text) == ', {"name": "no"}]</TOOLCALL>'


def test_text_between_two_bare_calls_ends_the_calls() -> None:
    assert calls(f"{BERN} and {SUM}") == [A_BERN]


def test_tags_in_a_string_are_part_of_it() -> None:
    city = "</tool_call> <tool_call> ``` } ] \" ' \\"
    call = json.dumps({"name": "get_weather", "arguments": {"city": city}})
    assert calls(f"<tool_call>{call}</tool_call>") == [("get_weather", {"city": city})]


def test_without_tools_everything_is_text_at_once() -> None:
    parser = ToolParser([])
    assert parser.push("<tool_call>{") == [Piece(kind="answer", text="<tool_call>{")]
    assert parser.push("") == []
    assert parser.finish() == []


def pushed(chunks: Iterable[str]) -> list[list[str]]:
    """What each chunk gives: texts of pieces, calls in brackets."""
    parser = ToolParser(TOOLS)
    return [
        [f"[{p.call.name}]" if p.call else p.text for p in parser.push(chunk)] for chunk in chunks
    ]


def test_each_call_of_a_list_is_given_when_the_next_one_begins() -> None:
    given = pushed(["<TOOLCALL>[", BERN, ",", " {", SUM[1:], "]", "</TOOL", "CALL>"])
    assert given == [[], [], [], ["[get_weather]"], [], [], [], ["[math.add]"]]


def test_a_bare_call_is_given_with_its_last_character() -> None:
    assert pushed([BERN[:-1], BERN[-1], ";", f"[{SUM}", "]"]) == [
        [], ["[get_weather]"], [], [], ["[math.add]"],
    ]  # fmt: skip


@pytest.mark.parametrize(
    "chunks",
    [
        ["{", '"city', '"'],
        ["[", " ", "1"],
        ["```", "pyth", "on\np"],
        ["{", '"name": ', '"Bern"'],
        ["get", "_", "time"],
        ["get_weather", "(", "city", ")"],
        [" ", "<", "b>"],
        ["<tool_call", ">", "x"],
        ["<tool_call>", '{"type"', ': "object"'],
        ["<function=", "get_weather", "s"],
    ],
)
def test_text_is_released_with_what_shows_that_it_is_no_call(chunks: list[str]) -> None:
    *held, last = pushed(chunks)
    assert held == [[]] * len(held)
    assert last == ["".join(chunks)]


def test_prose_is_given_at_once_but_for_the_beginning_of_a_tag() -> None:
    assert pushed(["So", " it <", "is <to", "ol>"]) == [["So"], [" it "], ["<is "], ["<tool>"]]


def test_calls_are_numbered_unless_the_model_names_them() -> None:
    named = BERN.replace("{", '{"id": "call_2", ', 1)
    found = spans([f"<TOOLCALL>[{BERN}, {named}, {SUM}, {named}]</TOOLCALL>"])
    assert [span[2].id for span in found] == ["call_1", "call_2", "call_3", "call_4"]


@pytest.mark.parametrize(
    ("arguments", "read"),
    [
        ({"a": "5"}, {"a": 5}),
        ({"a": "-2.5e3"}, {"a": -2500.0}),
        ({"exact": "true"}, {"exact": True}),
        ({"terms": "[1, 2]"}, {"terms": [1, 2]}),
        ({"a": "five"}, {"a": "five"}),
        ({"a": "NaN"}, {"a": "NaN"}),
        ({"a": "1e999"}, {"a": "1e999"}),
        ({"a": "true"}, {"a": "true"}),
        ({"exact": "True"}, {"exact": "True"}),
        ({"exact": "1"}, {"exact": "1"}),
        ({"terms": ["1"]}, {"terms": ["1"]}),
        ({"other": "5"}, {"other": "5"}),
    ],
)
def test_a_string_of_exactly_the_json_that_the_schema_wants_is_that(
    arguments: dict[str, Any], read: dict[str, Any]
) -> None:
    assert calls(json.dumps({"name": "math.add", "arguments": arguments})) == [("math.add", read)]


def test_text_that_looks_like_a_number_stays_text_where_text_is_wanted() -> None:
    assert calls("get_weather(city='5', days='3')") == [("get_weather", {"city": "5", "days": 3})]
    assert calls("get_weather(city=5)") == [("get_weather", {"city": 5})]


def problem(text: str) -> str | None:
    [span] = spans([text])
    found: str | None = span[2].problem
    return found


def test_a_call_that_the_schema_refuses_is_given_with_the_reason() -> None:
    assert problem(BERN) is None
    assert problem("get_weather(days=1)") == "arguments: 'city' is a required property"
    assert problem("get_weather(city=5)") == "arguments.city: 5 is not of type 'string'"


@pytest.mark.parametrize("arguments", ['"soon"', "[1]", "5"])
def test_arguments_that_are_no_object_are_a_problem(arguments: str) -> None:
    text = f'{{"name": "get_weather", "arguments": {arguments}}}'
    assert problem(text) == f"arguments: must be an object, not {arguments}"


@pytest.mark.parametrize("arguments", ['""', "null", '"{}"', "{}"])
def test_no_arguments_may_be_spelled_in_many_ways(arguments: str) -> None:
    assert calls(f'{{"name": "math.add", "arguments": {arguments}}}') == [("math.add", {})]


def test_a_name_alone_is_a_call_only_in_tags() -> None:
    assert calls('<tool_call>{"name": "math.add"}</tool_call>') == [("math.add", {})]


def test_a_parameter_in_tags_is_what_the_schema_says() -> None:
    text = (
        "<function=math.add><parameter=a>5</parameter><parameter=exact>True</parameter>"
        "<parameter=terms>\n[1, 'x']\n</parameter><parameter=b>null</parameter></function>"
    )
    assert calls(text) == [("math.add", {"a": 5, "exact": True, "terms": [1, "x"], "b": None})]
    text = "<function=get_weather><parameter=city>\n\n5\n\n</parameter></function>"
    assert calls(text) == [("get_weather", {"city": "\n5\n"})]


PARTS = [
    "<TOOLCALL>", "</TOOLCALL>", "<tool_call>", "</tool_call>", "<|python_tag|>", "<function=",
    "get_weather>", "<parameter=city>", "</parameter>", "</function>", "get_weather", "math.add",
    "(", ")", "city=", "a=1", "'Bern'", '"', "'", "\\", "[", "]", "{", "}", ",", ";", ":", "\n",
    " ", "```", "```json\n", "`", '{"name": "get_weather"', ', "arguments": ', '{"city": "Bern"}}',
    BERN, BERN, SUM, SUM, "<", "tool_", "x", "so ", "你", "😀", "\ud800", "\u2028",
    '{"type": "function"', '{"function": ', "null", "1",
]  # fmt: skip
texts = st.lists(st.sampled_from(PARTS), max_size=14).map("".join)


@given(text=texts, data=st.data())
@settings(deadline=None, max_examples=800)
def test_the_chunks_make_no_difference(text: str, data: st.DataObject) -> None:
    places = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    whole = spans([text])
    assert "".join(span[1] for span in whole) == text
    assert spans(text) == whole
    edges = [0, *places, len(text)]
    assert spans(text[a:b] for a, b in pairwise(edges)) == whole


@given(text=st.text(max_size=60), tag=st.sampled_from(["", "<TOOLCALL>[{", "<tool_call>f("]))
@settings(deadline=None)
def test_any_text_goes_through_unchanged(text: str, tag: str) -> None:
    tools = [*TOOLS, Tool(name="f", parameters={"type": "object"})]
    assert "".join(span[1] for span in spans(tag + text, tools)) == tag + text


def test_random_damage_never_raises_and_never_depends_on_the_chunks() -> None:
    rng = random.Random(7)
    sources = [
        f"So:\n<TOOLCALL>[{BERN}, {SUM}]</TOOLCALL> ok", f"```json\n[{BERN},{SUM}]\n```",
        f"{BERN}; {SUM}", "[get_weather(city='Bern', days=3), math.add(1, b=2.5)]",
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nBern\n</parameter>\n</function>"
        "</tool_call>",
    ]  # fmt: skip
    for _ in range(3000):
        text = rng.choice(sources)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(text) + 1)
            text = text[:at] + rng.choice(["", *PARTS]) + text[at + rng.randint(0, 3) :]
        whole = spans([text])
        assert "".join(span[1] for span in whole) == text
        assert spans(text) == whole


@pytest.mark.parametrize(
    "text",
    [
        "[" * 200_000,
        "<tool_call>" + "[" * 200_000,
        "<tool_call>" * 20_000,
        '<tool_call>{"name": "' * 10_000,
        '{"name": "get_weather", "arguments": ' + '{"a":' * 40_000,
        '{"name": "get_weather", "arguments": {"city": "' + "x" * 200_000,
        '{"name": "get_weather", "arguments": {"city": "' + "\\" * 200_000,
        "get_weather(city=" + "[1]," * 50_000,
        "get_weather(" + "-" * 200_000 + "1)",
        "get_weather(city=1" + "+1" * 100_000 + ")",
        BERN + " ;" * 100_000,
        "```json\n" + BERN + "`" * 200_000,
    ],
    ids=lambda text: text[:24],
)
def test_a_long_adversarial_text_goes_through_unchanged(text: str) -> None:
    found = spans([*text[:50_000], text[50_000:]])
    assert "".join(span[1] for span in found) == text


def test_arguments_nested_too_deeply_are_text() -> None:
    deep = '{"name": "math.add", "arguments": {"terms": ' + "[" * 100 + "]" * 100 + "}}"
    assert calls(deep) == []
    as_string = json.dumps({"name": "math.add", "arguments": '{"terms": ' + "[" * 999 + "]" * 999})
    assert calls(as_string) == [("math.add", {})]
    assert problem(as_string) is not None
