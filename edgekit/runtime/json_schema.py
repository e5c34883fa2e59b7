"""A user's JSON schema, checked and made ready for the compiler of constraints.

What cannot be enforced is refused by name, never ignored. Keywords that no draft knows, such as
`nullable` or `x-order`, say nothing about a value, and JSON Schema wants them ignored.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from types import MappingProxyType
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
_FORMATS = MappingProxyType(
    {
        "date": "2000-01-01",
        "date-time": "2000-01-01T00:00:00Z",
        "duration": "P0D",
        "email": "a@a",
        "hostname": "a",
        "ipv4": "0.0.0.0",
        "ipv6": "::0",
        "time": "00:00:00Z",
        "uri": "a:",
        "uuid": "00000000-0000-0000-0000-000000000000",
    }
)
"""A short text of every format that is enforced."""
_LONGEST_FILLER = 2000
_MAX_WORDS = 300
_DEEPEST = 12
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
    strings that are long enough, examples of patterns and formats.

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
        examples = [*map(example_of, patterns), _FORMATS.get(part.get("format", ""), "")]
        words |= {_dump(example): None for example in examples}
    return list(words)[:_MAX_WORDS]


def longest_part_of(schema: Any) -> str:
    """A short JSON text of that part of the schema which has the longest one.

    Not exact: references are followed a few steps, and of combined schemas the longest counts.
    """
    texts = _ShortTexts(schema)
    return max((texts.of(part) for part in _parts(schema)), key=len, default="")


class _ShortTexts:
    """Short texts of the parts of one schema, each worked out once."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._known: dict[int, str] = {}

    def of(self, part: Any, depth: int = 0) -> str:
        if not isinstance(part, dict) or depth > _DEEPEST:
            return "0"
        if id(part) not in self._known:
            self._known[id(part)] = "0"  # what a part has of itself ends there
            made = [*self._combined(part, depth + 1), self._own(part, depth + 1)]
            self._known[id(part)] = max(made, key=len)[:_LONGEST_FILLER]
        return self._known[id(part)]

    def _combined(self, part: Mapping[str, Any], depth: int) -> Iterator[str]:
        for key in ("anyOf", "oneOf"):
            if options := _list(part.get(key)):
                yield min((self.of(option, depth) for option in options), key=len)
        yield from (self.of(option, depth) for option in _list(part.get("allOf")))
        if isinstance(reference := part.get("$ref"), str):
            yield self.of(_resolve(self._root, reference), depth)

    def _own(self, part: Mapping[str, Any], depth: int) -> str:
        constants = _list(part.get("enum")) + ([part["const"]] if "const" in part else [])
        if constants:
            return min(map(_dump, constants), key=len)
        if names := _list(part.get("required")):
            parts = part.get("properties", {})
            pairs = (f"{_dump(name)}:{self.of(parts.get(name), depth)}" for name in names)
            return "{" + ",".join(pairs) + "}"
        if count := min(part.get("minItems", 0), _LONGEST_FILLER):
            first = [self.of(item, depth) for item in _list(part.get("prefixItems"))]
            others = [self.of(part.get("items"), depth)] * (count - len(first))
            return "[" + ",".join([*first, *others]) + "]"
        texts = [example_of(part.get("pattern", "")), _FORMATS.get(part.get("format", ""), "")]
        texts.append("a" * min(part.get("minLength", 0), _LONGEST_FILLER))
        return _dump(max(texts, key=len))


def _resolve(root: Any, reference: str) -> Any:
    """What `#/a/b` refers to; None where it is anything else."""
    place = root
    for name in reference.removeprefix("#").split("/")[1:]:
        place = place.get(name) if isinstance(place, dict) else None
    return place


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
