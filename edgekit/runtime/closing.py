"""The shortest way found to end a constrained text, from wherever the model left it.

Nothing is known here of the grammar but what a matcher tells: which tokens may come. So the way is
searched: what is forced, then what ends JSON values, then any characters, breadth first. It need
not be the shortest one there is; it is one that the matcher takes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeAlias

from edgekit.runtime.vocabulary import Vocabulary

if TYPE_CHECKING:
    from llguidance import LLMatcher

LONGEST_TOKENS = 512
"""Tokens of the longest ending that is looked for."""
_BEAM = 10
"""States kept of one depth of the search."""
_MAX_TRIES = 1000
"""Characters tried in one search; each costs about 30 us."""
_MAX_CANDIDATES = 100
_MAX_FOUND = 1000
_NUM_FIRST = 4
"""Guesses that are cheaper to try than to ask what is forced."""
_NUM_LIKELIEST = 10
_LIKELY_BYTES = bytes(dict.fromkeys(b"0a1-.:/@A\n" + bytes(range(0x20, 0x7F))))
_WORD_BYTES = frozenset(b"+-._" + bytes(i for i in range(128) if chr(i).isalnum()))

_Place: TypeAlias = "tuple[LLMatcher, StringScan, list[int]]"


class Closer:
    """Finds endings of the texts of one grammar.

    Guesses make that quick: `words`, JSON texts that the values hold (`words_of`), and `tails`,
    texts that may be the last of all. Without `words` no guesses are made about JSON.
    `longest_part` is a text as long as what one token may begin, such as an item of a list.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        stop_id: int,
        *,
        words: Sequence[str] | None = None,
        tails: Sequence[str] = (),
        longest_part: str = "",
    ) -> None:
        self._vocabulary = vocabulary
        self._stop_id = stop_id
        self.longest_part_tokens = len(vocabulary.encode(longest_part.encode()))
        """By how much one token can make the ending longer, as far as that is known."""
        last = [[*ids, stop_id] for ids in self._encoded(tails)]
        self._between, self._behind_word, self._within = last, last, last
        self._plain: Closer | None = None
        """One that does not guess about JSON, where such guesses lead nowhere."""
        if words is not None:
            self._guess_json(words)
            self._plain = Closer(vocabulary, stop_id, tails=tails)
        singles = (vocabulary.token_id(bytes([byte])) for byte in _LIKELY_BYTES)
        self._singles = [i for i in singles if i is not None]
        self._found: dict[tuple[int, bool], list[int]] = {}
        """What `_search` found, by what it was asked; used where the matcher takes it again."""

    def _guess_json(self, words: Sequence[str]) -> None:
        keys = [word for word in words if word.endswith(":")]
        constants = [word for word in words if not word.endswith(":")]
        values = ('""', "0", "null", "false", "[]", "{}", *constants)
        between = ("}", "]", *keys, *values, ",", ":", '"', "{", "[")
        rests = [word[1:] for word in (*keys, '""', *constants) if word.startswith('"')]
        self._between = self._encoded(between)
        self._behind_word = self._encoded(("}", "]", ","))
        self._within = self._encoded(rests)

    def find(
        self, matcher: LLMatcher, scan: StringScan, *, limit: int = LONGEST_TOKENS
    ) -> list[int] | None:
        """At most `limit` ids that end the text, the last one a stop id; None: none was found.

        `scan` has seen the text so far. Neither it nor the matcher is changed.
        """
        scout, given, scan = matcher.deep_copy(), scan, scan.copy()
        path: list[int] = []
        while not may_end(scout):
            step = self._near(scout, scan) or self._far(scout, scan)
            num_ids = len(path) + len(step) + 1
            if num_ids > limit and num_ids <= LONGEST_TOKENS:
                return None
            if not step or num_ids > LONGEST_TOKENS:
                return (
                    None if self._plain is None else self._plain.find(matcher, given, limit=limit)
                )
            if step[-1] == self._stop_id:
                return path + step
            self._push(scout, scan, step)
            path += step
        return [*path, self._stop_id]

    def _encoded(self, texts: Iterable[str]) -> list[list[int]]:
        ids = (self._vocabulary.encode(text.encode()) for text in dict.fromkeys(texts))
        return [some for some in ids if some]

    def _near(self, scout: LLMatcher, scan: StringScan) -> list[int]:
        """What must come, or the first guess that may come."""
        guesses = self._behind_word if scan.is_in_word else self._between
        guesses = self._within if scan.is_open else guesses
        guesses = [] if scan.is_escaped else guesses
        first, others = guesses[:_NUM_FIRST], guesses[_NUM_FIRST:]
        return _taken(scout, first) or scout.compute_ff_tokens() or _taken(scout, others)

    def _far(self, scout: LLMatcher, scan: StringScan) -> list[int]:
        """What `_search` finds, remembered."""
        asked = hash(scout.compute_bitmask()), scan.is_open
        known = self._found.get(asked)
        if known is not None and self._leads_on(scout, scan, known):
            return known
        # what is long but simple, forty letters for one, is found among few characters
        few = self._singles[:_NUM_LIKELIEST]
        found = self._search(scout, scan, []) or self._search(scout, scan, few)
        if found and len(self._found) < _MAX_FOUND:
            self._found[asked] = found
        return found

    def _leads_on(self, scout: LLMatcher, scan: StringScan, step: Sequence[int]) -> bool:
        """Whether after a step the text may end or something is near: states can look alike."""
        after, after_scan = scout.deep_copy(), scan.copy()
        is_taken = self._push(after, after_scan, step)
        return is_taken and (may_end(after) or bool(self._near(after, after_scan)))

    def _push(self, state: LLMatcher, scan: StringScan, step: Sequence[int]) -> bool:
        """Put a step behind a state; False where it may not come."""
        if state.try_consume_tokens(list(step)) != len(step):
            return False
        scan.push(self._vocabulary.join(step))
        return True

    def _search(self, scout: LLMatcher, scan: StringScan, some: Sequence[int]) -> list[int]:
        """The fewest characters after which the text may end or something is near.

        Only of `some` characters, where these are given. Of states at one depth that allow the
        same tokens one is kept, and few in all.
        """
        tries = iter(range(_MAX_TRIES))
        level: list[_Place] = [(scout, scan, [])]
        while level:
            following: dict[bytes, _Place] = {}
            for state, state_scan, path in level:
                for token_id in some or self._characters(state):
                    if next(tries, None) is None:
                        return []
                    after, after_scan = state.deep_copy(), state_scan.copy()
                    if not self._push(after, after_scan, [token_id]):
                        continue
                    if may_end(after) or self._near(after, after_scan):
                        return [*path, token_id]
                    place = (after, after_scan, [*path, token_id])
                    following.setdefault(after.compute_bitmask(), place)
            level = list(following.values())[:_BEAM]
        return []

    def _characters(self, state: LLMatcher) -> Iterator[int]:
        """Tokens to try: single characters, or where none of these may come, a few of any."""
        mask = state.compute_bitmask()
        singles = [i for i in self._singles if _is_set(mask, i)]
        if singles:
            return iter(singles)
        allowed = (i for i, text in enumerate(self._vocabulary.texts) if text and _is_set(mask, i))
        return (i for i, _ in zip(allowed, range(_MAX_CANDIDATES), strict=False))


