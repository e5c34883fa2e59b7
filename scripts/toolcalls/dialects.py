"""The same calls in every spelling that the parser reads."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, TypeAlias

from edgekit.runtime.tools import TOOL_FORMATS

Call: TypeAlias = tuple[str, dict[str, Any]]
"""Name and arguments."""


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _object(call: Call, key: str = "arguments") -> dict[str, Any]:
    return {"name": call[0], key: call[1]}


def _objects(calls: list[Call], between: str = ", ", key: str = "arguments") -> str:
    return between.join(_json(_object(call, key)) for call in calls)


def _tags(calls: list[Call], write: Callable[[Call], str]) -> str:
    return "\n".join(f"<tool_call>\n{write(call)}\n</tool_call>" for call in calls)


def _openai(calls: list[Call]) -> list[dict[str, Any]]:
    return [
        {"type": "function", "function": {"name": name, "arguments": _json(arguments)}}
        for name, arguments in calls
    ]


def _with_trailing_commas(value: Any) -> str:
    if isinstance(value, dict) and value:
        items = (f"{_json(key)}: {_with_trailing_commas(item)}," for key, item in value.items())
        return "{" + " ".join(items) + "}"
    if isinstance(value, list) and value:
        return "[" + " ".join(_with_trailing_commas(item) + "," for item in value) + "]"
    return _json(value)


def _as_function(call: Call) -> str:
    return f"{call[0]}({', '.join(f'{key}={value!r}' for key, value in call[1].items())})"


def _as_xml(call: Call) -> str:
    parameters = "".join(
        f"<parameter={key}>\n{value if isinstance(value, str) else _json(value)}\n</parameter>\n"
        for key, value in call[1].items()
    )
    return f"<function={call[0]}>\n{parameters}</function>"


_WRITERS: dict[str, Callable[[list[Call]], str]] = {
    "<TOOLCALL>": lambda c: f"<TOOLCALL>[{_objects(c)}]</TOOLCALL>",
    "<TOOL_CALL>": lambda c: f"<TOOL_CALL>[{_objects(c)}]</TOOL_CALL>",
    "<ANGLED_TOOLS>": lambda c: f"<ANGLED_TOOLS>\n[{_objects(c)}]\n</ANGLED_TOOLS>",
    "<tool_call>": lambda c: _tags(c, lambda call: _json(_object(call))),
    "<tool_call>, several in one": lambda c: f"<tool_call>{_objects(c, chr(10))}</tool_call>",
    "in the middle of prose": lambda c: (
        f"I look it up.\n\n<TOOLCALL>[{_objects(c)}]</TOOLCALL>\nOK"
    ),
    "tag not closed": lambda c: f"<TOOLCALL>[{_objects(c)}]",
    "`]` missing": lambda c: f"<TOOLCALL>[{_objects(c)}</TOOLCALL>",
    "`]` and end tag missing": lambda c: f"<TOOLCALL>[{_objects(c)}",
    "`}` missing": lambda c: _tags(c, lambda call: _json(_object(call))[:-1]),
    "`}` too many": lambda c: _tags(c, lambda call: _json(_object(call)) + "}"),
    "<|python_tag|>": lambda c: f"<|python_tag|>{_objects(c, '; ', 'parameters')}",
    "bare, `;` between": lambda c: _objects(c, "; "),
    "bare, line by line": lambda c: _objects(c, "\n", "parameters"),
    "bare list": lambda c: f"[{_objects(c)}]",
    "indented": lambda c: json.dumps([_object(call) for call in c], indent=4),
    "fenced": lambda c: f"```json\n[{_objects(c)}]\n```",
    "fenced, line by line": lambda c: f"```\n{_objects(c, chr(10))}\n```\n",
    "arguments as a string": lambda c: _tags(
        c, lambda call: _json({"name": call[0], "arguments": _json(call[1])})
    ),
    "below `function`": lambda c: f"<TOOLCALL>{_json([{'function': _object(x)} for x in c])}",
    "OpenAI's shape": lambda c: _json(_openai(c)),
    "`type` first": lambda c: "; ".join(
        _json({"type": "function", **_object(call, "parameters")}) for call in c
    ),
    "Python literal": lambda c: f"<TOOLCALL>{[_object(call) for call in c]!r}</TOOLCALL>",
    "trailing commas": lambda c: _tags(c, lambda call: _with_trailing_commas(_object(call))),
    "name(key=value)": lambda c: "\n".join(map(_as_function, c)),
    "[name(key=value)]": lambda c: f"[{', '.join(map(_as_function, c))}]",
    "<function=name>, values": lambda c: "\n".join(map(_as_xml, c)),
    "<function=name> in a tag": lambda c: _tags(c, _as_xml),
    "<function=name>, JSON": lambda c: "".join(
        f"<function={name}>{_json(arguments)}</function>" for name, arguments in c
    ),
}
BARE_TEXT = frozenset({"<function=name>, values", "<function=name> in a tag"})
"""Dialects that do not say `"1"` from `1`; only the schema does, if it says anything."""
DIALECTS: Mapping[str, Callable[[list[Call]], str]] = MappingProxyType(
    _WRITERS
    | {
        f"our own: {name}": lambda c, row=row: row.call_text(_openai(c))
        for name, row in TOOL_FORMATS.items()
    }
)
