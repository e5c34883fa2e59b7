from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread
from time import perf_counter
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgekit.errors import EngineError, InputError
from edgekit.runtime import grammar
from edgekit.runtime.generate import Generation
from edgekit.runtime.json_schema import longest_part_of
from edgekit.runtime.sampling import Sampler, Sampling
from edgekit.runtime.slot import Slot
from edgekit.runtime.steer import Constraint
from edgekit.runtime.structure import Structure, StructureCompiler, read_structure
from edgekit.runtime.text_constraint import TextConstraint
from edgekit.runtime.tokenizer import Tokenizer

SCHEMAS = Path(__file__).parents[1] / "data" / "schemas"
PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
PADDING = 37

compilers: dict[int, StructureCompiler] = {}


@pytest.fixture(scope="module", params=["byte level", "byte fallback"])
def tokenizer(
    request: pytest.FixtureRequest, byte_tokenizer: Tokenizer, fallback_tokenizer: Tokenizer
) -> Tokenizer:
    return byte_tokenizer if request.param == "byte level" else fallback_tokenizer


def compiler_of(tokenizer: Tokenizer) -> StructureCompiler:
    """One for each tokenizer, for logits that are wider than its vocabulary."""
    if id(tokenizer) not in compilers:
        size = tokenizer.vocab_size + PADDING
        compilers[id(tokenizer)] = StructureCompiler(tokenizer, vocab_size=size)
    return compilers[id(tokenizer)]


def start(tokenizer: Tokenizer, **structure: Any) -> TextConstraint:
    return compiler_of(tokenizer).constraint(Structure(**structure))


def logits(tokenizer: Tokenizer) -> NDArray[np.float32]:
    return np.zeros(tokenizer.vocab_size + PADDING, dtype=np.float32)


def allowed(constraint: TextConstraint, tokenizer: Tokenizer) -> set[int]:
    return set(np.flatnonzero(np.isfinite(constraint.mask(logits(tokenizer)))).tolist())


def takes(constraint: TextConstraint, tokenizer: Tokenizer, text: str) -> bool:
    """Whether a text may be written, in the smallest tokens that spell it, and then end."""
    by_text = {tokenizer.decode([i]): i for i in range(tokenizer.vocab_size)}
    for char in text:
        try:
            constraint.accept(by_text[char])
        except InputError:
            return False
    return constraint.may_end


def answer(
    constraint: TextConstraint,
    tokenizer: Tokenizer,
    *,
    seed: int,
    limit: int,
    loves: str = "",
) -> list[int] | None:
    """The ids of a model that says anything, above all the characters it loves; None: cut."""
    rng = np.random.default_rng(seed)
    loved = [i for char in loves for i in tokenizer.encode(char, add_special=False)[-1:]]
    constraint.end_within(limit)
    ids: list[int] = []
    while len(ids) < limit:
        raw = rng.standard_normal(len(logits(tokenizer)), dtype=np.float32)
        raw[loved] += 4
        kept = raw.copy()
        masked = constraint.mask(raw)
        assert np.array_equal(raw, kept)
        finite = np.flatnonzero(np.isfinite(masked))
        assert len(finite)
        assert np.array_equal(masked[finite], raw[finite])
        forced = constraint.forced()
        if forced:
            assert finite.tolist() == forced[:1]
        token_id = int(np.argmax(masked))
        constraint.accept(token_id)
        if token_id in tokenizer.stop_ids:
            assert set(finite.tolist()) & tokenizer.stop_ids
            return ids
        assert not tokenizer.is_special(token_id)
        ids.append(token_id)
    return None


