from __future__ import annotations

from collections.abc import Callable

import pytest

from edgekit.bench.conditions import Conditions
from edgekit.bench.measure import BenchTest, TestResult
from edgekit.bench.metrics import Summary
from edgekit.bench.report import BenchReport, Bound

PREFILL = TestResult(
    test=BenchTest(prompt_tokens=512),
    tokens_per_s=Summary((100.0, 120.0, 110.0)),
    ttft_ms=Summary((5120.0, 4266.0, 4654.0)),
)
DECODE = TestResult(
    test=BenchTest(new_tokens=128),
    tokens_per_s=Summary((20.0, 22.0, 21.0)),
    itl_ms=Summary((50.0, 45.0, 47.0)),
)


@pytest.fixture
def make_report() -> Callable[..., BenchReport]:
    def make(
        *,
        tests: tuple[TestResult, ...] = (PREFILL, DECODE),
        bandwidth_bytes_per_s: int | None = 10_000_000_000,
        threads: int = 2,
    ) -> BenchReport:
        bound = None
        if bandwidth_bytes_per_s is not None:
            bound = Bound(
                weight_bytes_per_token=99_350_000,
                kv_bytes_per_token=10_000,
                bandwidth_bytes_per_s=bandwidth_bytes_per_s,
                source="measured",
            )
        return BenchReport(
            manifest_sha256="ab" * 32,
            model="tiny",
            precision="int4_awq",
            backend="onnxruntime",
            engine_bytes=3 * 1024**2,
            device={"name": "a processor", "profile": "cpu"},
            conditions=Conditions(
                threads=threads, power_mode=None, clocks=None, temperature_c=None
            ),
            tests=tests,
            repetitions=3,
            load_ms=123.44,
            peak_rss_bytes=2 * 1024**2,
            peak_device_bytes=None,
            bound=bound,
            command="edgekit bench tiny -p 512 -n 128 -d 0 -r 3",
        )

    return make
