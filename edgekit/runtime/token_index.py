"""A growing text of tokens, and where it read before as it reads now.

A table leads from each pair of tokens to the last place that followed it, and each place to the
one before it: the hash chains of LZ77 (Ziv and Lempel 1977; deflate, RFC 1951 section 4). A match
that goes on is followed without a search, so a token costs a microsecond or two.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import IntEnum
from itertools import islice

_PAIR = 2
_CHAIN_PLACES = 8
"""Places that a search compares, latest first."""
_SEARCHED_TOKENS = 32
"""A search tells no longer matches apart."""
_VOTES = 3
_LOST_MIN_TOKENS = 4
"""A match so long may go on after a changed word."""
_LOST_WINDOW = 8
"""Tokens on both sides within which a lost match is found again."""


class Habit(IntEnum):
    """How the last two tokens went on at the last three places that had them."""

    ONCE = 0
    """There was one such place, or none."""
    ALIKE = 1
    SPLIT = 2
    """Not always as guessed."""


class TokenIndex:
    """The tokens so far, and the place in them whose past resembles the end most."""

    def __init__(self, token_ids: Sequence[int] = ()) -> None:
        self.ids: list[int] = []
        self.place: int | None = None
        """`ids[place]` is what followed then; None where the end is new."""
        self.length = 0
        """Tokens before `place` that equal the last ones: at least 2, or 1 beside a lost match."""
        self._last: dict[tuple[int, int], int] = {}
        self._before: list[int] = []
        self._lost: int | None = None
        self._lost_until = 0
        for token_id in token_ids:
            self._note(token_id)
        self._search()

    def append(self, token_id: int) -> bool | None:
        """Whether the token is the guessed one; None where there was no guess."""
        guessed = None if self.place is None else self.ids[self.place] == token_id
        self._note(token_id)
        if guessed and self.place is not None:
            self.place += 1
            self.length += 1
        else:
            if self.place is not None and self.length >= _LOST_MIN_TOKENS:
                self._lost = self.place
                self._lost_until = len(self.ids) + _LOST_WINDOW
            self.place, self.length = None, 0
            self._search()
            if self.place is None:
                self._search_lost(token_id)
        return guessed

    def habit(self, pair: tuple[int, int], guess: int) -> Habit:
        """How `pair` went on before, compared with `guess`."""
        said = [self.ids[place] for place in islice(self._places_after(pair), _VOTES)]
        if any(token_id != guess for token_id in said):
            return Habit.SPLIT
        return Habit.ALIKE if len(said) > 1 else Habit.ONCE

    def _note(self, token_id: int) -> None:
        before = -1
        if len(self.ids) >= _PAIR:
            pair = (self.ids[-2], self.ids[-1])
            before = self._last.get(pair, -1)
            self._last[pair] = len(self.ids)
        self._before.append(before)
        self.ids.append(token_id)

    def _places_after(self, pair: tuple[int, int]) -> Iterator[int]:
        place = self._last.get(pair, -1)
        while place >= 0:
            yield place
            place = self._before[place]

    def _search(self) -> None:
        """The longest match with the end; of equal ones the latest."""
        if len(self.ids) < _PAIR:
            return
        for place in islice(self._places_after((self.ids[-2], self.ids[-1])), _CHAIN_PLACES):
            length = self._common_suffix(place)
            if length > self.length:
                self.place, self.length = place, length

    def _common_suffix(self, place: int) -> int:
        ids, end = self.ids, len(self.ids)
        length = _PAIR
        longest = min(place, _SEARCHED_TOKENS)
        while length < longest and ids[place - 1 - length] == ids[end - 1 - length]:
            length += 1
        return length

    def _search_lost(self, token_id: int) -> None:
        """After a changed word the text often goes on beside the place where it left its source."""
        if self._lost is None or len(self.ids) >= self._lost_until:
            return
        end = min(self._lost + _LOST_WINDOW, len(self.ids) - 1)
        for place in range(self._lost, end):
            if self.ids[place] == token_id:
                self.place, self.length = place + 1, 1
                return
