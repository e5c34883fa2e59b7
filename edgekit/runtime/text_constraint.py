"""A compiled grammar as a `Constraint`: masks, and a complete text within a number of tokens."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np

from edgekit.errors import InputError
from edgekit.runtime.closing import LONGEST_TOKENS, Closer, StringScan, may_end
from edgekit.runtime.vocabulary import Vocabulary

if TYPE_CHECKING:
    from llguidance import LLMatcher
    from numpy.typing import NDArray

    from edgekit.backends.base import Logits

_MIN_RESERVE_TOKENS = 32
_MAX_RESERVE_TOKENS = 256
_NUM_CHOICES = 8
"""Likeliest tokens that are tried near the limit."""
_NUM_FITTING = 4
"""Tokens that are left to choose from there."""


class TextConstraint:
    """Which tokens may come next in a text of one grammar. Holds the state of one answer.

    Stop ids may come exactly where the text may end, other control tokens never.
    """

    def __init__(
        self,
        matcher: LLMatcher,
        vocabulary: Vocabulary,
        closer: Closer,
        *,
        stop_ids: Collection[int],
    ) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._closer = closer
        self._stop_ids = frozenset(stop_ids)
        num_ids = len(vocabulary.texts)
        self._bits = np.zeros(-(-num_ids // 32) * 4, dtype=np.uint8)
        self._bits_address = int(self._bits.ctypes.data)
        # fresh pages for every token would cost more than all the rest
        self._masked = np.empty(num_ids, dtype=np.float32)
        self._rest = np.empty(num_ids, dtype=np.float32)
        self._scan = StringScan()
        self._tokens_left: int | None = None
        self._ending: list[int] | None = None
        """Ids that complete the text from here, the last one a stop id, when it is up to date."""
        self._is_stale = True
        self._look_at = 0
        """Look for an ending again when not more tokens than this are left."""
        reserve = _MIN_RESERVE_TOKENS + closer.longest_part_tokens
        self._reserve = min(reserve, _MAX_RESERVE_TOKENS)
        """Tokens beyond the ending, from where on every choice must leave an ending."""
        self._endings_after: dict[int, list[int]] = {}

    def end_within(self, num_tokens: int) -> None:
        """From here on leave room to complete the text within `num_tokens`, the stop id included.

        The model chooses freely until no more tokens are left than the shortest ending found
        needs, and some in reserve. Then only tokens may come after which the text can still be
        completed. That is no promise: where no ending is found, or a part of the text needs more
        than the largest reserve, the text is cut at the limit as without this call.
        """
        self._tokens_left = self._look_at = num_tokens
        self._is_stale = True

    @property
    def may_end(self) -> bool:
        """Whether the text so far is complete."""
        return may_end(self._matcher)

    def mask(self, logits: Logits) -> Logits:
        """Logits `[V]` with -inf at every token that may not come now; the input is not changed.

        The array is valid until the next call. Raises `InputError` where the grammar has become
        too complex to follow.
        """
        self._masked.fill(-np.inf)
        np.copyto(self._masked, logits, where=self._allowed())
        if self._tokens_left is not None:
            self._look_for_ending(self._tokens_left)
            self._keep_fitting(self._tokens_left)
        return self._masked

    def accept(self, token_id: int) -> None:
        """The token was taken. Raises `InputError` when it was not allowed."""
        if token_id in self._stop_ids and self._matcher.is_stopped() and self.may_end:
            return
        is_known = 0 <= token_id < len(self._vocabulary.texts)
        if not is_known or self._matcher.try_consume_tokens([token_id]) != 1:
            raise InputError(f"token {token_id} is not allowed by the structure of the answer")
        self._scan.push(self._vocabulary.texts[token_id])
        if self._tokens_left is None:
            return
        self._tokens_left -= 1
        known = self._endings_after.get(token_id)
        self._endings_after = {}
        if known is not None:
            self._ending, self._is_stale = known, False
        else:
            self._is_stale = True

    def forced(self) -> list[int]:
        """Tokens that must come next, whatever the logits; often empty, never with a stop id."""
        return [] if self._matcher.is_stopped() else self._matcher.compute_ff_tokens()

    def _allowed(self) -> NDArray[np.bool_]:
        self._matcher.unsafe_compute_mask_ptr(self._bits_address, self._bits.nbytes)
        if self._matcher.is_error():
            reason = self._matcher.get_error().partition("\n")[0]
            raise InputError(
                f"the structure of the answer cannot be followed further: {reason}",
                hint="make it simpler, above all its regular expressions and repetitions",
            )
        bits = np.unpackbits(self._bits, count=len(self._masked), bitorder="little")
        return bits.view(np.bool_)

    def _look_for_ending(self, tokens_left: int) -> None:
        """Have `_ending` up to date wherever it can matter soon."""
        if not self._is_stale or tokens_left > self._look_at:
            return
        self._ending = self._ending_of(self._matcher, self._scan)
        if self._ending is None:
            self._look_at = tokens_left * 3 // 4  # it may be found later, but is dear to look for
            return
        self._is_stale = False
        # far from the limit it is enough to see from time to time how long the ending has become
        spare = tokens_left - len(self._ending)
        is_far = spare > 2 * self._reserve
        self._look_at = tokens_left - spare // 4 if is_far else tokens_left

    def _ending_of(
        self, matcher: LLMatcher, scan: StringScan, *, limit: int = LONGEST_TOKENS
    ) -> list[int] | None:
        """The last ending where it still holds, without its start or with it; else a new one."""
        last = self._ending or []
        for start in range(min(len(last), _NUM_CHOICES)):
            rest = last[start:]
            if matcher.validate_tokens(rest) == len(rest):
                return rest
        return self._closer.find(matcher, scan, limit=limit)

    def _keep_fitting(self, tokens_left: int) -> None:
        """Near the limit: keep of the likeliest tokens those that leave room for an ending.

        What the ending found begins with stays as well, so there is always one.
        """
        ending = self._ending
        if self._is_stale or ending is None or tokens_left > len(ending) + self._reserve:
            return
        fitting: dict[int, list[int]] = {}
        np.copyto(self._rest, self._masked)
        for _ in range(_NUM_CHOICES):
            token_id = int(np.argmax(self._rest))  # few of these cost less than one partition
            if not np.isfinite(self._rest[token_id]) or len(fitting) == _NUM_FITTING:
                break
            self._rest[token_id] = -np.inf
            after = self._after(token_id, tokens_left - 1)
            if after is not None:
                fitting[token_id] = after
        if np.isfinite(self._masked[ending[0]]):
            fitting.setdefault(ending[0], ending[1:])
        if fitting:
            self._endings_after = fitting
            kept = np.array(list(fitting), dtype=np.int64)
            values = self._masked[kept]
            self._masked.fill(-np.inf)
            self._masked[kept] = values

    def _after(self, token_id: int, tokens_left: int) -> list[int] | None:
        """An ending of at most `tokens_left` behind one more token."""
        if token_id in self._stop_ids:
            return []
        matcher, scan = self._matcher.deep_copy(), self._scan.copy()
        if matcher.try_consume_tokens([token_id]) != 1:
            return None
        scan.push(self._vocabulary.texts[token_id])
        ending = self._ending_of(matcher, scan, limit=tokens_left)
        return ending if ending is not None and len(ending) <= tokens_left else None
