"""A user's JSON schema, checked and made ready for the compiler of constraints.

What cannot be enforced is refused by name, never ignored. Keywords that no draft knows, such as
`nullable` or `x-order`, say nothing about a value, and JSON Schema wants them ignored.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from edgekit.errors import InputError
from edgekit.runtime.example import example_of

_ONE = frozenset(
    {"additionalItems", "additionalProperties", "contains", "else", "if", "items", "not",
     "propertyNames", "then", "unevaluatedItems", "unevaluatedProperties"}
)  # fmt: skip
_LIST = frozenset({"allOf", "anyOf", "items", "oneOf", "prefixItems"})
_MAP = frozenset({"$defs", "definitions", "dependentSchemas", "patternProperties", "properties"})
_SIZES = frozenset(
    {"maxItems", "maxLength", "maxProperties", "minItems", "minLength", "minProperties"}
)
_LONGEST_FILLER = 2000
_MAX_WORDS = 300
_SHOWN = 200


def prepare_schema(schema: Any) -> dict[str, Any]:
    """The schema as an object that says the same and that the compiler takes.

    Raises `InputError` where it is no valid schema (of the draft that `$schema` names, else
    2020-12), refers to anything outside itself, or asks for what no constraint can hold.
    """
    try:
        _check(schema)
        prepared: dict[str, Any] | bool = _rewrite(schema)
    except RecursionError as exc:
        raise InputError("the schema is nested too deeply") from exc
    if isinstance(prepared, bool):
        return {"allOf": [prepared]}
    prepared.pop("x-guidance", None)  # options of the compiler are ours to set
    return prepared


def words_of(schema: Any) -> list[str]:
    """JSON texts that values of the schema are made of: `"name":` of required keys, constants,
    strings that are long enough, examples of patterns.

    In the order of the schema, none twice, not more than a few hundred.
    """
    words: dict[str, None] = {}
    for part in _parts(schema):
        names = _list(part.get("required"))
        ordered = [name for name in part.get("properties", ()) if name in names]
        words |= {_dump(name) + ":": None for name in (*ordered, *names)}
        constants = _list(part.get("enum")) + ([part["const"]] if "const" in part else [])
        words |= dict.fromkeys(sorted(map(_dump, constants), key=len)[:1])
        words |= {_dump("a" * min(part.get("minLength", 0), _LONGEST_FILLER)): None}
        patterns = [part.get("pattern", ""), *part.get("patternProperties", ())]
        words |= {_dump(example_of(pattern)): None for pattern in patterns}
    return list(words)[:_MAX_WORDS]


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _check(schema: Any) -> None:
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import validator_for

    if not isinstance(schema, dict | bool):
        raise InputError(
            f"a JSON schema is an object, not {type(schema).__name__}",
            hint='for example {"type": "object", "properties": {"name": {"type": "string"}}}',
        )
    try:
        validator_for(schema, default=Draft202012Validator).check_schema(schema)
    except SchemaError as exc:
        message = exc.message if len(exc.message) <= _SHOWN else exc.message[:_SHOWN] + "…"
        where = exc.json_path.removeprefix("$").removeprefix(".") or "its top"
        old = (
            ""
            if "$schema" in _top(schema)
            else '; a schema of an older draft names it as "$schema"'
        )
        raise InputError(
            f"not a valid JSON schema: at {where}: {message}",
            hint=f"correct that keyword{old}",
        ) from exc


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _top(schema: Any) -> Mapping[str, Any]:
    return schema if isinstance(schema, dict) else {}


def _rewrite(schema: Any) -> Any:
    """A copy without what says nothing, its sizes as whole numbers."""
    if not isinstance(schema, dict):
        return schema
    _refuse(schema)
    copy: dict[str, Any] = {}
    for key, value in schema.items():
        if key in _SIZES:
            copy[key] = int(value)
        elif key == "uniqueItems" and value is False:
            continue
        elif key in _MAP and isinstance(value, dict):
            copy[key] = {name: _rewrite(part) for name, part in value.items()}
        elif key in _LIST and isinstance(value, list):
            copy[key] = [_rewrite(part) for part in value]
        elif key in _ONE:
            copy[key] = _rewrite(value)
        else:
            copy[key] = value
    return copy


def _refuse(schema: Mapping[str, Any]) -> None:
    required = len(set(_list(schema.get("required"))))
    if schema.get("minProperties", 0) > required + 1:
        raise InputError(
            f"minProperties {schema['minProperties']} cannot be enforced: nothing keeps a key "
            "from being written twice",
            hint='name the keys in "properties" and "required"',
        )


def _parts(schema: Any) -> Iterator[Mapping[str, Any]]:
    """The schema and every schema in it, outermost first."""
    if not isinstance(schema, dict):
        return
    yield schema
    for key, value in schema.items():
        if key in _MAP and isinstance(value, dict):
            inner = list(value.values())
        elif key in _LIST and isinstance(value, list):
            inner = value
        else:
            inner = [value] if key in _ONE else []
        for part in inner:
            yield from _parts(part)
