"""Perplexity of any model that gives logits, over a text, by one protocol for all.

The token ids are cut into windows of `WINDOW_TOKENS`; each window starts from an empty cache, and
every token but its first is predicted from those before it. This differs from llama.cpp's tool,
which scores the second half of each window only: compare ratios, not figures across tools.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgekit.backends import Session

    Floats = NDArray[np.float32]

WINDOW_TOKENS = 1024
_CHUNK_TOKENS = 256
HELDOUT_TEXT = Path(__file__).parent / "data" / "heldout.txt"
"""26 kB of English prose in ten voices, written for this purpose."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextScore:
    """How a model finds a text."""

    perplexity: float
    num_tokens: int
    """Tokens that were predicted."""
    nll: Floats
    """`[num_tokens]`: negative log-likelihoods, nats."""


def windows(ids: Sequence[int]) -> list[Sequence[int]]:
    """Cut ids into windows; a last one of a single token predicts nothing and is dropped."""
    cut = [ids[i : i + WINDOW_TOKENS] for i in range(0, len(ids), WINDOW_TOKENS)]
    return [w for w in cut if len(w) > 1]


def score_text(logits_of: Callable[[Sequence[int]], list[Floats]], ids: Sequence[int]) -> TextScore:
    """Score with a function that gives logits `[T, V]` of a whole window, in chunks of rows."""
    losses = []
    for window in windows(ids):
        targets = np.asarray(window[1:])
        row = 0
        for logits in logits_of(window[:-1]):
            chunk = targets[row : row + len(logits)]
            row += len(logits)
            top = logits.max(axis=1, keepdims=True)
            total = np.log(np.exp(logits - top).sum(axis=1)) + top[:, 0]
            losses.append(total - logits[np.arange(len(chunk)), chunk])
    nll = np.concatenate(losses)
    return TextScore(
        perplexity=math.exp(float(nll.astype(np.float64).mean())), num_tokens=len(nll), nll=nll
    )


def session_logits(session: Session, slot: int = 0) -> Callable[[Sequence[int]], list[Floats]]:
    """A session as a function for `score_text`.

    Where prompts go through kernels of their own, the second half of a window follows a first one
    that went in as a prompt.
    """

    def rows(ids: Sequence[int]) -> list[Floats]:
        parts = (ids[i : i + _CHUNK_TOKENS] for i in range(0, len(ids), _CHUNK_TOKENS))
        return [session.prefill(slot, part, num_logits=len(part)).copy() for part in parts]

    def run(ids: Sequence[int]) -> list[Floats]:
        session.truncate(slot, 0)
        half = len(ids) // 2
        if not session.fills_apart or not half:
            return rows(ids)
        first = rows(ids[:half])
        session.truncate(slot, 0)
        session.prefill(slot, ids[:half], num_logits=0)
        return [*first, *rows(ids[half:])]

    return run
