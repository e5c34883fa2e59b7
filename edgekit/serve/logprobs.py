"""Log-probabilities of tokens, as OpenAI's chat and Responses interfaces have them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgekit.runtime.token_source import Step
from edgekit.runtime.tokenizer import Tokenizer

_LEAST = -9999.0
"""JSON has no infinity; a token that the constraint or the budget forced can be impossible."""


def logprobs_of(tokenizer: Tokenizer, steps: Sequence[Step]) -> list[dict[str, Any]]:
    """An entry for each token, with the likeliest ones at its place, as many as were asked for."""
    return [
        {
            **_token(tokenizer, step.token_id, step.logprob),
            "top_logprobs": [_token(tokenizer, i, value) for i, value in step.top],
        }
        for step in steps
    ]


def least(logprob: float | None) -> float:
    """A log-probability that JSON can say."""
    return max(logprob or 0.0, _LEAST)


def _token(tokenizer: Tokenizer, token_id: int, logprob: float | None) -> dict[str, Any]:
    text = tokenizer.decode([token_id], skip_special=False)
    raw = tokenizer.token_bytes(token_id) if tokenizer.is_byte_level else text.encode()
    return {"token": text, "logprob": least(logprob), "bytes": list(raw)}
