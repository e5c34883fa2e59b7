"""What the model answers, before and after quantization: the yardstick of `verify`.

For held-out exchanges, at chosen positions, the log-probabilities of the K tokens that the
original finds likeliest, under the original (`original`) and under the model as ModelOpt simulates
it after quantization (`simulated`), and that of the token which really follows. Everything beyond
the K is one more outcome, so a divergence computed from it is a lower bound of the full one, and
within a percent of it in practice. Stored as fp16, whose steps are finest near 0, where it counts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from edgekit.errors import EngineError
from edgekit.progress import Progress, no_progress

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

REFERENCE_FILE = "edgekit_reference.npz"
CACHE_RANGES_FILE = "kv_ranges.json"
"""Beside a quantized checkpoint: `key` and `value`, the largest absolute value that calibration met
in each layer's cache, keys rotated. What a quantized cache is scaled by."""
TOP_TOKENS = 512
SAMPLE_TOKENS = 96
FIRST_POSITION = 16
"""The first tokens of a chat are the template's own and say nothing of the model."""
KNOWN_PROMPT = "What is the capital of France? Answer in one sentence."
KNOWN_TOKENS = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """P positions over all prompts, K tokens each."""

    prompts: tuple[tuple[int, ...], ...]
    """Token ids of each held-out exchange."""
    first_position: int
    """Answers are compared from this position of each prompt to its last but one."""
    top_ids: NDArray[np.int32]
    """`[P, K]`: the original's likeliest tokens, in no order."""
    original: NDArray[np.float16]
    """`[P, K]`: their log-probabilities (nats)."""
    simulated: NDArray[np.float16]
    original_next: NDArray[np.float32]
    """`[P]`: log-probability of the token that follows."""
    simulated_next: NDArray[np.float32]
    known_prompt: tuple[int, ...]
    known_answer: tuple[int, ...]
    """What the original answers greedily to `KNOWN_PROMPT`."""

    def starting_at(self, position: int) -> Self:
        """The same without what comes before that position, and without prompts that end there."""
        import numpy as np

        rows, kept, row = [], [], 0
        for prompt in self.prompts:
            count = len(prompt) - 1 - self.first_position
            skipped = max(0, position - self.first_position)
            if skipped < count:
                kept.append(prompt)
                rows.append(np.arange(row + skipped, row + count))
            row += count
        chosen = np.concatenate(rows) if rows else np.arange(0)
        return replace(
            self,
            prompts=tuple(kept),
            first_position=max(position, self.first_position),
            top_ids=self.top_ids[chosen],
            original=self.original[chosen],
            simulated=self.simulated[chosen],
            original_next=self.original_next[chosen],
            simulated_next=self.simulated_next[chosen],
        )

    def save(self, path: Path) -> None:
        """Write an .npz without pickles."""
        import numpy as np

        lists = {
            "prompts": self.prompts,
            "first_position": self.first_position,
            "known_prompt": self.known_prompt,
            "known_answer": self.known_answer,
        }
        np.savez_compressed(
            path,
            lists=np.frombuffer(json.dumps(lists).encode(), np.uint8),
            top_ids=self.top_ids,
            original=self.original,
            simulated=self.simulated,
            original_next=self.original_next,
            simulated_next=self.simulated_next,
        )

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read it back. Raises `EngineError`."""
        import numpy as np

        try:
            # numpy leaves a file open that it opened and found damaged
            with path.open("rb") as file, np.load(file, allow_pickle=False) as data:
                lists = json.loads(data["lists"].tobytes())
                arrays = {k: data[k] for k in data.files if k != "lists"}
                return cls(
                    prompts=tuple(tuple(p) for p in lists["prompts"]),
                    first_position=lists["first_position"],
                    known_prompt=tuple(lists["known_prompt"]),
                    known_answer=tuple(lists["known_answer"]),
                    **arrays,
                )
        except Exception as exc:  # zipfile, zlib, numpy and json each have their own kinds
            raise EngineError(f"unreadable reference answers {path}: {exc}") from exc


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """One model's log-probabilities at all positions of all prompts."""

    top_ids: NDArray[np.int32]
    """`[P, K]`: of which tokens."""
    log_probs: NDArray[np.float32]
    """`[P, K]`, nats."""
    next: NDArray[np.float32]
    """`[P]`: of the token that follows."""
    top1: NDArray[np.int64]
    """`[P]`: the likeliest token of all."""


def ask(
    logits_of: Callable[[Sequence[int], int], NDArray[np.float32]],
    prompts: Sequence[Sequence[int]],
    *,
    first_position: int = FIRST_POSITION,
    top_ids: NDArray[np.int32] | None = None,
) -> Answers:
    """Collect answers; `logits_of(ids, n)` gives the last n rows of logits, `[n, V]`.

    Without `top_ids` the model's own `TOP_TOKENS` likeliest are taken.
    """
    import numpy as np

    ids, values, following, best = [], [], [], []
    row = 0
    for prompt in prompts:
        count = len(prompt) - 1 - first_position
        logits = np.asarray(logits_of(prompt[:-1], count), np.float32)
        if top_ids is None:
            width = min(TOP_TOKENS, logits.shape[1])
            chosen = np.argpartition(logits, -width, axis=1)[:, -width:].astype(np.int32)
        else:
            chosen = top_ids[row : row + count]
        row += count
        total = _log_sum_exp(logits)
        ids.append(chosen)
        values.append(np.take_along_axis(logits, chosen, axis=1) - total)
        targets = np.asarray(prompt[first_position + 1 :])
        following.append((np.take_along_axis(logits, targets[:, None], axis=1) - total)[:, 0])
        best.append(logits.argmax(axis=1))
    return Answers(
        top_ids=np.concatenate(ids),
        log_probs=np.concatenate(values),
        next=np.concatenate(following),
        top1=np.concatenate(best),
    )


