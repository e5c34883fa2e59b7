"""The tools of a request, and a structure that holds an answer to a call where one is required.

The model was told of the tools in its own words; what is enforced is the JSON that every parser of
calls reads: `{"name": …, "arguments": …}`, with arguments that fit the tool's schema.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgekit.errors import InputError
from edgekit.runtime.structure import Structure
from edgekit.runtime.tools import Tool, read_tools
from edgekit.serve.refusals import FieldError


def declared_tools(data: Sequence[dict[str, Any]]) -> tuple[Tool, ...]:
    """Tools in OpenAI's shape, or bare. Raises `FieldError`."""
    try:
        return read_tools(list(data))
    except InputError as exc:
        raise FieldError("tools", str(exc)) from exc


def chosen_tool(tools: Sequence[Tool], choice: str | None) -> str:
    """`Ask.tool_choice` for a choice in its own spelling. Raises `FieldError`."""
    if choice is None:
        return "auto"
    name = choice.removeprefix("=")
    if choice.startswith("=") and name not in [tool.name for tool in tools]:
        raise FieldError("tool_choice", f"`tool_choice` names a tool that is not there: {name}")
    if choice == "required" and not tools:
        raise FieldError("tool_choice", "`tool_choice` requires a call, and `tools` has none")
    return choice


def call_structure(tools: Sequence[Tool], name: str) -> Structure:
    """One call of the tool with this name; of any one where it is `required`.

    Raises `InputError` when there is none.
    """
    chosen = [tool for tool in tools if name in ("required", tool.name)]
    if not chosen:
        known = ", ".join(tool.name for tool in tools) or "none are declared"
        raise InputError(f"`tool_choice` names a tool that is not there: {name} ({known})")
    schemas = {f"tool{i}": tool.parameters for i, tool in enumerate(chosen)}
    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"const": tool.name},
                "arguments": {"$ref": f"#/$defs/tool{i}"},
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for i, tool in enumerate(chosen)
    ]
    definitions = {key: _moved(schema, f"#/$defs/{key}") for key, schema in schemas.items()}
    head = calls[0] if len(calls) == 1 else {"anyOf": calls}
    return Structure(json_schema={**head, "$defs": definitions})


def form_or_call(form: Structure, tools: Sequence[Tool]) -> Structure:
    """An answer of a form, or one call: of a JSON schema, or any object, which a call is too."""
    if form.json_object:
        return form
    call = call_structure(tools, "required").json_schema
    assert isinstance(call, dict)
    definitions = call.pop("$defs")
    said = _moved(form.json_schema, "#/$defs/form")
    return Structure(
        json_schema={
            "anyOf": [call, {"$ref": "#/$defs/form"}],
            "$defs": {**definitions, "form": said},
        }
    )


def _moved(schema: Any, place: str) -> Any:
    """A schema with its references into itself pointing to where it lies now."""
    if isinstance(schema, list):
        return [_moved(item, place) for item in schema]
    if not isinstance(schema, dict):
        return schema
    moved = {key: _moved(value, place) for key, value in schema.items()}
    target = schema.get("$ref")
    if isinstance(target, str) and target.startswith("#"):
        moved["$ref"] = place + target[1:]
    return moved
