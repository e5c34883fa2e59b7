"""Choose the next token from logits.

The filters run in the order of `transformers`' `generate`: repetition penalty, temperature,
top-k, top-p, min-p. (llama.cpp applies the temperature last; with the same numbers its top-p
keeps another set.) Temperature 0 is greedy: penalty, then one argmax, and the other filters
cannot change the result.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from edgekit.errors import BackendError, InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_FIRST_TRY = 1024
"""Candidates that top-p sorts first; nearly always enough, whatever V is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How to choose a token. The defaults are greedy. Raises `InputError` on a bad value."""

    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0
    """Keep the fewest tokens whose probabilities reach this sum; 1 keeps all, 0 the best one."""
    top_k: int = 0
    """Keep this many best tokens (more where the last ones tie); 0 keeps all."""
    min_p: float = 0.0
    """Keep tokens with at least this share of the best token's probability."""
    repetition_penalty: float = 1.0
    """Divides positive and multiplies negative logits of tokens already seen (CTRL, Keskar et
    al. 2019, arXiv:1909.05858, section 4.1); 1 is none."""
    seed: int | None = None
    """The same seed and logits give the same tokens; None draws a fresh seed."""

    def __post_init__(self) -> None:
        self._check_number("temperature", at_least=0.0, at_most=100.0)
        self._check_number("top_p", at_least=0.0, at_most=1.0)
        self._check_number("min_p", at_least=0.0, at_most=1.0)
        self._check_number("repetition_penalty", at_least=0.01, at_most=100.0)
        self._check_whole("top_k", at_most=2**31 - 1)
        if self.seed is not None:
            self._check_whole("seed", at_most=2**64 - 1)

    def _check_number(self, name: str, *, at_least: float, at_most: float) -> None:
        value = getattr(self, name)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not at_least <= value <= at_most:
            raise InputError(f"{name} must be from {at_least:g} to {at_most:g}: {value!r}")

    def _check_whole(self, name: str, *, at_most: int) -> None:
        value = getattr(self, name)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= at_most:
            raise InputError(f"{name} must be a whole number from 0 to {at_most}: {value!r}")

    @classmethod
    def from_generation_config(cls, config: dict[str, Any]) -> Self:
        """What a checkpoint's `generation_config.json` asks for.

        Greedy unless it says `do_sample`; a filter that it does not name stays off.
        Raises `InputError` on a value out of range.
        """
        names = ("top_p", "top_k", "min_p", "repetition_penalty")
        given = {name: config[name] for name in names if config.get(name) is not None}
        if not config.get("do_sample"):
            penalty = given.get("repetition_penalty", 1.0)
            return cls(repetition_penalty=penalty)
        temperature = config.get("temperature")
        return cls(temperature=1.0 if temperature is None else temperature, **given)


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """What can be drawn: `token_ids` and their `probabilities` (sum 1), both `[n]`, n <= V."""

    token_ids: NDArray[np.int64]
    probabilities: NDArray[np.float64]


class Sampler:
    """Draws tokens for one answer: a `Sampling` and the state of its random generator.

    `bias` is added to the logits of some ids before everything else; ids beyond V do not count.
    """

    def __init__(self, sampling: Sampling, *, bias: Mapping[int, float] | None = None) -> None:
        self.sampling = sampling
        self._bias = dict(bias or {})
        self._random = np.random.default_rng(sampling.seed)

    def sample(self, logits: NDArray[np.float32], history: Sequence[int]) -> int:
        """The next token id from `logits` `[V]`; `history` is every id in the context so far.

        Raises `BackendError` when the logits have a NaN, +inf or no finite number.
        """
        scores, best = self._scores(logits, history)
        if self.sampling.temperature == 0:
            return best
        ids, weights = self._kept(scores, best)
        cumulative = np.cumsum(weights)
        drawn = self._random.random() * cumulative[-1]
        place = int(np.searchsorted(cumulative, drawn, side="right"))
        return int(ids[min(place, len(ids) - 1)])

    def distribution(self, logits: NDArray[np.float32], history: Sequence[int]) -> Distribution:
        """The tokens that `sample` can return and how likely each is. Raises `BackendError`."""
        scores, best = self._scores(logits, history)
        if self.sampling.temperature == 0:
            return Distribution(token_ids=np.array([best]), probabilities=np.array([1.0]))
        ids, weights = self._kept(scores, best)
        return Distribution(token_ids=ids, probabilities=weights / weights.sum())

    def _scores(
        self, logits: NDArray[np.float32], history: Sequence[int]
    ) -> tuple[NDArray[np.float32], int]:
        """Penalized logits and the id of the largest; the input is not changed."""
        if logits.ndim != 1:
            raise ValueError(f"logits must be [V], not {list(logits.shape)}")
        if self._bias:
            logits = logits.copy()
            for token_id, bias in self._bias.items():
                if token_id < len(logits):
                    logits[token_id] += np.float32(bias)
        best = int(np.argmax(logits))  # the first NaN, if there is one
        if not math.isfinite(logits[best]):
            raise BackendError(
                f"the engine returned logits that are not numbers: {float(logits[best])} "
                f"for token {best}",
                hint="the engine is damaged or its precision overflows: run `edgekit verify`",
            )
        penalty = np.float32(self.sampling.repetition_penalty)
        if penalty == 1 or not len(history):
            return logits, best
        scores = logits.copy()
        seen = np.asarray(history, dtype=np.int64)  # a repeated id writes the same value again
        values = logits[seen]
        scores[seen] = np.where(values < 0, values * penalty, values / penalty)
        return scores, int(np.argmax(scores))

    def _kept(
        self, scores: NDArray[np.float32], best: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Ids that pass every filter and their weights, 1 for the best one."""
        ids = _top_k(scores, self.sampling.top_k)
        # the maximum goes first, so that no temperature overflows
        distance = scores[ids].astype(np.float64) - np.float64(scores[best])
        with np.errstate(over="ignore"):
            weights = np.exp(distance / self.sampling.temperature)
        ids, weights = _top_p(ids, weights, self.sampling.top_p)
        keep = weights >= self.sampling.min_p
        return ids[keep], weights[keep]


def _top_k(scores: NDArray[np.floating[Any]], top_k: int) -> NDArray[np.int64]:
    """Ids of the `top_k` largest scores, in id order, with all that tie with the last one."""
    if not 0 < top_k < len(scores):
        return np.arange(len(scores))
    place = len(scores) - top_k
    return np.flatnonzero(scores >= np.partition(scores, place)[place])


def _top_p(
    ids: NDArray[np.int64], weights: NDArray[np.float64], top_p: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The fewest largest weights that reach `top_p` of the sum, at least one.

    A full sort of V weights costs ten times the rest, so a part is sorted and grows if needed.
    """
    if top_p >= 1:
        return ids, weights
    target = top_p * weights.sum()
    size = _FIRST_TRY
    while True:
        part = _top_k(weights, size)
        order = part[np.argsort(-weights[part], kind="stable")]
        before = np.concatenate(([0.0], np.cumsum(weights[order])))
        # a token stays while the sum of all larger ones has not reached the target
        count = max(1, int(np.count_nonzero(before[:-1] < target)))
        if count < len(order) or len(order) == len(weights):
            return ids[order[:count]], weights[order[:count]]
        size *= 8