class StringScan:
    """Whether a JSON string is open after the text pushed so far."""

    def __init__(self) -> None:
        self.is_open = False
        self.is_in_word = False
        """The text ends in a number, a name or the like, which may go on."""
        self.is_escaped = False
        """The text ends in a backslash that makes the next character part of a string."""

    def push(self, text: bytes) -> None:
        """More of the text."""
        if text:
            self.is_in_word = text[-1] in _WORD_BYTES
        if b'"' not in text and b"\\" not in text:
            self.is_escaped = False
            return
        for byte in text:
            if self.is_escaped:
                self.is_escaped = False
            elif byte == 0x5C:
                self.is_escaped = self.is_open
            elif byte == 0x22:
                self.is_open = not self.is_open

    def copy(self) -> StringScan:
        """Another one in the same state."""
        twin = StringScan()
        twin.is_open = self.is_open
        twin.is_in_word = self.is_in_word
        twin.is_escaped = self.is_escaped
        return twin


def _taken(matcher: LLMatcher, guesses: Sequence[list[int]]) -> list[int]:
    """The first guess that may come."""
    allowed = (guess for guess in guesses if matcher.validate_tokens(guess) == len(guess))
    return next(allowed, [])


def may_end(matcher: LLMatcher) -> bool:
    """Whether the text is complete."""
    return matcher.is_accepting() or (matcher.is_stopped() and not matcher.is_error())


def _is_set(mask: bytes, place: int) -> bool:
    return bool(mask[place >> 3] >> (place & 7) & 1)
