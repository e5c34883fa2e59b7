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

_FIRST_TRIES = (128, 2048)
"""Candidates that top-p sorts first; nearly always enough, whatever V is."""
_BLOCK = 256
_SMALLEST_TEMPERATURE = 1e-30
"""Below it float32 divides by zero; greedy for all logits but those that tie."""


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
        self._bias_ids = np.fromiter(bias or (), dtype=np.int64)
        self._bias = np.fromiter((bias or {}).values(), dtype=np.float32)
        self._random = np.random.default_rng(sampling.seed)

    def sample(self, logits: NDArray[np.float32], history: Sequence[int]) -> int:
        """The next token id from `logits` `[V]`; `history` is every id in the context so far.

        Raises `BackendError` when the logits have a NaN, +inf or no finite number.
        """
        scores, best = self._scores(logits, history)
        if self.sampling.temperature == 0:
            return best
        ids, weights = self._kept(scores, best)
        place = _draw(weights, self._random.random())
        return place if ids is None else int(ids[place])

    def distribution(self, logits: NDArray[np.float32], history: Sequence[int]) -> Distribution:
        """The tokens that `sample` can return and how likely each is. Raises `BackendError`."""
        scores, best = self._scores(logits, history)
        if self.sampling.temperature == 0:
            return Distribution(token_ids=np.array([best]), probabilities=np.array([1.0]))
        ids, weights = self._kept(scores, best)
        exact = weights.astype(np.float64)
        return Distribution(
            token_ids=np.arange(len(scores)) if ids is None else ids,
            probabilities=exact / exact.sum(),
        )

    def _scores(
        self, logits: NDArray[np.float32], history: Sequence[int]
    ) -> tuple[NDArray[np.float32], int]:
        """Penalized logits and the id of the largest; the input is not changed."""
        if logits.ndim != 1:
            raise ValueError(f"logits must be [V], not {list(logits.shape)}")
        if len(self._bias):
            logits = logits.copy()
            is_known = self._bias_ids < len(logits)
            logits[self._bias_ids[is_known]] += self._bias[is_known]
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
    ) -> tuple[NDArray[np.int64] | None, NDArray[np.float32]]:
        """Ids that pass every filter (`None`: all do), in id order, and their weights.

        The best one weighs 1. In float32, as the logits are: ten times as fast as float64.
        """
        options = self.sampling
        ids: NDArray[np.int64] | None = None
        if 0 < options.top_k < len(scores):
            ids = _top_k(scores, options.top_k)
        # the maximum goes first, so that no temperature overflows
        distance = (scores if ids is None else scores[ids]) - scores[best]
        with np.errstate(over="ignore"):
            distance /= np.float32(max(options.temperature, _SMALLEST_TEMPERATURE))
        weights: NDArray[np.float32] = np.exp(distance, out=distance)
        if options.top_p < 1:
            keep = _top_p(weights, options.top_p)
            ids, weights = (keep if ids is None else ids[keep]), weights[keep]
        if options.min_p > 0:
            keep = np.flatnonzero(weights >= options.min_p)
            ids, weights = (keep if ids is None else ids[keep]), weights[keep]
        return ids, weights


def _draw(weights: NDArray[np.float32], drawn: float) -> int:
    """A place, each as likely as its weight; `drawn` is from [0, 1).

    First a block, then a place within it: a running sum over all V would take longer than the rest.
    """
    blocks = np.cumsum(np.add.reduceat(weights, np.arange(0, len(weights), _BLOCK)), dtype=float)
    left = drawn * blocks[-1]
    block = min(int(np.searchsorted(blocks, left, side="right")), len(blocks) - 1)
    start = block * _BLOCK
    left -= blocks[block - 1] if block else 0.0
    within = np.cumsum(weights[start : start + _BLOCK], dtype=float)
    place = int(np.searchsorted(within, left, side="right"))
    if place == len(within):  # the two sums were rounded differently
        place = int(np.flatnonzero(weights[start : start + _BLOCK])[-1])
    return start + place


def _top_k(scores: NDArray[np.float32], top_k: int) -> NDArray[np.int64]:
    """Ids of the `top_k` largest scores, in id order, with all that tie with the last one."""
    some = np.flatnonzero(scores >= _bound(scores, top_k))
    found = scores[some]
    place = len(found) - top_k
    kept: NDArray[np.int64] = some[found >= np.partition(found, place)[place]]
    return kept


def _top_p(weights: NDArray[np.float32], top_p: float) -> NDArray[np.int64]:
    """Places of the fewest largest weights that reach `top_p` of the sum, at least one.

    Of equal weights the first ones. Sorting all V would take longest, so a part is tried first.
    """
    target = top_p * float(weights.sum())
    for size in (*_FIRST_TRIES, len(weights)):
        is_whole = size >= len(weights)
        places = (
            np.arange(len(weights)) if is_whole
            else np.flatnonzero(weights >= _bound(weights, size))
        )  # fmt: skip
        part = weights[places]
        falling = np.sort(part)[::-1]
        # a token stays while the sum of all larger ones has not reached the target
        before = np.cumsum(falling, dtype=float) - falling
        count = max(1, int(np.searchsorted(before, target, side="left")))
        if is_whole or count < len(falling):
            break
    keep = part > falling[count - 1]
    equal = np.flatnonzero(part == falling[count - 1])
    keep[equal[: count - np.count_nonzero(keep)]] = True
    kept: NDArray[np.int64] = places[keep]
    return kept


def _bound(values: NDArray[np.float32], count: int) -> np.float32:
    """A number that at least `count` of the values reach, and not many more.

    Of groups of values only the largest are looked at: whatever `count` of these reach will do.
    """
    size = len(values) // (4 * count)
    largest = values
    if size >= 2:
        num_groups = len(values) // size
        # a group is a column, so that whole rows are compared at once
        largest = values[: size * num_groups].reshape(size, num_groups).max(0)
    place = len(largest) - count
    bound: np.float32 = np.partition(largest, place)[place]
    return bound
