"""Answers of a given form: a JSON schema, a regular expression, or a grammar.

JSON may be written as models like to: compact, with single spaces, or indented on lines of its own.
Between two parts of it there is at most one space or one line break with an indentation, so white
space cannot go on for ever, and none before or after the whole. Properties come in the order of
the schema. A string or a list without `maxLength` or `maxItems` can go on until the token limit;
`TextConstraint.end_within` completes it in time.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from edgekit.errors import EngineError, InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llguidance import LLMatcher, LLTokenizer

    from edgekit.runtime.closing import Closer
    from edgekit.runtime.text_constraint import TextConstraint
    from edgekit.runtime.tokenizer import Tokenizer
    from edgekit.runtime.vocabulary import Vocabulary

_NUM_KEPT = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Structure:
    """What an answer must look like; exactly one is set. Raises `InputError` otherwise."""

    json_schema: dict[str, Any] | bool | None = None
    regex: str | None = None
    """Of the whole answer, in the syntax of Rust's `regex`, without look-around."""
    grammar: str | None = None
    """Lark as llguidance reads it, or GBNF (llama.cpp)."""
    json_object: bool = False
    """Any JSON object."""

    def __post_init__(self) -> None:
        given = [self.json_schema is not None, self.regex is not None, self.grammar is not None]
        if sum([*given, self.json_object]) != 1:
            raise InputError("give one of a JSON schema, a regular expression and a grammar")


def read_structure(
    *, schema: str | None = None, regex: str | None = None, grammar: str | Path | None = None
) -> Structure | None:
    """What a user asked for: `schema` is JSON or a file, `grammar` is a file; None: nothing.

    Raises `InputError` on more than one, an unreadable file or broken JSON.
    """
    if schema is None and regex is None and grammar is None:
        return None
    json_schema = None if schema is None else _read_schema(schema)
    text = None if grammar is None else _read_text(Path(grammar), "grammar")
    return Structure(json_schema=json_schema, regex=regex, grammar=text)


class StructureCompiler:
    """Makes constraints for one tokenizer. Safe to share between threads.

    The first constraint builds the tables of the vocabulary; the grammars of the last structures
    are kept, so asking for one again costs next to nothing. One is compiled at a time, which can
    take seconds; who wants a structure that is compiled already does not wait for it.
    """

    def __init__(self, tokenizer: Tokenizer, *, vocab_size: int) -> None:
        """`vocab_size`: V, the width of the logits."""
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._stop_ids = sorted(i for i in tokenizer.stop_ids if i < vocab_size)
        self._tables: tuple[Vocabulary, LLTokenizer] | None = None
        self._kept: OrderedDict[str, Compiled] = OrderedDict()
        self._lock = Lock()
        """Of `_kept`."""
        self._compiling = Lock()

    def constraint(self, structure: Structure) -> TextConstraint:
        """A constraint at the start of its text. Raises as `compiled`."""
        return self.compiled(structure).constraint()

    def compiled(self, structure: Structure) -> Compiled:
        """What makes constraints for this structure.

        Raises `InputError` with the reason where the structure is invalid, cannot be enforced or
        allows nothing, `EngineError` where the tokenizer cannot be constrained.
        """
        key = _key(structure)
        found = self._find(key)
        if found is None:
            with self._compiling:
                found = self._find(key) or self._compile(structure)
            with self._lock:
                self._kept[key] = found
                if len(self._kept) > _NUM_KEPT:
                    self._kept.popitem(last=False)
        return found

    def _find(self, key: str) -> Compiled | None:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def _vocabulary(self) -> tuple[Vocabulary, LLTokenizer]:
        if self._tables is None:
            from edgekit.runtime.grammar import library_tokenizer
            from edgekit.runtime.vocabulary import Vocabulary

            if not self._stop_ids:
                raise EngineError("the tokenizer has no token that ends an answer")
            vocabulary = Vocabulary(self._tokenizer, vocab_size=self._vocab_size)
            self._tables = vocabulary, library_tokenizer(vocabulary, self._stop_ids)
        return self._tables

    def _compile(self, structure: Structure) -> Compiled:
        vocabulary, tables = self._vocabulary()
        from llguidance import LLMatcher, LLParserLimits

        from edgekit.runtime.closing import Closer
        from edgekit.runtime.grammar import library_grammar, refusal

        text, guesses = library_grammar(structure)
        limits = LLParserLimits(verbose_errors=False)
        matcher = LLMatcher(tables, text, log_level=0, limits=limits)
        if not matcher.is_error():
            matcher.compute_bitmask()  # the first step finds what allows nothing at all
        if matcher.is_error():
            raise refusal(structure, matcher.get_error())
        closer = Closer(vocabulary, self._stop_ids[0], **guesses)
        return Compiled(matcher, vocabulary, closer, stop_ids=self._stop_ids)


class Compiled:
    """A structure that is ready: any number of answers, and threads, may have constraints of it."""

    def __init__(
        self,
        matcher: LLMatcher,
        vocabulary: Vocabulary,
        closer: Closer,
        *,
        stop_ids: Sequence[int],
    ) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._closer = closer
        self._stop_ids = stop_ids
        self._lock = Lock()

    def constraint(self) -> TextConstraint:
        """A constraint at the start of its text."""
        from edgekit.runtime.text_constraint import TextConstraint

        with self._lock:
            fresh = self._matcher.deep_copy()
        return TextConstraint(fresh, self._vocabulary, self._closer, stop_ids=self._stop_ids)


def _read_schema(text: str) -> Any:
    is_json = text.lstrip()[:1] in ("{", "[") or text.strip() in ("true", "false")
    source = "the schema" if is_json else f"the schema file {text}"
    try:
        return json.loads(text if is_json else _read_text(Path(text), "schema"))
    except RecursionError as exc:
        raise InputError(f"{source} is nested too deeply") from exc
    except ValueError as exc:
        raise InputError(f"{source} is not JSON: {exc}") from exc


def _read_text(path: Path, what: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError, ValueError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "it is not a text file"
        raise InputError(f"cannot read the {what} file {path}: {reason}") from exc


def _key(structure: Structure) -> str:
    try:
        return json.dumps(
            [structure.json_schema, structure.regex, structure.grammar, structure.json_object]
        )
    except (TypeError, ValueError, RecursionError) as exc:
        raise InputError(f"the schema is not made of JSON values: {exc}") from exc
