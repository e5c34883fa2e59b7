from __future__ import annotations

from typing import Any

import pytest

from edgekit.errors import InputError
from edgekit.runtime.json_schema import _FORMATS, longest_part_of, prepare_schema, words_of
from edgekit.runtime.structure import Structure, StructureCompiler
from edgekit.runtime.tokenizer import Tokenizer

ITEM = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "kind": {"enum": ["large", "tiny"]}},
    "required": ["kind", "name"],
}


def test_what_says_nothing_is_left_out_at_every_depth() -> None:
    schema = {
        "x-guidance": {"lenient": True},
        "uniqueItems": False,
        "properties": {"uniqueItems": {"uniqueItems": False, "maxLength": 2.0}},
        "anyOf": [{"minItems": 1.0, "items": {"uniqueItems": False}}, True],
        "const": {"uniqueItems": False},
    }
    assert prepare_schema(schema) == {
        "properties": {"uniqueItems": {"maxLength": 2}},
        "anyOf": [{"minItems": 1, "items": {}}, True],
        "const": {"uniqueItems": False},
    }


def test_the_users_schema_is_not_changed() -> None:
    schema = {"x-guidance": {}, "items": {"uniqueItems": False}}
    prepare_schema(schema)
    assert schema == {"x-guidance": {}, "items": {"uniqueItems": False}}


@pytest.mark.parametrize("schema", [True, False])
def test_a_boolean_is_a_schema(schema: bool) -> None:
    assert prepare_schema(schema) == {"allOf": [schema]}


def test_the_draft_that_a_schema_names_counts() -> None:
    old = {"$schema": "http://json-schema.org/draft-07/schema#", "items": [{}]}
    assert prepare_schema(old) == old
    with pytest.raises(InputError, match="at items") as caught:
        prepare_schema({"items": [{}]})
    assert caught.value.hint is not None
    assert '"$schema"' in caught.value.hint


@pytest.mark.parametrize(("least", "is_refused"), [(1, False), (3, False), (4, True)])
def test_one_key_more_than_the_required_ones_can_be_counted(least: int, is_refused: bool) -> None:
    schema = {"required": ["a", "b"], "minProperties": least}
    if is_refused:
        with pytest.raises(InputError, match=f"minProperties {least}"):
            prepare_schema(schema)
    else:
        assert prepare_schema(schema) == schema


@pytest.mark.parametrize("name", sorted(_FORMATS))
def test_the_example_of_a_format_has_it(name: str, byte_tokenizer: Tokenizer) -> None:
    compiler = StructureCompiler(byte_tokenizer, vocab_size=byte_tokenizer.vocab_size)
    constraint = compiler.constraint(Structure(json_schema={"type": "string", "format": name}))
    for char in f'"{_FORMATS[name]}"':
        constraint.accept(byte_tokenizer.encode(char, add_special=False)[-1])
    assert constraint.may_end


def test_words_are_keys_in_order_constants_and_examples() -> None:
    schema = {"items": ITEM, "not": {"const": [1, 2]}, "pattern": "a+b", "minLength": 3}
    words = ['"aaa"', '"ab"', '"name":', '"kind":', '""', '"tiny"', "[1,2]"]
    assert sorted(words_of(schema)) == sorted(words)
    keys = [word for word in words_of(schema) if word.endswith(":")]
    assert keys == ['"name":', '"kind":']


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        (True, ""),
        ({}, '""'),
        ({"items": ITEM}, '{"kind":"tiny","name":""}'),
        ({"items": {"$ref": "#/$defs/i"}, "$defs": {"i": ITEM}}, '{"kind":"tiny","name":""}'),
        ({"type": "array", "items": {"minLength": 3}, "minItems": 2}, '["aaa","aaa"]'),
        ({"prefixItems": [{"const": 1}], "minItems": 2, "items": {"const": 2}}, "[1,2]"),
        ({"anyOf": [{"const": "long"}, {"const": 1}]}, '"long"'),
        ({"$ref": "#"}, '""'),
        ({"$ref": "#nowhere"}, '""'),
        ({"required": ["a"], "properties": {"a": {"$ref": "#"}}}, '{"a":""}'),
        ({"pattern": "^[0-9]{4}$"}, '"0000"'),
        ({"format": "date"}, '"2000-01-01"'),
        ({"format": "unheard of"}, '""'),
    ],
)
def test_the_longest_part_is_found(schema: Any, text: str) -> None:
    assert longest_part_of(schema) == text


@pytest.mark.parametrize(
    "schema",
    [
        {"minLength": 10**9},
        {"minItems": 10**9, "items": {"minItems": 10**9, "items": {"minLength": 10**9}}},
        {"required": [f"key {i}" for i in range(10_000)]},
    ],
)
def test_the_longest_part_is_never_huge(schema: Any) -> None:
    assert len(longest_part_of(schema)) <= 2000
    assert len(words_of(schema)) <= 300
