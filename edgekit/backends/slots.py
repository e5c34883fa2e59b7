"""The bookkeeping of KV slots, the same for every session that gives logits.

A subclass runs one pass over neighbouring slots (`_run`); what a slot holds, what fits, how a long
prompt is cut into pieces and how a step over scattered slots becomes as few passes is here.
Lengths move only after everything has been computed, so a call that raises changes no slot.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import InputError

if TYPE_CHECKING:
    from edgekit.backends.base import Logits


class SlotSession(ABC):
    """`backends.base.Session` over `_run`."""

    def __init__(
        self,
        *,
        context_tokens: int,
        num_slots: int,
        vocab_size: int,
        chunk_tokens: int,
        max_logits: int | None = None,
    ) -> None:
        """`chunk_tokens`: tokens of one call, at most. `max_logits`: rows of logits of one call,
        at most; `None` where there is no limit."""
        self.context_tokens = context_tokens
        self.num_slots = num_slots
        self.vocab_size = vocab_size
        self.fills_apart = False
        self._chunk_tokens = chunk_tokens
        self._max_logits = max_logits
        self._lengths = [0] * num_slots

    @abstractmethod
    def _run(
        self, slot: int, count: int, ids: NDArray[np.int64], before: list[int], wanted: int
    ) -> Logits:
        """`ids [count, T]` into slots `slot .. slot + count`, which hold `before[i]` tokens each.

        Returns logits `[count, wanted, V]` of the last `wanted` positions, valid until the next
        call; with `wanted` 0 nothing is read from what comes back. Raises `BackendError`.
        """

    @abstractmethod
    def close(self) -> None:
        """Free the memory. Safe to call twice."""

    def length(self, slot: int) -> int:
        """Tokens that `slot` holds."""
        return self._lengths[slot]

    def truncate(self, slot: int, length: int) -> None:
        """Forget all but the first `length` tokens. Raises `ValueError` beyond what is held."""
        if not 0 <= length <= self._lengths[slot]:
            raise ValueError(f"slot {slot} holds {self._lengths[slot]} tokens, not {length}")
        self._lengths[slot] = length

    def prefill(self, slot: int, token_ids: Sequence[int], *, num_logits: int = 1) -> Logits:
        """Append tokens to `slot`; logits `[num_logits, V]` of the last ones."""
        if not 0 <= num_logits <= len(token_ids) > 0:
            raise ValueError(f"{num_logits} rows of logits from {len(token_ids)} tokens")
        ids = self._checked(slot, token_ids)
        start = self._lengths[slot]
        parts: list[Logits] = []
        for piece, wanted in self._pieces(len(ids), num_logits):
            chunk = ids[None, piece.start : piece.stop]
            logits = self._run(slot, 1, chunk, [start + piece.start], wanted)
            if wanted:
                # a later piece reuses the buffer
                parts.append(logits[0] if piece.stop == len(ids) else logits[0].copy())
        self._lengths[slot] = start + len(ids)
        if not parts:
            return np.empty((0, self.vocab_size), np.float32)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def decode(self, slots: Sequence[int], token_ids: Sequence[int]) -> Logits:
        """One token for each slot; logits `[len(slots), V]`."""
        if len(slots) != len(token_ids) or len(set(slots)) != len(slots) or not slots:
            raise ValueError("decode needs one token for each of some distinct slots")
        for slot in slots:
            self._require_room(slot, 1)
        ids = self._known(token_ids)
        order = sorted(range(len(slots)), key=lambda i: slots[i])
        runs = self._runs([slots[i] for i in order])
        if len(runs) == 1:
            out = self._decode_run(runs[0], slots, ids)
        else:
            out = np.empty((len(slots), self.vocab_size), np.float32)
            for run in runs:
                where = [i for i in order if slots[i] in run]
                out[where] = self._decode_run(run, [slots[i] for i in where], ids[where])
        for slot in slots:
            self._lengths[slot] += 1
        return out

    def _decode_run(self, run: range, slots: Sequence[int], ids: NDArray[np.int64]) -> Logits:
        """One pass over neighbours; logits `[len(slots), V]`, a view of what the pass gave where
        `slots` are `run` itself: a copy of all would take as long as choosing the tokens."""
        rows = [slot - run.start for slot in slots]
        tokens = np.zeros((len(run), 1), np.int64)
        tokens[rows, 0] = ids
        logits = self._run(run.start, len(run), tokens, [self._lengths[s] for s in run], 1)[:, 0]
        return logits if rows == list(range(len(run))) else logits[rows]

    def _runs(self, slots: Sequence[int]) -> list[range]:
        """Neighbouring slots that cover these sorted ones, one pass over the weights for each.

        Slots between them take part where they are no more than those asked for: what is computed
        for them is thrown away, and what it writes lies beyond their length.
        """
        whole = range(slots[0], slots[-1] + 1)
        idle = [s for s in whole if s not in slots]
        have_room = all(self._lengths[s] < self.context_tokens for s in idle)
        if len(idle) <= len(slots) and have_room:
            return [whole]
        return _neighbours(slots)

    def _pieces(self, count: int, num_logits: int) -> Iterator[tuple[range, int]]:
        """Pieces of `count` tokens, and how many rows of logits each one is wanted for."""
        first_wanted = count - num_logits
        first = 0
        while first < count:
            end = min(count, first + self._chunk_tokens)
            if self._max_logits is not None:
                end = min(end, max(first, first_wanted) + self._max_logits)
            yield range(first, end), max(0, end - max(first, first_wanted))
            first = end

    def _checked(self, slot: int, token_ids: Sequence[int]) -> NDArray[np.int64]:
        self._require_room(slot, len(token_ids))
        return self._known(token_ids)

    def _require_room(self, slot: int, count: int) -> None:
        if not 0 <= slot < self.num_slots:
            raise ValueError(f"no slot {slot}: there are {self.num_slots}")
        if count > self.context_tokens - self._lengths[slot]:
            raise InputError(
                f"{self._lengths[slot]} + {count} tokens do not fit a context of "
                f"{self.context_tokens}",
                hint="shorten the prompt, or open the engine with a larger `--context`",
            )

    def _known(self, token_ids: Sequence[int]) -> NDArray[np.int64]:
        ids = np.asarray(token_ids, np.int64)
        if ids.min() < 0 or ids.max() >= self.vocab_size:
            raise InputError(f"token ids must be within 0..{self.vocab_size - 1}")
        return ids


def _neighbours(slots: Sequence[int]) -> list[range]:
    """Runs of consecutive numbers in a sorted sequence: [0, 1, 3] -> [0..1], [3]."""
    runs: list[range] = []
    for slot in slots:
        if runs and runs[-1].stop == slot:
            runs[-1] = range(runs[-1].start, slot + 1)
        else:
            runs.append(range(slot, slot + 1))
    return runs