def ask_top(
    scores_of: Callable[..., tuple[NDArray[np.int64], NDArray[np.float32]]],
    reference: Reference,
    report: Progress = no_progress,
) -> dict[str, Any] | None:
    """Compare one that tells only the likeliest tokens: `scores_of(ids, first=i)` gives them and
    their log-probabilities after each position from i, `[T - i, K]`; a row whose first token is -1
    could not be asked. The fields of `verify.Quality` that follow; `None` where none could be."""
    import numpy as np

    told = []
    for done, prompt in enumerate(reference.prompts):
        report("verify", done, len(reference.prompts))
        told.append(scores_of(prompt[:-1], first=reference.first_position))
    report("verify", len(reference.prompts), len(reference.prompts))
    ids, values = (np.concatenate(parts) for parts in zip(*told, strict=True))
    asked = ids[:, 0] >= 0
    if not asked.any():
        return None
    top_ids, original = reference.top_ids[asked], reference.original[asked]
    ids, values = ids[asked], values[asked]
    best = top_ids[np.arange(len(top_ids)), original.argmax(axis=1)]
    return {
        "positions": len(top_ids),
        "mean_kl": least_kl(original, top_ids, ids, values),
        "mean_kl_simulated": least_kl(reference.simulated[asked], top_ids, ids, values),
        "top1_agreement": float((best == ids[:, 0]).mean()),
    }


def _log_sum_exp(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """`[T, V]` -> `[T, 1]`; NaN where a broken engine gives NaN or infinity."""
    import numpy as np

    top = logits.max(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        result: NDArray[np.float32] = np.log(np.exp(logits - top).sum(axis=1, keepdims=True)) + top
    return result


def mean_kl(p: NDArray[np.floating], q: NDArray[np.floating]) -> float:
    """Mean over rows of KL(p || q) in nats, for log-probabilities `[P, K]` of the same tokens.

    What the K tokens leave of either distribution is one more outcome on both sides.
    """
    import numpy as np

    total = np.zeros(len(p))
    p, q = p.astype(np.float64), q.astype(np.float64)
    total += (np.exp(p) * (p - q)).sum(axis=1)
    smallest = 1e-12
    rest_p = np.clip(1 - np.exp(p).sum(axis=1), smallest, None)
    rest_q = np.clip(1 - np.exp(q).sum(axis=1), smallest, None)
    total += rest_p * np.log(rest_p / rest_q)
    return float(total.mean())


def least_kl(
    p: NDArray[np.floating],
    top_ids: NDArray[np.integer],
    told_ids: NDArray[np.integer],
    told: NDArray[np.floating],
) -> float:
    """Mean over rows of the least KL(p || q) in nats that fits what is known of q.

    `p` are log-probabilities `[P, K]` of `top_ids`; of q only `told`, `[P, T]`, of its likeliest
    tokens `told_ids`, is known (-1: none). What q gives the tokens of `top_ids` that it does not
    tell is at most the least that it tells, for each, and at most what is left of 1; within that
    it is taken as near to p as can be, so that no engine is accused of more than it shows.
    """
    import numpy as np

    return float(
        np.mean(
            [
                _least_row(*row)
                for row in zip(
                    p.astype(np.float64), top_ids, told_ids, told.astype(np.float64), strict=True
                )
            ]
        )
    )


def _least_row(
    p: NDArray[np.float64],
    top_ids: NDArray[np.integer],
    told_ids: NDArray[np.integer],
    told: NDArray[np.float64],
) -> float:
    """`least_kl` of one row. Three kinds of outcomes: told tokens of `top_ids`, each by itself;
    the others of `top_ids` together; everything else together."""
    import numpy as np

    smallest = 1e-12
    known = {int(i): value for i, value in zip(told_ids, told, strict=True) if i >= 0}
    if not known or np.isnan(list(known.values())).any():
        return math.nan
    q = np.array([known.get(int(i), np.nan) for i in top_ids])
    is_told = np.array([int(i) in known for i in top_ids])
    total = float((np.exp(p[is_told]) * (p[is_told] - q[is_told])).sum())
    p_told, p_top = np.exp(p[is_told]).sum(), np.exp(p).sum()
    q_told, q_all = np.exp(q[is_told]).sum(), sum(np.exp(value) for value in known.values())
    p_hidden, p_rest = max(p_top - p_told, smallest), max(1 - p_top, smallest)
    left = max(1 - q_told, 2 * smallest)
    most = min(max(1 - q_all, 0.0), (~is_told).sum() * np.exp(min(known.values())))
    q_hidden = min(left * p_hidden / (p_hidden + p_rest), max(most, smallest))
    q_rest = max(left - q_hidden, smallest)
    total += p_hidden * np.log(p_hidden / q_hidden) + p_rest * np.log(p_rest / q_rest)
    return float(total)
