"""Declarations and expected calls in the shape of the Berkeley Function Calling Leaderboard.

A question is `{"id": …, "function": [{"name", "description", "parameters"}, …]}`, with types named
as in Python or Java; its answer `{"id": …, "ground_truth": [{name: {argument: [value, …]}}, …]}`
with every value that is right for an argument, "" where it may be left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.runtime.tools import Tool, read_tools
from toolcalls.dialects import Call

_TYPES = {
    "dict": "object", "hashmap": "object", "float": "number", "double": "number",
    "long": "integer", "tuple": "array", "arraylist": "array", "char": "string",
    "string": "string", "boolean": "boolean", "array": "array", "integer": "integer",
    "object": "object", "number": "number",
}  # fmt: skip
"""To JSON schema's names; any other name (`any`) says nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """The tools that a model is given, and the calls that are right."""

    id: str
    tools: tuple[Tool, ...]
    calls: list[Call]


def read_questions(questions: Path, answers: Path) -> Iterator[Question]:
    """The questions of one category, from two files of JSON lines."""
    truths = {row["id"]: row["ground_truth"] for row in _rows(answers)}
    for row in _rows(questions):
        tools = read_tools([_declaration(function) for function in row["function"]])
        calls = [_call(truth) for truth in truths[row["id"]]]
        yield Question(id=row["id"], tools=tools, calls=calls)


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def _declaration(function: dict[str, Any]) -> dict[str, Any]:
    return {**function, "parameters": _schema(function["parameters"])}


def _schema(node: Any) -> Any:
    """The schema with JSON schema's names of types."""
    if not isinstance(node, dict):
        return node
    out = dict(node)
    if isinstance(kind := out.pop("type", None), str) and kind.lower() in _TYPES:
        out["type"] = _TYPES[kind.lower()]
    if isinstance(properties := out.get("properties"), dict):
        out["properties"] = {key: _schema(value) for key, value in properties.items()}
    for key in ("items", "additionalProperties"):
        if key in out:
            out[key] = _schema(out[key])
    return out


def _call(truth: dict[str, dict[str, list[Any]]]) -> Call:
    [(name, accepted)] = truth.items()
    return name, {key: _first(values) for key, values in accepted.items() if values != [""]}


def _first(values: list[Any]) -> Any:
    """One right value: the first that is not the mark of one that may be left out."""
    value = next((value for value in values if value != ""), "")
    return _plain(value)


def _plain(value: Any) -> Any:
    """Objects list the right values of what is in them, too."""
    if isinstance(value, dict):
        return {
            key: _first(inner) if isinstance(inner, list) else inner for key, inner in value.items()
        }
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value
