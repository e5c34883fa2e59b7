"""One KV slot and the tokens in it, so that a prompt that begins like the last one is cheap.

The session's own length is the truth: tokens are noted before they are sent, and whatever lies
beyond `session.length` does not count. So an exception, a closed generator or Ctrl-C at any
point leaves `tokens` equal to what the KV cache holds, without any clean-up code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgekit.backends.base import Session

if TYPE_CHECKING:
    from edgekit.backends.base import Logits


class Slot:
    """A slot of a session, empty at first. All calls for that slot must go through one `Slot`."""

    def __init__(self, session: Session, index: int = 0) -> None:
        if not 0 <= index < session.num_slots:
            raise ValueError(f"slot {index} of a session with {session.num_slots}")
        self.session = session
        self.index = index
        self._noted: list[int] = []
        session.truncate(index, 0)  # nobody knows what a slot held before

    @property
    def context_tokens(self) -> int:
        """Tokens that the slot can hold."""
        return self.session.context_tokens

    @property
    def length(self) -> int:
        """Tokens in the KV cache."""
        return self.session.length(self.index)

    @property
    def tokens(self) -> list[int]:
        """The tokens in the KV cache, oldest first; a copy."""
        return self._noted[: self.length]

    def common_prefix(self, token_ids: Sequence[int]) -> int:
        """How many tokens from the start of `token_ids` the slot holds already."""
        held, wanted = self.tokens, list(token_ids)
        same, end = 0, min(len(held), len(wanted))
        while same < end:  # halving compares slices, which is quick for a hundred thousand tokens
            middle = (same + end + 1) // 2
            if held[same:middle] == wanted[same:middle]:
                same = middle
            else:
                end = middle - 1
        return same

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` tokens; 0 empties the slot."""
        self.session.truncate(self.index, length)
        del self._noted[length:]

    def prefill(self, token_ids: Sequence[int]) -> Logits:
        """Append T >= 1 tokens; logits `[V]` that predict the next one, valid until the next call.

        Raises as `Session.prefill` does.
        """
        self._note(token_ids)
        last: Logits = self.session.prefill(self.index, token_ids)[-1]
        return last

    def fill(self, token_ids: Sequence[int]) -> None:
        """Append T >= 1 tokens of which no logits are wanted. Raises as `Session.prefill` does."""
        self._note(token_ids)
        self.session.prefill(self.index, token_ids, num_logits=0)

    def extend(self, token_ids: Sequence[int]) -> Logits:
        """Append T >= 1 tokens in one pass; logits `[T, V]`, row i after the i-th of them.

        Raises as `Session.prefill` does. What was drafted in vain is taken back by `truncate`.
        """
        self._note(token_ids)
        return self.session.prefill(self.index, token_ids, num_logits=len(token_ids))

    def decode(self, token_id: int) -> Logits:
        """Append one token; logits `[V]` that predict the next one, valid until the next call."""
        row: Logits = decode_slots([self], [token_id])[0]
        return row

    def _note(self, token_ids: Sequence[int]) -> None:
        self._noted[self.length :] = token_ids


def decode_slots(slots: Sequence[Slot], token_ids: Sequence[int]) -> Logits:
    """Append one token to each of several slots of one session in one pass: `[len(slots), V]`."""
    for slot, token_id in zip(slots, token_ids, strict=True):
        slot._note([token_id])
    return slots[0].session.decode([slot.index for slot in slots], token_ids)
