from __future__ import annotations

import re
import socket
import subprocess
import sys
from typing import Any

import pytest

from edgekit.errors import InputError
from edgekit.runtime.tools import Tool, read_tools

SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "pattern": "^[A-Z]"},
        "stops": {"type": "array", "items": {"$ref": "#/$defs/stop"}},
    },
    "required": ["city"],
    "$defs": {"stop": {"type": "object", "properties": {"at": {"type": "integer"}}}},
}


def tool(schema: dict[str, Any]) -> Tool:
    [read] = read_tools([{"name": "f", "parameters": schema}])
    return read


def test_openai_s_shape_and_the_bare_one_are_the_same() -> None:
    bare = {"name": "f", "description": "Does it.", "parameters": SCHEMA}
    wrapped = {"type": "function", "function": {**bare, "strict": True}}
    assert read_tools([bare]) == read_tools([wrapped])
    assert read_tools([bare])[0] == Tool(name="f", description="Does it.", parameters=SCHEMA)


def test_a_tool_is_written_as_it_was_read() -> None:
    shape = {
        "type": "function",
        "function": {"name": "f", "description": "Does it.", "parameters": SCHEMA},
    }
    assert [tool.to_dict() for tool in read_tools([shape])] == [shape]


def test_a_tool_may_take_nothing_and_say_nothing() -> None:
    [read] = read_tools([{"name": "clock.now-2", "description": None}])
    function = {"name": "clock.now-2", "parameters": {"type": "object", "properties": {}}}
    assert read.to_dict() == {"type": "function", "function": function}
    assert read_tools([read.to_dict()]) == (read,)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "`tools` must be a list: {}"),
        ([5], "`tools[0]` must be an object: 5"),
        ([{"type": "function", "function": "f"}], "`tools[0].function` must be an object: 'f'"),
        ([{"type": "web_search"}], "`tools[0]` has no `name`: {'type': 'web_search'}"),
        ([{"type": "code", "function": {}}], "`tools[0].type` must be `function`: 'code'"),
        ([{"name": "a b"}], "`tools[0].name` must be 1 to 64 letters, digits, `_`, `-` or `.`: "),
        ([{"name": "a\n"}], "`tools[0].name` must be"),
        ([{"name": "a" * 65}], "`tools[0].name` must be"),
        ([{"name": ""}], "`tools[0].name` must be"),
        ([{"name": 5}], "`tools[0].name` must be"),
        ([{"name": "a"}, {"name": "b"}, {"name": "a"}], "tools[0] and tools[2] have the same name"),
        ([{"name": "a", "description": 5}], "`tools[0].description` must be text: 5"),
        ([{"name": "a", "parameters": []}], "`tools[0].parameters` must be the JSON schema of an"),
        ([{"name": "a", "parameters": {"type": "array"}}], "`tools[0].parameters` must be the"),
        (
            [{"name": "a"}, {"function": {"name": "b", "parameters": {
                "type": "object", "properties": {"x": {"type": "int"}}}}}],
            "`tools[1].function.parameters.properties.x.type` is not a valid JSON schema: 'int'",
        ),
        (
            [{"name": "a", "parameters": {"properties": {"x": {"pattern": "("}}}}],
            "`tools[0].parameters.properties.x.pattern` is not a valid JSON schema: '('",
        ),
        (
            [{"name": "a", "parameters": {"required": "x"}}],
            "`tools[0].parameters.required` is not a valid JSON schema: 'x'",
        ),
        (
            [{"name": "a", "parameters": {"properties": {"x": {"$ref": "#/$defs/y"}}}}],
            "`tools[0].parameters.properties.x.$ref` must refer to a place in the same schema",
        ),
        (
            [{"name": "a", "parameters": {"anyOf": [{"$ref": "http://localhost/x"}]}}],
            "`tools[0].parameters.anyOf[0].$ref` must refer to a place in the same schema: ",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_its_place(data: Any, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        read_tools(data)


def test_a_schema_nested_without_end_is_refused() -> None:
    schema: dict[str, Any] = {"type": "object"}
    for _ in range(3000):
        schema = {"type": "object", "properties": {"x": schema}}
    with pytest.raises(InputError, match="nested too deeply"):
        tool(schema)


def test_valid_arguments_have_no_problem() -> None:
    assert tool(SCHEMA).problem({"city": "Bern", "stops": [{"at": 1}], "more": None}) is None


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({}, "arguments: 'city' is a required property"),
        ({"city": 5}, "arguments.city: 5 is not of type 'string'"),
        ({"city": "bern"}, "arguments.city: 'bern' does not match '^[A-Z]'"),
        (
            {"city": "Bern", "stops": [{"at": 1}, {"at": "x"}]},
            "arguments.stops[1].at: 'x' is not of type 'integer'",
        ),
    ],
)
def test_a_problem_says_where_and_what(arguments: dict[str, Any], problem: str) -> None:
    assert tool(SCHEMA).problem(arguments) == problem


def test_a_problem_with_a_long_value_stays_short() -> None:
    problem = tool(SCHEMA).problem({"city": ["x" * 10_000]})
    assert problem is not None
    assert len(problem) < 400
    assert problem.endswith("is not of type 'string'")


def test_a_schema_that_refers_to_itself_without_end_is_a_problem_of_the_call() -> None:
    assert tool({"$ref": "#"}).problem({}) == "arguments: nested too deeply for the tool's schema"


def test_a_number_beyond_floats_is_a_problem_of_the_call() -> None:
    schema = {"properties": {"x": {"multipleOf": 0.5}}}
    problem = tool(schema).problem({"x": 10**400})
    assert problem == "arguments: a number is too large for the tool's schema"


@pytest.mark.parametrize("key", ["$ref", "$dynamicRef", "$schema", "$id"])
def test_nothing_is_fetched(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    schema = {"type": "object", "properties": {"x": {key: "http://127.0.0.1:9/schema"}}}
    if key.endswith("ef"):
        with pytest.raises(InputError, match="same schema"):
            tool(schema)
        made = Tool(name="f", parameters=schema)  # past the check
        problem = made.problem({"x": 1})
        assert problem == (
            "arguments: the tool's schema refers to something outside of it: "
            "http://127.0.0.1:9/schema"
        )
    else:
        assert tool(schema).problem({"x": 1}) is None


def test_the_schema_library_is_loaded_when_a_tool_is_read() -> None:
    code = "import sys, edgekit.runtime.tools; assert 'jsonschema' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