NAMES = st.sampled_from(["a", "b", "name", "größe", 'q"uote', "with space"])
LEAVES = st.one_of(
    st.just({"type": "null"}),
    st.just({"type": "boolean"}),
    st.just({"type": "number"}),
    st.builds(lambda a, n: {"type": "integer", "minimum": a, "maximum": a + n},
              st.integers(-200, 200), st.integers(0, 300)),
    st.builds(lambda n: {"type": "integer", "multipleOf": n}, st.integers(1, 9)),
    st.builds(lambda a, n: {"type": "string", "minLength": a, "maxLength": a + n},
              st.integers(0, 6), st.integers(0, 6)),
    st.sampled_from([{"type": "string"}, {"type": "string", "format": "date"}, {}, True,
                     {"type": "string", "pattern": "^[A-C]{2,}-\\d$"}, {"pattern": "b+c"}]),
    st.builds(lambda values: {"enum": values},
              st.lists(st.sampled_from([None, 1, "red", "größe", [1], {"a": 2}, ""]),
                       min_size=1, unique_by=repr)),
)  # fmt: skip


def objects(parts: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    def build(parts: dict[str, Any], required: list[bool], is_open: bool) -> dict[str, Any]:
        names = [name for name, is_wanted in zip(parts, required, strict=False) if is_wanted]
        return {"type": "object", "properties": parts, "required": names,
                "additionalProperties": is_open}  # fmt: skip

    return st.builds(
        build,
        st.dictionaries(NAMES, parts, max_size=4),
        st.lists(st.booleans(), min_size=4, max_size=4),
        st.booleans(),
    )


SCHEMA = st.recursive(
    LEAVES,
    lambda parts: st.one_of(
        objects(parts),
        st.builds(
            lambda items, low: {"type": "array", "items": items, "minItems": low},
            parts, st.integers(0, 3),
        ),
        st.builds(lambda options: {"anyOf": options}, st.lists(parts, min_size=1, max_size=3)),
    ),
    max_leaves=5,
)  # fmt: skip


@given(
    schema=SCHEMA,
    seed=st.integers(0, 99),
    loves=st.sampled_from(["", '"', "{[,", '\\"', "0123", " \n", "abc"]),
    limit=st.integers(250, 300),
)
@settings(deadline=None, max_examples=120, suppress_health_check=list(HealthCheck))
def test_every_answer_is_complete_and_fits_its_schema(
    tokenizer: Tokenizer, schema: Any, seed: int, loves: str, limit: int
) -> None:
    assume(len(longest_part_of(schema).encode()) < 200)  # a token may be no more than one byte
    constraint = start(tokenizer, json_schema=schema)
    ids = answer(constraint, tokenizer, seed=seed, limit=limit, loves=loves)
    assert ids is not None, "cut"
    text = tokenizer.decode(ids)
    jsonschema.Draft202012Validator(schema).validate(json.loads(text))


@pytest.mark.parametrize("path", sorted(SCHEMAS.glob("*.json")), ids=lambda path: path.stem)
@pytest.mark.parametrize("loves", ["", "{[,", "abc"])
def test_the_schemas_of_real_programs_are_filled(
    tokenizer: Tokenizer, path: Path, loves: str
) -> None:
    schema = json.loads(path.read_text(encoding="utf-8"))
    constraint = start(tokenizer, json_schema=schema)
    ids = answer(constraint, tokenizer, seed=1, limit=500, loves=loves)
    assert ids is not None, "cut"
    validator = jsonschema.validators.validator_for(schema)
    validator(schema).validate(json.loads(tokenizer.decode(ids)))


def test_it_is_a_constraint(tokenizer: Tokenizer) -> None:
    constraint: Constraint = start(tokenizer, json_object=True)
    assert constraint.forced() == tokenizer.encode("{", add_special=False)[-1:]


def test_the_same_logits_give_the_same_answer(tokenizer: Tokenizer) -> None:
    twice = [
        answer(start(tokenizer, json_schema=PERSON), tokenizer, seed=5, limit=80) for _ in range(2)
    ]
    assert twice[0] == twice[1]


def test_padding_and_special_tokens_never_come(tokenizer: Tokenizer) -> None:
    constraint = start(tokenizer, json_schema={"type": "string"})
    constraint.accept(tokenizer.encode('"', add_special=False)[-1])
    ids = allowed(constraint, tokenizer)
    assert len(ids) > 100
    assert max(ids) < tokenizer.vocab_size
    assert not [i for i in ids if tokenizer.is_special(i)]


def test_a_stop_id_comes_exactly_where_the_text_may_end(byte_tokenizer: Tokenizer) -> None:
    constraint = start(byte_tokenizer, json_schema={"type": "integer"})
    stop = set(byte_tokenizer.stop_ids)
    assert not allowed(constraint, byte_tokenizer) & stop
    assert not constraint.may_end
    [minus], [digit] = (byte_tokenizer.encode(char, add_special=False)[-1:] for char in "-7")
    constraint.accept(minus)
    assert not allowed(constraint, byte_tokenizer) & stop
    constraint.accept(digit)
    assert allowed(constraint, byte_tokenizer) >= stop
    assert constraint.may_end


def test_each_of_several_stop_ids_may_end_the_text(byte_level: Any) -> None:
    both = Tokenizer(byte_level, special_tokens={"eos_token": "<|im_end|>"}, eos_ids=[0, 2])
    for stop in (0, 2):
        constraint = start(both, regex="a")
        constraint.accept(both.encode("a", add_special=False)[-1])
        assert allowed(constraint, both) == {0, 2}
        constraint.accept(stop)
        assert constraint.may_end


def test_after_the_end_only_a_stop_id_is_left(tokenizer: Tokenizer) -> None:
    constraint = start(tokenizer, regex="a")
    token_id = tokenizer.encode("a", add_special=False)[-1]
    constraint.accept(token_id)
    assert allowed(constraint, tokenizer) == tokenizer.stop_ids
    assert constraint.forced() == []
    with pytest.raises(InputError, match=f"token {token_id} is not allowed"):
        constraint.accept(token_id)
    constraint.accept(min(tokenizer.stop_ids))


def test_a_token_that_is_not_allowed_changes_nothing(tokenizer: Tokenizer) -> None:
    constraint = start(tokenizer, json_schema=PERSON)
    stop = min(tokenizer.stop_ids)
    for wrong in (tokenizer.encode("!", add_special=False)[-1], stop, 10**6, -1):
        with pytest.raises(InputError, match="not allowed"):
            constraint.accept(wrong)
    assert constraint.forced() == tokenizer.encode("{", add_special=False)[-1:]


def test_forced_tokens_can_be_taken_one_after_the_other(byte_tokenizer: Tokenizer) -> None:
    constraint = start(byte_tokenizer, regex="(the quick|the question) fox")
    taken: list[int] = []
    while forced := constraint.forced():
        for token_id in forced:
            assert allowed(constraint, byte_tokenizer) == {token_id}
            constraint.accept(token_id)
            taken.append(token_id)
    said = byte_tokenizer.decode(taken)
    assert said.startswith("the")
    assert "the qu".startswith(said)  # what comes then may be one token with what follows


def test_special_tokens_in_a_constant_are_spelled(tokenizer: Tokenizer) -> None:
    text = "<s>[<|im_end|>]</s>"
    ids = answer(start(tokenizer, json_schema={"const": text}), tokenizer, seed=0, limit=50)
    assert ids is not None
    assert json.loads(tokenizer.decode(ids)) == text


@pytest.mark.parametrize(
    "text",
    [
        '{"name":"a","age":1}',
        '{"name": "a", "age": 1}',
        '{\n  "name": "a",\n  "age": 1\n}',
        '{\n\t"name": "a",\n\t"age": 1\n}',
    ],
)
def test_json_may_be_compact_spaced_or_indented(byte_tokenizer: Tokenizer, text: str) -> None:
    assert takes(start(byte_tokenizer, json_schema=PERSON), byte_tokenizer, text)


@pytest.mark.parametrize(
    "text", ["{  ", "{\n\n", "{\n" + " " * 33, ' {"', '{"name": "a", "age": 1} ']
)
def test_white_space_cannot_go_on_for_ever(byte_tokenizer: Tokenizer, text: str) -> None:
    assert not takes(start(byte_tokenizer, json_schema=PERSON), byte_tokenizer, text)


def test_options_hidden_in_a_schema_change_nothing(byte_tokenizer: Tokenizer) -> None:
    lenient = {"not": {}, "x-guidance": {"lenient": True}}
    with pytest.raises(InputError, match="cannot be enforced: not"):
        start(byte_tokenizer, json_schema=lenient)
    spaced = {**PERSON, "x-guidance": {"whitespace_flexible": True}}
    assert not takes(start(byte_tokenizer, json_schema=spaced), byte_tokenizer, "{  ")


def test_any_object(byte_tokenizer: Tokenizer) -> None:
    assert takes(start(byte_tokenizer, json_object=True), byte_tokenizer, '{"b": [null, {}]}')
    assert not takes(start(byte_tokenizer, json_object=True), byte_tokenizer, "[")


@pytest.mark.parametrize(("text", "fits"), [("555-1234", True), ("555-123", False), ("a", False)])
def test_a_regular_expression_is_of_the_whole_answer(
    byte_tokenizer: Tokenizer, text: str, fits: bool
) -> None:
    regex = "[0-9]{3}-[0-9]{4}"
    assert takes(start(byte_tokenizer, regex=regex), byte_tokenizer, text) is fits
    assert takes(start(byte_tokenizer, regex=f"^{regex}$"), byte_tokenizer, text) is fits


LARK = 'start: "<call>" object "</call>"\nobject: %json {"type": "object", "required": ["x"]}\n'
GBNF = 'root ::= "<call>" pair ("," pair)* "</call>"\npair ::= [a-c]+ ":" [0-9]{1,2}\n'


@pytest.mark.parametrize(
    ("rules", "text"),
    [(LARK, '<call>{"x": [1]}</call>'), (GBNF, "<call>abc:1,b:22</call>")],
)
def test_a_grammar_is_lark_or_gbnf(byte_tokenizer: Tokenizer, rules: str, text: str) -> None:
    assert takes(start(byte_tokenizer, grammar=rules), byte_tokenizer, text)
    assert not takes(start(byte_tokenizer, grammar=rules), byte_tokenizer, text[:-1])


@pytest.mark.parametrize(
    "structure",
    [
        {"grammar": LARK},
        {"grammar": GBNF},
        {"regex": "[a-z]+@[a-z]+\\.(com|org)"},
        {"regex": ".*\\.json"},
        {"json_schema": {"type": "string", "minLength": 40}},
        {"json_schema": {"type": "string", "pattern": "^[0-9a-f]{32}$"}},
        {"json_schema": {"type": "array", "items": {"type": "integer", "multipleOf": 7}}},
        {"json_object": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("loves", ["", "aaa", '"{['])
def test_what_could_go_on_for_ever_is_completed_in_time(
    tokenizer: Tokenizer, structure: dict[str, Any], loves: str
) -> None:
    constraint = start(tokenizer, **structure)
    ids = answer(constraint, tokenizer, seed=3, limit=120, loves=loves)
    assert ids is not None, "cut"


def test_far_from_the_limit_the_model_chooses_freely(byte_tokenizer: Tokenizer) -> None:
    free = start(byte_tokenizer, json_schema=PERSON)
    limited = start(byte_tokenizer, json_schema=PERSON)
    limited.end_within(1000)
    for char in '{"name":"abc':
        assert allowed(limited, byte_tokenizer) == allowed(free, byte_tokenizer)
        token_id = byte_tokenizer.encode(char, add_special=False)[-1]
        free.accept(token_id)
        limited.accept(token_id)


def test_at_the_limit_only_the_ending_is_left(byte_tokenizer: Tokenizer) -> None:
    constraint = start(byte_tokenizer, json_schema=PERSON)
    for token_id in byte_tokenizer.encode('{"name":"abc', add_special=False):
        constraint.accept(token_id)
    constraint.end_within(len(byte_tokenizer.encode('","age":0}', add_special=False)) + 1)
    said = ""
    while not constraint.may_end:
        [token_id] = allowed(constraint, byte_tokenizer)
        said += byte_tokenizer.decode([token_id])
        constraint.accept(token_id)
    assert said == '","age":0}'


class SteeredSampler(Sampler):
    def __init__(self, constraint: TextConstraint) -> None:
        super().__init__(Sampling(temperature=1.5, seed=3))
        self._constraint = constraint

    def sample(self, logits: Any, history: Any) -> int:
        token_id = super().sample(self._constraint.mask(logits), history)
        self._constraint.accept(token_id)
        return token_id


@pytest.mark.parametrize("limit", [90, 91, 150])
@pytest.mark.parametrize("path", sorted(SCHEMAS.glob("*.json")), ids=lambda path: path.stem)
def test_an_answer_of_a_session_ends_with_stop_at_any_limit(
    byte_tokenizer: Tokenizer, make_session: Callable[..., Any], path: Path, limit: int
) -> None:
    schema = json.loads(path.read_text(encoding="utf-8"))
    constraint = start(byte_tokenizer, json_schema=schema)
    constraint.end_within(limit)
    size = byte_tokenizer.vocab_size + PADDING
    generation = Generation(
        Slot(make_session(context_tokens=200, vocab_size=size)),
        [1, 2, 3],
        sampler=SteeredSampler(constraint),
        max_new_tokens=limit,
        stop_ids=byte_tokenizer.stop_ids,
    )
    text = byte_tokenizer.decode([step.token_id for step in generation])
    assert generation.finish_reason == "stop"
    jsonschema.validators.validator_for(schema)(schema).validate(json.loads(text))


@pytest.mark.slow
def test_a_real_vocabulary_is_masked_in_little_time(smollm2_gguf: Path, tmp_path: Path) -> None:
    from edgekit.checkpoint import resolve_model

    tokenizer = Tokenizer.load(resolve_model(str(smollm2_gguf), work=tmp_path).path)
    compiler = StructureCompiler(tokenizer, vocab_size=tokenizer.vocab_size)
    rng = np.random.default_rng(0)
    spent_s: list[float] = []
    for path in sorted(SCHEMAS.glob("*.json")):
        schema = json.loads(path.read_text(encoding="utf-8"))
        constraint = compiler.constraint(Structure(json_schema=schema))
        constraint.end_within(128)
        ids: list[int] = []
        while not constraint.may_end or constraint.forced():
            raw = rng.standard_normal(tokenizer.vocab_size, dtype=np.float32)
            start_s = perf_counter()
            masked = constraint.mask(raw)
            spent_s.append(perf_counter() - start_s)
            ids.append(int(np.argmax(masked)))
            constraint.accept(ids[-1])
        assert len(ids) < 128
        jsonschema.validators.validator_for(schema)(schema).validate(
            json.loads(tokenizer.decode(ids))
        )
    assert np.median(spent_s) < 1e-3  # a step of this model takes 5 ms or more


def test_without_a_limit_nothing_is_completed(byte_tokenizer: Tokenizer) -> None:
    constraint = start(byte_tokenizer, json_schema={"type": "string"})
    constraint.accept(byte_tokenizer.encode('"', add_special=False)[-1])
    letter = byte_tokenizer.encode("a", add_special=False)[-1]
    for _ in range(300):
        assert letter in allowed(constraint, byte_tokenizer)
        constraint.accept(letter)


def test_a_limit_that_is_too_small_cuts(byte_tokenizer: Tokenizer) -> None:
    constraint = start(byte_tokenizer, json_schema=PERSON)
    assert answer(constraint, byte_tokenizer, seed=0, limit=4) is None


def test_a_structure_is_compiled_once(
    byte_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[Structure] = []
    library_grammar = grammar.library_grammar

    def spy(structure: Structure) -> Any:
        compiled.append(structure)
        return library_grammar(structure)

    compiler = StructureCompiler(byte_tokenizer, vocab_size=byte_tokenizer.vocab_size)
    monkeypatch.setattr(grammar, "library_grammar", spy)
    first = compiler.constraint(Structure(regex="ab"))
    first.accept(byte_tokenizer.encode("a", add_special=False)[-1])
    again = compiler.constraint(Structure(regex="ab"))
    assert len(compiled) == 1
    assert again.forced() != first.forced()
    for number in range(40):
        compiler.constraint(Structure(regex=f"a{number}"))
    compiler.constraint(Structure(regex="ab"))
    assert len(compiled) == 42


def test_nobody_waits_for_what_others_compile(
    byte_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = StructureCompiler(byte_tokenizer, vocab_size=byte_tokenizer.vocab_size)
    known = Structure(regex="ab")
    kept = compiler.compiled(known)
    library_grammar, begun, may_end = grammar.library_grammar, Event(), Event()

    def slow(structure: Structure) -> Any:
        begun.set()
        assert may_end.wait(20)
        return library_grammar(structure)

    monkeypatch.setattr(grammar, "library_grammar", slow)
    other = Thread(target=compiler.compiled, args=[Structure(regex="cd")])
    other.start()
    assert begun.wait(20)
    assert compiler.compiled(known) is kept
    first, second = kept.constraint(), compiler.constraint(known)
    first.accept(byte_tokenizer.encode("a", add_special=False)[-1])
    assert first.forced() != second.forced()
    assert other.is_alive()
    may_end.set()
    other.join(20)
    assert not other.is_alive()


@pytest.mark.parametrize(
    ("structure", "message"),
    [
        ({"json_schema": {"uniqueItems": True}}, "cannot be enforced: uniqueItems"),
        ({"json_schema": {"properties": {"a": {"if": {}, "then": {}}}}}, "enforced: if, then"),
        ({"json_schema": {"type": "string", "format": "iri"}}, "enforced: format iri"),
        (
            {"json_schema": {"oneOf": [{"type": "integer"}, {"type": "number"}]}},
            "oneOf with options that can hold at once",
        ),
        ({"json_schema": {"minProperties": 3}}, "minProperties 3 cannot be enforced"),
        ({"json_schema": {"$ref": "https://example.com/a.json"}}, "https://example.com/a.json"),
        ({"json_schema": {"$ref": "file:///etc/passwd"}}, "file:///etc/passwd"),
        ({"json_schema": {"type": "integer", "minimum": 2, "maximum": 1}}, "nothing satisfies"),
        ({"json_schema": False}, "nothing satisfies the schema"),
        ({"json_schema": {"type": "strin"}}, "not a valid JSON schema: at type: 'strin'"),
        ({"json_schema": {"items": [{}]}}, "not a valid JSON schema: at items"),
        ({"json_schema": {"minLength": -1}}, "at minLength: -1 is less than the minimum"),
        ({"json_schema": [1]}, "a JSON schema is an object, not list"),
        ({"json_schema": {"const": {1, 2}}}, "not made of JSON values"),
        ({"json_schema": {"pattern": "(?=a)b"}}, "regular expression: look-around"),
        ({"regex": "(abc"}, "regular expression: unclosed group"),
        ({"regex": "(a)\\1"}, "regular expression: backreferences are not supported"),
        ({"regex": "a[^\\s\\S]"}, "no text fits the regular expression"),
        ({"grammar": "start: thing"}, 'the grammar cannot be used: .*unknown name: "thing"'),
        ({"grammar": "root ::= ("}, "not a valid GBNF grammar"),
        ({"grammar": 'start: "a" <|im_end|>'}, "names a token of the model: <|im_end|>"),
        ({"grammar": 'start: "<a>" /<b>/ // <c>\n    | <[7]>'}, r"the model: <\[7\]>"),
    ],
    ids=str,
)
def test_what_cannot_be_held_is_refused_with_its_reason(
    byte_tokenizer: Tokenizer, structure: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message.replace("|", r"\|")) as caught:
        start(byte_tokenizer, **structure)
    assert len(str(caught.value)) < 500


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize(
    "structure",
    [
        {"json_schema": nested(100_000)},
        {"json_schema": {"allOf": [{"anyOf": [
            {"properties": {f"a{i}{j}": {"type": "string"}}} for j in range(6)
        ]} for i in range(7)]}},
        {"grammar": 'start: a{1,99999}\na: b{1,99999} "x"\nb: "y" | a{1,99999}\n' * 3},
    ],
    ids=["deep", "wide", "grammar"],
)  # fmt: skip
def test_what_would_grow_too_large_is_refused(
    byte_tokenizer: Tokenizer, structure: dict[str, Any]
) -> None:
    with pytest.raises(InputError):
        start(byte_tokenizer, **structure)


@pytest.mark.parametrize(
    "structure",
    [
        {"json_schema": {"type": "array", "maxItems": 10**9, "minItems": 10**6}},
        {"json_schema": {"type": "string", "maxLength": 10**9}},
        {"regex": "((a{1,1000}){1,1000}){1,1000}"},
        {"regex": "(a|b)*a(a|b){500}"},
        {"json_schema": {"enum": [f"value {i}" for i in range(20_000)]}},
    ],
    ids=["array", "string", "repetitions", "states", "enum"],
)
def test_what_is_only_large_costs_no_more_than_its_text(
    byte_tokenizer: Tokenizer, structure: dict[str, Any]
) -> None:
    constraint = start(byte_tokenizer, **structure)
    for _ in range(20):
        choices = sorted(allowed(constraint, byte_tokenizer) - byte_tokenizer.stop_ids)
        if choices:
            constraint.accept(choices[0])


def test_annotations_and_unknown_keywords_say_nothing(byte_tokenizer: Tokenizer) -> None:
    schema = {**PERSON, "title": "x", "nullable": True, "x-order": 1, "deprecated": True}
    schema["properties"] = {**PERSON["properties"], "tags": {"uniqueItems": False}}
    schema["minProperties"] = 1.0
    assert takes(start(byte_tokenizer, json_schema=schema), byte_tokenizer, '{"name":"a","age":1}')


def test_a_tokenizer_without_an_end_is_refused(byte_level: Any) -> None:
    endless = Tokenizer(byte_level)
    endless.stop_ids = frozenset()
    with pytest.raises(EngineError, match="no token that ends an answer"):
        StructureCompiler(endless, vocab_size=400).constraint(Structure(regex="a"))


def test_exactly_one_structure_is_given() -> None:
    for wrong in ({}, {"regex": "a", "json_object": True}, {"regex": "a", "grammar": "b"}):
        with pytest.raises(InputError, match="give one of"):
            Structure(**wrong)


def test_a_structure_is_read_from_options(tmp_path: Path) -> None:
    path = tmp_path / "person.json"
    path.write_text(json.dumps(PERSON), encoding="utf-8")
    lark = tmp_path / "a.lark"
    lark.write_text(LARK, encoding="utf-8")
    assert read_structure() is None
    assert read_structure(schema=str(path)) == Structure(json_schema=PERSON)
    assert read_structure(schema=json.dumps(PERSON)) == Structure(json_schema=PERSON)
    assert read_structure(schema=" true") == Structure(json_schema=True)
    assert read_structure(regex="a+") == Structure(regex="a+")
    assert read_structure(grammar=lark) == Structure(grammar=LARK)


@pytest.mark.parametrize(
    ("write", "options", "message"),
    [
        (b"", {"schema": "none.json"}, "cannot read the schema file none.json: No such file"),
        (b"", {"grammar": "none.lark"}, "cannot read the grammar file none.lark: No such file"),
        (b"{", {"schema": "x"}, "the schema file x is not JSON"),
        (b"\xff\xfe", {"schema": "x"}, "cannot read the schema file x: it is not a text file"),
        (b"\xff\xfe", {"grammar": "x"}, "cannot read the grammar file x: it is not a text file"),
        (b"", {"schema": '{"a": '}, "the schema is not JSON"),
        (b"[" * 100_000, {"schema": "x"}, "the schema file x is nested too deeply"),
        (b"", {"schema": "{}", "regex": "a"}, "give one of"),
    ],
)
def test_what_cannot_be_read_is_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    write: bytes,
    options: dict[str, str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").write_bytes(write)
    with pytest.raises(InputError, match=message):
        read_structure(**options)


def test_llguidance_is_loaded_only_when_a_constraint_is_made() -> None:
    code = (
        "import sys, edgekit.runtime.structure as s; s.read_structure(schema='{}');"
        "assert not {'llguidance', 'jsonschema', 'numpy'} & set(sys.modules), sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
