from __future__ import annotations

import pytest

from edgekit.bench.metrics import RequestTiming, Summary, percentile, rate


def test_ttft_is_from_sent_to_the_first_token() -> None:
    timing = RequestTiming(sent_ns=1_000_000, token_ns=(6_000_000, 8_000_000))
    assert timing.ttft_ms == 5.0


def test_itl_are_the_gaps_between_tokens() -> None:
    timing = RequestTiming(sent_ns=0, token_ns=(5_000_000, 7_000_000, 10_000_000))
    assert timing.itl_ms == [2.0, 3.0]


def test_a_single_token_has_no_itl() -> None:
    assert RequestTiming(sent_ns=0, token_ns=(5,)).itl_ms == []


def test_decode_throughput_leaves_the_first_token_out() -> None:
    # 2 tokens in 5 ms after the first
    timing = RequestTiming(sent_ns=0, token_ns=(5_000_000, 7_000_000, 10_000_000))
    assert timing.decode_tokens_per_s == pytest.approx(400.0)


def test_rate_is_tokens_per_second() -> None:
    assert rate(512, 250_000_000) == pytest.approx(2048.0)


def test_summary_of_known_numbers() -> None:
    # deviations from the mean 5: -3, -1, -1, -1, 0, 0, 2, 4 -> squares sum to 32, over n-1 = 7
    summary = Summary((2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0))
    assert summary.mean == 5.0
    assert summary.stddev == pytest.approx((32 / 7) ** 0.5)
    assert summary.p50 == 4.5
    assert summary.samples[0] == 2.0


def test_a_single_sample_does_not_deviate() -> None:
    one = Summary((3.0,))
    assert (one.mean, one.stddev, one.p50, one.p95, one.p99) == (3.0, 0.0, 3.0, 3.0, 3.0)


@pytest.mark.parametrize(
    ("percent", "expected"), [(0, 10.0), (50, 30.0), (95, 48.0), (99, 49.6), (100, 50.0)]
)
def test_percentiles_lie_linearly_between_ranks(percent: float, expected: float) -> None:
    # five samples: rank = 4 * percent / 100, so 95 % is 3.8 -> 40 + 0.8 * 10
    assert percentile([50.0, 10.0, 30.0, 20.0, 40.0], percent) == pytest.approx(expected)
