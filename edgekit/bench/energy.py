"""Arithmetic over power and energy samples; reads no sensor.

Times are in ns of one clock, `perf_counter_ns`, as those of requests are.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

LEAST_SAMPLES = 5
"""A span with fewer samples within it says nothing: sensors average over tens of milliseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What was read at one time: watts, or joules of a counter that only grows."""

    at_ns: int
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TestEnergy:
    """What all runs of one test took."""

    __test__ = False  # pytest collects classes by this name
    joules: float
    tokens: int
    """That were computed meanwhile: of the prompt, or new ones."""

    @property
    def tokens_per_joule(self) -> float:
        """0 J: infinitely many, which no sensor means."""
        return self.tokens / self.joules

    def to_dict(self) -> dict[str, float]:
        """As `edgekit bench --json` has it."""
        return {
            "joules": round(self.joules, 3),
            "tokens_per_joule": round(self.tokens_per_joule, 3),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Energy:
    """Of a whole benchmark. Test -> what it took; a test too short to be measured has none."""

    source: str
    tests: dict[str, TestEnergy]

    def to_dict(self) -> dict[str, Any]:
        """The fixed shape. The figures beside `source` are the first test's that has any: decoding
        ones come first."""
        (first, *_) = sorted(self.tests, key=lambda name: not name.startswith("tg"))
        return {
            **self.tests[first].to_dict(),
            "source": self.source,
            "test": first,
            "tests": {name: test.to_dict() for name, test in self.tests.items()},
        }


def spent_watts(samples: Sequence[Sample], begin_ns: int, end_ns: int) -> float | None:
    """Joules between two times: the area below straight lines between samples of power.

    `None` where the samples do not reach from one to the other, or are fewer than `LEAST_SAMPLES`.
    """
    inside = _inside(samples, begin_ns, end_ns)
    if inside is None:
        return None
    points = [
        (begin_ns, _at(samples, begin_ns)),
        *((sample.at_ns, sample.value) for sample in inside),
        (end_ns, _at(samples, end_ns)),
    ]
    return sum(
        (later - earlier) / 1e9 * (before + after) / 2
        for (earlier, before), (later, after) in pairwise(points)
    )


def spent_joules(samples: Sequence[Sample], begin_ns: int, end_ns: int) -> float | None:
    """Joules between two times of a counter that only grows; `None` as above, or where it did not
    grow, as one that was reset."""
    if _inside(samples, begin_ns, end_ns) is None:
        return None
    spent = _at(samples, end_ns) - _at(samples, begin_ns)
    return spent if spent > 0 else None


def _inside(samples: Sequence[Sample], begin_ns: int, end_ns: int) -> list[Sample] | None:
    if not samples or not samples[0].at_ns <= begin_ns < end_ns <= samples[-1].at_ns:
        return None
    inside = [sample for sample in samples if begin_ns < sample.at_ns < end_ns]
    return inside if len(inside) >= LEAST_SAMPLES else None


def _at(samples: Sequence[Sample], at_ns: int) -> float:
    """The value at a time between the first and the last sample, on the line between two."""
    place = bisect_left(samples, at_ns, key=lambda sample: sample.at_ns)
    after = samples[place]
    if after.at_ns == at_ns:
        return after.value
    before = samples[place - 1]
    share = (at_ns - before.at_ns) / (after.at_ns - before.at_ns)
    return before.value + share * (after.value - before.value)
