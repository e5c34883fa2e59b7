"""Tool calls out of what a model wrote: names, arguments, and what the schema says of them.

An argument changes its type in one case only: the schema names a single type other than string,
the model wrote a string, and the string is exactly JSON of that type (`"5"` for an integer,
`"true"` for a boolean, `"[1]"` for an array). Only the arguments themselves, not what lies in them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from edgekit.runtime.piece import ToolCall
from edgekit.runtime.tools.literal import read_literal
from edgekit.runtime.tools.spec import Tool

_KINDS: dict[str, tuple[type, ...]] = {
    "integer": (int,), "number": (int, float), "boolean": (bool,), "array": (list,),
    "object": (dict,), "null": (type(None),),
}  # fmt: skip
_CALL_KEYS = frozenset({"name", "arguments", "parameters", "function", "type", "id", "index"})


class Calls:
    """Makes calls of the declared tools; None wherever something is not one."""

    def __init__(self, tools: Iterable[Tool]) -> None:
        self.tools: Mapping[str, Tool] = {tool.name: tool for tool in tools}

    def from_object(self, value: Any, *, needs_arguments: bool) -> ToolCall | None:
        """The call that an object spells, with or without OpenAI's wrapping.

        `needs_arguments`: a name alone is not a call. A tool's own declaration is none either.
        """
        if not isinstance(value, dict):
            return None
        call_id = value.get("id")
        if isinstance(value.get("function"), dict):
            value = value["function"]
        name = value.get("name", value.get("function"))
        tool = self.tools.get(name) if isinstance(name, str) else None
        if tool is None or "description" in value:
            return None
        has_arguments = not value.keys().isdisjoint(("arguments", "parameters"))
        if not has_arguments and (needs_arguments or not value.keys() <= _CALL_KEYS):
            return None
        arguments = value.get("arguments", value.get("parameters"))
        if isinstance(arguments, str):
            arguments = _arguments_in(arguments)
        if _is_schema(arguments, tool):
            return None
        given_id = call_id if isinstance(call_id, str) else ""
        if arguments is None or arguments == "":
            arguments = {}
        if not isinstance(arguments, dict):
            problem = f"arguments: must be an object, not {json.dumps(arguments)[:60]}"
            return ToolCall(id=given_id, name=tool.name, arguments={}, problem=problem)
        return _checked(tool, arguments, given_id)

    def from_values(
        self, name: str, positional: list[Any], named: dict[str, Any]
    ) -> ToolCall | None:
        """The call `name(…)`; positional values are the schema's properties in their order."""
        tool = self.tools[name]
        properties = _properties(tool)
        if len(positional) == 1 and isinstance(positional[0], dict) and not named:
            first = next(iter(properties), "")
            if "object" not in _types(properties.get(first)):
                return _checked(tool, positional[0])
        names = list(properties)[: len(positional)]
        if len(names) < len(positional) or not named.keys().isdisjoint(names):
            return None
        return _checked(tool, dict(zip(names, positional, strict=True)) | named)

    def from_texts(self, name: str, texts: Mapping[str, str]) -> ToolCall:
        """The call whose arguments are bare text; the schema says what each one is."""
        tool = self.tools[name]
        properties = _properties(tool)
        arguments = {key: _typed(text, properties.get(key)) for key, text in texts.items()}
        return _checked(tool, arguments)


def _checked(tool: Tool, arguments: dict[str, Any], given_id: str = "") -> ToolCall:
    properties = _properties(tool)
    arguments = {key: _unwrapped(value, properties.get(key)) for key, value in arguments.items()}
    problem = tool.problem(arguments)
    return ToolCall(id=given_id, name=tool.name, arguments=arguments, problem=problem)


def _properties(tool: Tool) -> dict[str, Any]:
    properties = tool.parameters.get("properties")
    return properties if isinstance(properties, dict) else {}


def _types(schema: Any) -> tuple[str, ...]:
    named = schema.get("type", ()) if isinstance(schema, dict) else ()
    return (named,) if isinstance(named, str) else tuple(named)


def _is_kind(value: Any, kind: str) -> bool:
    return type(value) in _KINDS.get(kind, ())  # exactly: True is no integer


def _unwrapped(value: Any, schema: Any) -> Any:
    """A string that is JSON of the one type that the schema names as that type."""
    types = _types(schema)
    if not isinstance(value, str) or len(types) != 1 or types[0] == "string":
        return value
    try:
        inside = json.loads(value)
    except (ValueError, RecursionError):
        return value
    is_number = not isinstance(inside, float) or math.isfinite(inside)
    return inside if is_number and _is_kind(inside, types[0]) else value


def _typed(text: str, schema: Any) -> Any:
    """Bare text as what the schema says it is; without a type: as what it reads like.

    `null` is none of any type: a model that leaves out an argument writes it so.
    """
    types = _types(schema)
    if text == "null":
        return None
    if "string" in types:
        return text
    try:
        value = read_literal(text)
    except ValueError:
        return text
    return value if not types or any(_is_kind(value, kind) for kind in types) else text


def _arguments_in(text: str) -> Any:
    """Arguments that were given as a string of JSON; the string, if they were not."""
    if not text.strip():
        return None
    try:
        return read_literal(text)
    except ValueError:
        return text


def _is_schema(arguments: Any, tool: Tool) -> bool:
    """Whether the model repeats a declaration instead of calling it."""
    if not isinstance(arguments, dict):
        return False
    foreign = arguments.keys() - _properties(tool).keys()
    if "properties" in foreign and isinstance(arguments["properties"], dict):
        return True
    return "type" in foreign and arguments["type"] == "object"
