"""What a tool is: a name, a sentence for the model, and a JSON schema of its arguments."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from edgekit.errors import InputError

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_SHOWN = 60
_LONGEST_PROBLEM = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A function that the model may ask to call. `read_tools` makes it, and checks it."""

    name: str
    """Letters, digits, `_`, `-` and `.`, at most 64: OpenAI's rule, and dots."""
    description: str = ""
    parameters: dict[str, Any]
    """JSON schema (draft 2020-12) of the arguments, which are an object."""

    def to_dict(self) -> dict[str, Any]:
        """OpenAI's shape, as chat templates take it."""
        described = {"description": self.description} if self.description else {}
        function = {"name": self.name, **described, "parameters": self.parameters}
        return {"type": "function", "function": function}

    def problem(self, arguments: dict[str, Any]) -> str | None:
        """What the schema has against the arguments, in one sentence; None: they are valid."""
        from jsonschema import Draft202012Validator
        from jsonschema.exceptions import best_match
        from referencing import Registry
        from referencing.exceptions import Unresolvable

        # an empty registry: what a `$ref` names elsewhere is never fetched
        validator = Draft202012Validator(self.parameters, registry=Registry())
        try:
            error = best_match(validator.iter_errors(arguments))
        except Unresolvable as exc:
            return f"arguments: the tool's schema refers to something outside of it: {exc.ref}"
        except RecursionError:
            return "arguments: nested too deeply for the tool's schema"
        except ArithmeticError:  # `multipleOf` and a number beyond floats
            return "arguments: a number is too large for the tool's schema"
        if error is None:
            return None
        message = str(error.message)
        if len(message) > _LONGEST_PROBLEM:  # it quotes the value
            message = f"{message[: _LONGEST_PROBLEM // 2]} … {message[-_LONGEST_PROBLEM // 2 :]}"
        return f"{_place('arguments', error.absolute_path)}: {message}"


def read_tools(data: Any) -> tuple[Tool, ...]:
    """The tools of a list in OpenAI's shape, or of bare `{"name", "description", "parameters"}`.

    Keys that are not about a call (`strict`) are ignored. Raises `InputError` with the place
    of what is wrong.
    """
    if not isinstance(data, list):
        raise InputError(f"`tools` must be a list: {_shown(data)}")
    tools = tuple(_read_tool(item, f"tools[{number}]") for number, item in enumerate(data))
    names = [tool.name for tool in tools]
    for number, name in enumerate(names):
        if name in names[:number]:
            first = names.index(name)
            raise InputError(f"tools[{first}] and tools[{number}] have the same name: {name}")
    return tools


def _read_tool(item: Any, place: str) -> Tool:
    if isinstance(item, dict) and "function" in item:
        if item.get("type", "function") != "function":
            raise InputError(f"`{place}.type` must be `function`: {_shown(item['type'])}")
        item, place = item["function"], f"{place}.function"
    if not isinstance(item, dict):
        raise InputError(f"`{place}` must be an object: {_shown(item)}")
    if "name" not in item:
        raise InputError(f"`{place}` has no `name`: {_shown(item)}")
    name, description, parameters = (item.get(k) for k in ("name", "description", "parameters"))
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        rule = "1 to 64 letters, digits, `_`, `-` or `.`"
        raise InputError(f"`{place}.name` must be {rule}: {_shown(name)}")
    if description is not None and not isinstance(description, str):
        raise InputError(f"`{place}.description` must be text: {_shown(description)}")
    if parameters is None:
        parameters = {"type": "object", "properties": {}}
    _check_schema(parameters, f"{place}.parameters")
    return Tool(name=name, description=description or "", parameters=parameters)


def _check_schema(schema: Any, place: str) -> None:
    """Raises `InputError` unless it is a valid schema of an object that refers to itself only."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError

    if not isinstance(schema, dict) or schema.get("type", "object") != "object":
        raise InputError(f"`{place}` must be the JSON schema of an object: {_shown(schema)}")
    try:
        checker = Draft202012Validator.FORMAT_CHECKER  # finds regular expressions that are none
        Draft202012Validator.check_schema(schema, format_checker=checker)
        _check_references(schema, place)
    except SchemaError as exc:
        where = _place(place, exc.absolute_path)
        raise InputError(f"`{where}` is not a valid JSON schema: {_shown(exc.instance)}") from exc
    except RecursionError as exc:
        raise InputError(f"`{place}` is nested too deeply") from exc


def _check_references(schema: dict[str, Any], place: str) -> None:
    from referencing import Registry
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import DRAFT202012

    base = schema.get("$id", "")
    registry = Registry().with_resource(base, DRAFT202012.create_resource(schema))
    resolver = registry.resolver(base)
    for path, reference in _references(schema):
        try:
            if not reference.startswith("#"):
                raise Unresolvable(ref=reference)
            resolver.lookup(reference)
        except Unresolvable as exc:
            where = _place(place, path)
            raise InputError(
                f"`{where}` must refer to a place in the same schema: {_shown(reference)}",
                hint="edgekit fetches no schemas: write what it refers to below `$defs`",
            ) from exc


def _references(node: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[Any, str]]:
    items: Iterable[tuple[str | int, Any]] = ()
    if isinstance(node, dict):
        items = node.items()
    elif isinstance(node, list):
        items = enumerate(node)
    for key, value in items:
        if key in ("$ref", "$dynamicRef") and isinstance(value, str):
            yield (*path, key), value
        yield from _references(value, (*path, key))


def _place(root: str, path: Iterable[str | int]) -> str:
    return root + "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in path)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"
