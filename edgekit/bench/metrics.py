"""Arithmetic over timestamps and samples; reads no clock."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestTiming:
    """When one request was sent and when each of its tokens arrived, in ns of one clock."""

    sent_ns: int
    token_ns: tuple[int, ...]

    @property
    def ttft_ms(self) -> float:
        """Time to first token: queueing, prefill and the first sample."""
        return (self.token_ns[0] - self.sent_ns) / 1e6

    @property
    def itl_ms(self) -> list[float]:
        """Inter-token latencies: the n-1 gaps between n tokens."""
        return [(b - a) / 1e6 for a, b in zip(self.token_ns, self.token_ns[1:], strict=False)]

    @property
    def decode_tokens_per_s(self) -> float:
        """The n-1 tokens after the first, per second since the first."""
        return rate(len(self.token_ns) - 1, self.token_ns[-1] - self.token_ns[0])


def rate(tokens: int, spent_ns: int) -> float:
    """Tokens per second."""
    return tokens / spent_ns * 1e9


@dataclass(frozen=True, slots=True)
class Summary:
    """What a set of samples says. At least one sample."""

    samples: tuple[float, ...]
    """In the order in which they were measured."""

    @property
    def mean(self) -> float:
        """Arithmetic mean."""
        return math.fsum(self.samples) / len(self.samples)

    @property
    def stddev(self) -> float:
        """Sample standard deviation (n-1); 0 for a single sample."""
        if len(self.samples) < 2:
            return 0.0
        mean = self.mean
        return math.sqrt(math.fsum((x - mean) ** 2 for x in self.samples) / (len(self.samples) - 1))

    @property
    def p50(self) -> float:
        """Median."""
        return percentile(self.samples, 50)

    @property
    def p95(self) -> float:
        """95th percentile."""
        return percentile(self.samples, 95)

    @property
    def p99(self) -> float:
        """99th percentile."""
        return percentile(self.samples, 99)


def percentile(samples: Sequence[float], percent: float) -> float:
    """Linear between the two nearest ranks, as `numpy.percentile` does by default."""
    ordered = sorted(samples)
    place = (len(ordered) - 1) * percent / 100
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)
