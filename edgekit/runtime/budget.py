"""How many tokens a model may think, so that there is always room for its answer.

A budget is -1 (no cap), 0 (no thinking) or a number of tokens. Thinking counts against
`max_new_tokens` as every new token does, so an answer keeps a share of them for itself whatever
the budget: an answer that is all thinking and ends at the limit says nothing.
"""

from __future__ import annotations

from edgekit.errors import InputError

NO_CAP = -1
ANSWER_SHARE = 4
"""One new token in this many is kept for the answer,"""
ANSWER_TOKENS = 1024
"""or this many where that is less."""


def check_budget(budget: int) -> int:
    """The budget itself. Raises `InputError` when it is none."""
    if isinstance(budget, bool) or not isinstance(budget, int) or budget < NO_CAP:
        raise InputError(
            f"a thinking budget is a number of tokens: {budget!r}",
            hint="0 for no thinking, -1 for no cap",
        )
    return budget


def thinking_limit(budget: int, *, max_new_tokens: int, closing_tokens: int) -> int:
    """Tokens after which thinking is led to its end; 0: there is no room to think at all.

    limit = max_new_tokens - closing_tokens - min(ANSWER_TOKENS, max_new_tokens / ANSWER_SHARE),
    or the budget where that is less. `closing_tokens` are those that lead the model out.
    """
    kept = max(1, min(ANSWER_TOKENS, max_new_tokens // ANSWER_SHARE))
    room = max(0, max_new_tokens - closing_tokens - kept)
    return room if budget == NO_CAP else min(budget, room)
