"""The library that compiles grammars, llguidance: what it is given, and what it says."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from edgekit.errors import InputError
from edgekit.runtime.example import example_of
from edgekit.runtime.json_schema import longest_part_of, prepare_schema, words_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llguidance import LLTokenizer

    from edgekit.runtime.structure import Structure
    from edgekit.runtime.vocabulary import Vocabulary

_WHITE_SPACE = r" |\n[ \t]{0,32}"
"""Matched at most once at every place where JSON may have white space."""
_LARK_TEXT = re.compile(r'"(?:\\.|[^"\\\n])*"|/(?:\\.|[^/\\\n])+/|(?://|#)[^\n]*')
"""What a `<` in a Lark grammar may stand in without naming a token: string, regex, comment."""
_LARK_TOKEN = re.compile(r"<[^\s<>]+>")
_GBNF_RULE = re.compile(r"^\s*[\w-]+\s*::=", re.MULTILINE)
_SHOWN = 300

_REASONS: tuple[tuple[str, str, str], ...] = (
    (
        r"Unimplemented keys: \[(?P<what>.*)\]",
        "the schema uses what cannot be enforced: {what}",
        "leave that keyword out, and check the answer for it afterwards",
    ),
    (
        r"oneOf constraints are not supported",
        "the schema uses oneOf with options that can hold at once, which cannot be enforced",
        "use anyOf, or make the options exclude each other by type or by a constant",
    ),
    (
        r"Unknown format: (?P<what>.*)",
        "the schema uses what cannot be enforced: format {what}",
        "leave that format out, or say it as a pattern",
    ),
    (
        r"Unsatisfiable schema: (?P<what>.*)",
        "nothing satisfies the schema: {what}",
        "correct the bounds or the combination of its parts",
    ),
    (
        r"(?:Resource|Anchor|Pointer) '(?P<what>[^']*)'",
        "$ref leads to nothing in the schema: {what}",
        'nothing is fetched: put it below "$defs" and write "#/$defs/NAME"',
    ),
    (
        r"NoExtension",
        "no text fits the {kind}",
        "make it allow at least one text",
    ),
    (
        r"(?s).*regex parse error:.*\nerror: (?P<what>[^\n]*)",
        "not a usable regular expression: {what}",
        "write it in the syntax of Rust's `regex`, without look-around and back-references",
    ),
    (
        r"(?:.* )?(?:too large|too complex|limit|fuel).*",
        "the {kind} is too large: {reason}",
        "make it simpler, above all its repetitions and its nested anyOf and allOf",
    ),
)
"""What the library says -> message and hint; the first row that matches."""


def library_tokenizer(vocabulary: Vocabulary, stop_ids: Sequence[int]) -> LLTokenizer:
    """The library's tables for a vocabulary; any of `stop_ids` ends a text."""
    from llguidance import LLTokenizer, TokenizerWrapper

    class Tables:
        def __init__(self) -> None:
            self.eos_token_id = stop_ids[0]
            self.bos_token_id = None
            named = enumerate(vocabulary.texts)
            self.tokens = [text or b"control %d" % i for i, text in named]
            self.special_token_ids = sorted(vocabulary.control_ids | set(stop_ids))

        def __call__(self, text: bytes) -> list[int]:
            return vocabulary.encode(text)

    return LLTokenizer(TokenizerWrapper(Tables()), eos_token=list(stop_ids))


def library_grammar(structure: Structure) -> tuple[str, dict[str, Any]]:
    """A structure as the library reads it, and guesses for a `Closer` of its texts.

    Raises `InputError` on what is wrong before the library sees it.
    """
    from llguidance import LLMatcher

    if structure.regex is not None:
        guess = {"tails": [example_of(structure.regex)]}
        return LLMatcher.grammar_from_regex(structure.regex), guess
    if structure.grammar is not None:
        return LLMatcher.grammar_from_lark(_lark(structure.grammar)), {"words": []}
    schema = {"type": "object"} if structure.json_object else structure.json_schema
    prepared = prepare_schema(schema)
    text = LLMatcher.grammar_from_json_schema(
        json.dumps(prepared), overrides={"whitespace_pattern": _WHITE_SPACE}
    )
    return text, {"words": words_of(prepared), "longest_part": longest_part_of(prepared)}


def refusal(structure: Structure, reason: str) -> InputError:
    """Why the library does not take a structure, and what to change."""
    kind = "schema" if structure.regex is None else "regular expression"
    kind = kind if structure.grammar is None else "grammar"
    reason = reason.replace("<non-verbose/>", "").strip()
    for pattern, message, hint in _REASONS:
        if found := re.match(pattern, reason):
            what = found.groupdict().get("what", "").replace('"', "")
            return InputError(message.format(what=what, kind=kind, reason=reason), hint=hint)
    first = " ".join(reason.split())
    shown = first if len(first) <= _SHOWN else first[:_SHOWN] + "…"
    return InputError(f"the {kind} cannot be used: {shown}", hint=f"correct the {kind}")


def _lark(text: str) -> str:
    if _GBNF_RULE.search(text):
        text = _from_gbnf(text)
    if named := _LARK_TOKEN.search(_LARK_TEXT.sub("", text)):
        raise InputError(
            f"the grammar names a token of the model: {named[0]}",
            hint="an answer has only text; write what it should say in quotes",
        )
    return text


def _from_gbnf(text: str) -> str:
    from llguidance.gbnf_to_lark import gbnf_to_lark

    try:
        return gbnf_to_lark(text)
    except Exception as exc:  # its parser fails in many ways
        raise InputError(
            f"not a valid GBNF grammar: {exc}", hint="correct it, or write it as Lark"
        ) from exc
