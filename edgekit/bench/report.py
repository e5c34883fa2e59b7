"""What a benchmark found, as data: the fixed shape of `edgekit bench --json`, and warnings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from edgekit.bench.conditions import Conditions
from edgekit.bench.energy import Energy
from edgekit.bench.measure import BenchTest, TestResult
from edgekit.bench.metrics import Summary

_SLOWDOWN = 0.90
"""A second half this much slower than the first is called throttled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """What decode may reach: every token reads all weights and the KV cache so far once."""

    weight_bytes_per_token: int
    kv_bytes_per_token: int
    """Of the KV cache, for each token that it holds."""
    bandwidth_bytes_per_s: int
    source: str
    """Where the bandwidth comes from, in words."""
    lowest_bytes_per_s: int | None = None
    highest_bytes_per_s: int | None = None
    """Of several readings."""

    def bytes_per_token_read(self, test: BenchTest) -> int:
        """Bytes read for a token in the middle of the test, where it stands for all."""
        return self.weight_bytes_per_token + self.kv_bytes_per_token * (
            test.held_tokens + test.new_tokens // 2
        )

    def percent(self, result: TestResult) -> float:
        """Share of the bandwidth that decode accounts for: where that was read beside each
        repetition, the median of their shares, else that of the median throughput."""
        size = self.bytes_per_token_read(result.test)
        if not result.bandwidths:
            return result.tokens_per_s.p50 * size / self.bandwidth_bytes_per_s * 100
        pairs = zip(result.tokens_per_s.samples, result.bandwidths, strict=True)
        return Summary(tuple(speed * size / bandwidth for speed, bandwidth in pairs)).p50 * 100


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchReport:
    """One benchmark of one engine."""

    manifest_sha256: str
    model: str
    precision: str
    backend: str
    engine_bytes: int
    device: Mapping[str, Any]
    conditions: Conditions
    tests: tuple[TestResult, ...]
    repetitions: int
    load_ms: float
    """Verifying the files and loading the weights: what a user waits for."""
    peak_rss_bytes: int
    peak_device_bytes: int | None
    bound: Bound | None
    command: str
    timing: str = "calls"
    """Around calls that give logits, or at the end of a `stream`."""
    notes: tuple[str, ...] = ()
    """What was measured otherwise than the names of the tests say."""
    energy: Energy | str = "not measured"
    """Or why it is not known."""
    slow_settings: tuple[str, ...] = ()
    """How the device is set to run slower than it can."""

    @property
    def decodes(self) -> list[TestResult]:
        """The tests that decode."""
        return [result for result in self.tests if result.test.new_tokens]

    def to_dict(self) -> dict[str, Any]:
        """The shape that scripts rely on; `bound` is that of the first decode test, its `percent`
        what `Bound.percent` says."""
        bound = None
        if self.bound is not None and self.decodes:
            first = self.decodes[0]
            bound = {
                "bytes_per_token_read": self.bound.bytes_per_token_read(first.test),
                "bandwidth_bytes_per_s": self.bound.bandwidth_bytes_per_s,
                "percent": round(self.bound.percent(first), 1),
            }
        return {
            "manifest_sha256": self.manifest_sha256,
            "device": dict(self.device),
            "conditions": asdict(self.conditions),
            "tests": [_test_dict(result, self.repetitions) for result in self.tests],
            "load_ms": round(self.load_ms, 1),
            "peak_rss_bytes": self.peak_rss_bytes,
            "peak_device_bytes": self.peak_device_bytes,
            "energy": self.energy.to_dict() if isinstance(self.energy, Energy) else None,
            "bound": bound,
            "timing": self.timing,
            "notes": list(self.notes),
        }

    def to_json(self) -> str:
        """`to_dict` as text."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False)

    def warnings(self) -> list[str]:
        """What a reader must know before believing the numbers."""
        found = [f"{each}; the numbers are lower than they can be" for each in self.slow_settings]
        if self.conditions.throttling:
            found.append(f"the device was held back: {', '.join(self.conditions.throttling)}")
        found += [
            f"{r.test.name} became slower while it was measured: the machine throttles or is shared"
            for r in self.tests
            if slowed_down(r.tokens_per_s)
        ]
        if self.bound is not None:
            found += [
                f"{r.test.name} reaches {percent:.0f} % of the {self.bound.source} bandwidth: more "
                "than memory can deliver, so weights were read from the processor's cache, or "
                "the bandwidth was measured too low on a busy machine"
                for r in self.decodes
                if (percent := self.bound.percent(r)) > 100
            ]
        return found


def slowed_down(speeds: Summary) -> bool:
    """Whether the second half of at least four samples is clearly slower than the first."""
    half = len(speeds.samples) // 2
    if half < 2:
        return False
    first, second = Summary(speeds.samples[:half]), Summary(speeds.samples[-half:])
    return second.p50 < _SLOWDOWN * first.p50


def _test_dict(result: TestResult, repetitions: int) -> dict[str, Any]:
    test, speeds, ttft, itl = result.test, result.tokens_per_s, result.ttft_ms, result.itl_ms
    return {
        "name": test.name,
        "prompt_tokens": test.prompt_tokens,
        "new_tokens": test.new_tokens,
        "depth": test.depth,
        "n": repetitions,
        "tokens_per_s": {
            "mean": round(speeds.mean, 3),
            "stddev": round(speeds.stddev, 3),
            "p50": round(speeds.p50, 3),
            "samples": [round(x, 3) for x in speeds.samples],
        },
        "ttft_ms": None if ttft is None else {"p50": round(ttft.p50, 3), "p95": round(ttft.p95, 3)},
        "itl_ms": None
        if itl is None
        else {"p50": round(itl.p50, 3), "p95": round(itl.p95, 3), "p99": round(itl.p99, 3)},
        "bandwidth_bytes_per_s": [round(each) for each in result.bandwidths],
    }
