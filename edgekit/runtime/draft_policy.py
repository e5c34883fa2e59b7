"""How many tokens to draft: what a pass costs, what a draft gives, and what may be lost.

The unit of cost is a pass of one token; a pass that checks k drafted tokens costs
C(k) = 1 + m k, where m is the engine's marginal cost. If the i-th drafted token, given that all
before it were taken, is taken with probability a(i), then the pass gives E(k) = 1 + S(1) + ... +
S(k) tokens, where S(i) = a(1) ... a(i) (Leviathan et al. 2023, arXiv:2211.17192, section 3.1, for
constant a). S falls, so E(k) / C(k) rises while S(k + 1) / m exceeds it and falls ever after.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from statistics import median
from time import perf_counter_ns
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from edgekit.backends.base import Session

MARGINAL_COST = 0.3
"""Of a 4-bit engine on two CPU cores, the dearest that was met (8 bits: 0.1 to 0.17, fp32 on a CPU
0.05, a GPU less). Too large a value forgoes up to an eighth of the gain, too small a value makes
text that nobody can guess up to a tenth slower."""
MARGINAL_COSTS: Mapping[str, float] = {"fp16": 0.06, "int8": 0.18, "int8_sq": 0.09}
"""Of engines that are cheaper to draft for: SmolLM2-135M after 300 tokens, ONNX Runtime 1.32, two
cores of a Sapphire Rapids Xeon: a pass of 5 tokens took 1.24, 1.77 and 1.34 times one of 1."""
MAX_DRAFT_TOKENS = 16
_WORTH = 1.05
"""Expected tokens per cost below which nothing is drafted."""
_FIRST_CREDIT = 1.0
_MOST_CREDIT = 6.0
_CREDIT_PER_PASS = 0.01
_PRIOR_WEIGHT = 8.0
_MEMORY = 0.97
_TIMED_TOKENS = 5

Key = TypeVar("Key", bound=Hashable)


def draft_length(rates: Iterable[float], *, marginal_cost: float, limit: int) -> int:
    """The k <= `limit` that gives most tokens per cost, 0 where that is hardly more than one.

    `rates` are a(1), a(2), ...; no more of them are read than needed.
    """
    length, survives, tokens, cost = 0, 1.0, 1.0, 1.0
    for rate in rates:
        survives *= rate
        if length >= limit or survives * cost <= marginal_cost * tokens:
            break
        length, tokens, cost = length + 1, tokens + survives, cost + marginal_cost
    return length if tokens >= _WORTH * cost else 0


def marginal_cost(precision: str) -> float:
    """m of an engine of that precision, as measured once: a clock here would make answers differ
    from run to run."""
    return MARGINAL_COSTS.get(precision, MARGINAL_COST)


class Acceptance(Generic[Key]):
    """How often guesses of several kinds came true: counts that fade, begun with an opinion."""

    def __init__(self, prior: Mapping[Key, float]) -> None:
        self._counts = {key: (rate * _PRIOR_WEIGHT, _PRIOR_WEIGHT) for key, rate in prior.items()}

    def rate(self, key: Key) -> float:
        """The probability that a guess of this kind comes true."""
        true, all_of_them = self._counts[key]
        return true / all_of_them

    def note(self, key: Key, *, is_true: bool) -> None:
        """A guess of this kind was judged."""
        true, all_of_them = self._counts[key]
        self._counts[key] = (_MEMORY * true + is_true, _MEMORY * all_of_them + 1)


class Credit:
    """What drafting may cost: what it has saved, and a little for every pass.

    So n passes in which nothing is taken cost at most `1 + n / 100` passes more (7 after a
    success), whatever the estimates say, and drafts grow as earlier ones are taken.
    """

    def __init__(self) -> None:
        self.passes = _FIRST_CREDIT

    def earn(self) -> None:
        """A pass is due."""
        self._add(_CREDIT_PER_PASS)

    def affords(self, cost_per_token: float) -> int:
        """Tokens that may be drafted, at most `MAX_DRAFT_TOKENS`."""
        if cost_per_token * MAX_DRAFT_TOKENS <= self.passes:
            return MAX_DRAFT_TOKENS
        return max(0, int(self.passes / cost_per_token))

    def settle(self, *, cost: float, saved: int) -> None:
        """A draft cost so much and saved so many passes."""
        self._add(saved - cost)

    def _add(self, amount: float) -> None:
        self.passes = min(_MOST_CREDIT, self.passes + amount)


def measure_marginal_cost(session: Session, *, slot: int = 0, repetitions: int = 9) -> float:
    """m of an engine, from passes of one token and of five after what `slot` holds.

    It depends on the clock, so measure once per engine and keep the number: with another m other
    drafts are made, and an engine whose rounding depends on the draft may then say other words.
    The slot is left as it was. Raises `InputError` where five tokens do not fit.
    """
    held = session.length(slot)
    ids = list(range(_TIMED_TOKENS))
    times: dict[int, list[int]] = {1: [], _TIMED_TOKENS: []}
    for _ in range(repetitions + 1):
        for count, taken in times.items():
            began_ns = perf_counter_ns()
            session.prefill(slot, ids[:count], num_logits=count)
            taken.append(perf_counter_ns() - began_ns)
            session.truncate(slot, held)
    # the first ones bind buffers
    one, many = (median(taken[1:]) for taken in times.values())
    return max(0.0, (many / one - 1) / (_TIMED_TOKENS - 1))
