"""Who guesses the next tokens: the text itself, or a smaller model (`steer.Drafter`).

Both depend on tokens alone, on no clock: the same seed gives the same drafts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from edgekit.errors import InputError
from edgekit.runtime.draft_policy import (
    MARGINAL_COST,
    MAX_DRAFT_TOKENS,
    Acceptance,
    Credit,
    draft_length,
)
from edgekit.runtime.slot import Slot
from edgekit.runtime.token_index import Habit, TokenIndex
from edgekit.runtime.tokenizer import Tokenizer

if TYPE_CHECKING:
    from edgekit.backends.base import Logits

_LENGTHS = (1, 2, 3, 4, 5, 7, 10, 16, 32)
_RATES = {
    Habit.ONCE: (0.4, 0.4, 0.6, 0.7, 0.8, 0.82, 0.88, 0.92, 0.97),
    Habit.ALIKE: (0.4, 0.65, 0.85, 0.87, 0.94, 0.95, 0.97, 0.98, 0.99),
    Habit.SPLIT: (0.4, 0.25, 0.4, 0.6, 0.65, 0.7, 0.8, 0.85, 0.95),
}
"""How often a text goes on as at the place where at least so many tokens before were the same:
19,000 tokens of answers of SmolLM2-135M, greedy and sampled, and of texts by people."""
_CONFIDENCES = 10


class PromptLookup:
    """Guesses that the text goes on as it did where it last read like this (Saxena 2023,
    github.com/apoorvumang/prompt-lookup-decoding).

    Every token tells whether a guess would have been right, drafted or not, so what a match is
    worth in this text is learned without a wasted pass. One answer's state; a context that does
    not continue the last one begins anew.
    """

    def __init__(self, *, marginal_cost: float = MARGINAL_COST) -> None:
        self._marginal_cost = marginal_cost
        self._begin(())

    def _begin(self, context_ids: Sequence[int]) -> None:
        self._index = TokenIndex(context_ids)
        self._credit = Credit()
        self._acceptance = Acceptance(
            {
                (habit, length): rate
                for habit, rates in _RATES.items()
                for length, rate in zip(_LENGTHS, rates, strict=True)
            }
        )

    def propose(self, context_ids: Sequence[int], limit: int) -> list[int]:
        """What followed the longest match; none where that is not worth its cost."""
        self._read(context_ids)
        self._credit.earn()
        index = self._index
        if index.place is None:
            return []
        length = draft_length(
            self._rates(index.place),
            marginal_cost=self._marginal_cost,
            limit=min(limit, self._credit.affords(self._marginal_cost)),
        )
        return index.ids[index.place : index.place + length]

    def observe(self, num_proposed: int, num_accepted: int) -> None:
        """Settle the last proposal."""
        self._credit.settle(cost=self._marginal_cost * num_proposed, saved=num_accepted)

    def _read(self, context_ids: Sequence[int]) -> None:
        known = self._index.ids
        if not known or context_ids[len(known) - 1 : len(known)] != known[-1:]:
            self._begin(context_ids)
            return
        for token_id in context_ids[len(known) :]:
            self._learn(token_id)

    def _learn(self, token_id: int) -> None:
        index = self._index
        kind = None
        if index.place is not None:
            kind = self._kind(index.ids[-2], index.ids[-1], index.ids[index.place], index.length)
        is_true = index.append(token_id)
        if kind is not None:
            self._acceptance.note(kind, is_true=bool(is_true))

    def _rates(self, place: int) -> Iterator[float]:
        """The probability of each token from `place` on, given the ones before it."""
        index = self._index
        first, second = index.ids[-2:]
        for offset, guess in enumerate(index.ids[place : place + MAX_DRAFT_TOKENS]):
            yield self._acceptance.rate(self._kind(first, second, guess, index.length + offset))
            first, second = second, guess

    def _kind(self, first: int, second: int, guess: int, length: int) -> tuple[Habit, int]:
        rounded = next(edge for edge in reversed(_LENGTHS) if edge <= length)
        return self._index.habit((first, second), guess), rounded


class DraftModel:
    """Guesses what a smaller model with the same vocabulary would say, always its likeliest token.

    `slot` is of the smaller model's session and nobody else's; it keeps what a new context shares
    with the last one, so one object may serve one answer after another. `step_cost` is a pass of
    the smaller model over a pass of the large one. Check the two with `require_same_vocabulary`.
    """

    def __init__(
        self, slot: Slot, *, vocab_size: int, step_cost: float, marginal_cost: float = MARGINAL_COST
    ) -> None:
        self._slot = slot
        self._vocab_size = vocab_size
        """Tokens that the large model knows."""
        self._step_cost = step_cost
        self._marginal_cost = marginal_cost
        self._credit = Credit()
        self._acceptance = Acceptance({i: (i + 0.5) / _CONFIDENCES for i in range(_CONFIDENCES)})
        self._kinds: list[int] = []

    def propose(self, context_ids: Sequence[int], limit: int) -> list[int]:
        """Tokens while each is likely enough; none where drafts have not been worth their cost."""
        self._kinds = []
        self._credit.earn()
        affordable = self._credit.affords(self._marginal_cost + self._step_cost)
        # the last token drafted is never sent to the draft model
        limit = min(limit, affordable, self._slot.context_tokens - len(context_ids) + 1)
        if limit < 1:
            return []
        draft: list[int] = []
        survives, tokens, cost = 1.0, 1.0, 1.0
        logits = self._catch_up(context_ids)
        while True:
            token_id, confidence = _likeliest(logits[: self._vocab_size])
            kind = min(int(confidence * _CONFIDENCES), _CONFIDENCES - 1)
            survives *= self._acceptance.rate(kind)
            cost += self._step_cost
            self._credit.settle(cost=self._step_cost, saved=0)
            if survives * cost <= self._marginal_cost * tokens:
                return draft
            draft.append(token_id)
            self._kinds.append(kind)
            tokens, cost = tokens + survives, cost + self._marginal_cost
            if len(draft) == limit:
                return draft
            logits = self._slot.decode(token_id)

    def observe(self, num_proposed: int, num_accepted: int) -> None:
        """Learn what the draft model's confidence is worth."""
        for place, kind in enumerate(self._kinds[: num_accepted + 1]):
            self._acceptance.note(kind, is_true=place < num_accepted)
        self._credit.settle(cost=self._marginal_cost * num_proposed, saved=num_accepted)

    def _catch_up(self, context_ids: Sequence[int]) -> Logits:
        held = min(self._slot.common_prefix(context_ids), len(context_ids) - 1)
        self._slot.truncate(held)
        return self._slot.prefill(context_ids[held:])


def _likeliest(logits: Logits) -> tuple[int, float]:
    """The token with the largest logit, and its probability."""
    best = int(np.argmax(logits))
    return best, float(1 / np.exp(logits - logits[best]).sum())


def require_same_vocabulary(draft: Tokenizer, target: Tokenizer) -> None:
    """Raises `InputError` unless both read every id as the same text, control tokens aside."""

    def texts(tokenizer: Tokenizer) -> dict[int, str | None]:
        return {
            i: tokenizer.token_text(i)
            for i in range(tokenizer.vocab_size)
            if not (draft.is_special(i) or target.is_special(i))
        }

    if texts(draft) != texts(target):
        raise InputError(
            f"the draft model has another vocabulary: {draft.vocab_size} tokens against "
            f"{target.vocab_size}",
            hint="draft with a smaller model of the same family",
        )
