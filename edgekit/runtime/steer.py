"""What may steer a `Generation`: a constraint on its tokens, and a guess of the next ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from edgekit.backends.base import Logits


class Constraint(Protocol):
    """Which tokens may come next. Holds the state of one answer."""

    def mask(self, logits: Logits) -> Logits:
        """Logits `[V]` with -inf at every token that may not come now; the input is not changed.

        At least one token stays, an end-of-turn token where the text may end.
        """
        ...

    def accept(self, token_id: int) -> None:
        """The token was taken. Raises `InputError` when it was not allowed."""
        ...

    def forced(self) -> list[int]:
        """Tokens that must come next, whatever the logits; often empty."""
        ...


class Drafter(Protocol):
    """Guesses the next tokens, which the model then checks in one pass. Holds one answer's state.

    A guess costs time and never changes what is sampled: a wrong one is thrown away.
    """

    def propose(self, context_ids: Sequence[int], limit: int) -> list[int]:
        """At most `limit` tokens that may follow `context_ids`; empty: no guess worth its cost."""
        ...

    def observe(self, num_proposed: int, num_accepted: int) -> None:
        """How many of the last proposal the model took."""
        ...
