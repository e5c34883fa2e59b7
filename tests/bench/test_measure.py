from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pytest

from edgekit.bench.measure import (
    BenchTest,
    check_context,
    make_tests,
    run_tests,
    synthetic_ids,
)
from edgekit.errors import InputError

if TYPE_CHECKING:
    from edgekit.backends.base import Logits


class CountingSession:
    """Notes every call; computes nothing."""

    def __init__(self) -> None:
        self.context_tokens, self.num_slots, self.vocab_size = 64, 1, 10
        self.fills_apart = False
        self.held: list[int] = []
        self.calls: list[tuple[str, tuple[int, ...], int]] = []

    def length(self, slot: int) -> int:
        return len(self.held)

    def prefill(self, slot: int, token_ids: Sequence[int], *, num_logits: int = 1) -> Logits:
        self.calls.append(("prefill", tuple(token_ids), len(self.held)))
        self.held += token_ids
        return np.zeros((num_logits, self.vocab_size), np.float32)

    def decode(self, slots: Sequence[int], token_ids: Sequence[int]) -> Logits:
        self.calls.append(("decode", tuple(token_ids), len(self.held)))
        self.held += token_ids
        return np.zeros((1, self.vocab_size), np.float32)

    def truncate(self, slot: int, length: int) -> None:
        del self.held[length:]

    def close(self) -> None:
        pass


IDS = list(range(10)) * 4


def test_names_follow_llama_bench() -> None:
    tests = make_tests([512], [128], [0, 512])
    assert [t.name for t in tests] == ["pp512", "tg128", "tg128 @ d512"]


def test_zero_leaves_a_phase_out_and_repetitions_count_once() -> None:
    assert [t.name for t in make_tests([0], [8, 8], [0])] == ["tg8"]
    with pytest.raises(InputError, match="nothing to measure"):
        make_tests([0], [0], [0])


def test_a_test_that_does_not_fit_the_context_is_refused() -> None:
    tests = make_tests([32], [16], [40])
    check_context(tests, 56)
    with pytest.raises(
        InputError, match="tg16 @ d40 needs 56 tokens of context, the engine has 55"
    ):
        check_context(tests, 55)


def test_synthetic_ids_repeat_and_avoid_special_ones() -> None:
    ids = synthetic_ids(500, vocab_size=20, special_ids={0, 7})
    assert ids == synthetic_ids(500, vocab_size=20, special_ids={0, 7})
    assert set(ids) == set(range(20)) - {0, 7}


def test_a_longer_run_begins_like_a_shorter_one() -> None:
    assert synthetic_ids(50, vocab_size=20)[:10] == synthetic_ids(10, vocab_size=20)


def test_prefill_starts_on_an_empty_slot_every_time() -> None:
    session = CountingSession()
    (result,) = run_tests(session, [BenchTest(prompt_tokens=6)], token_ids=IDS, repetitions=3)
    assert session.calls == [("prefill", tuple(IDS[:6]), 0)] * 4  # one of them warms up
    assert len(result.tokens_per_s.samples) == 3
    assert result.ttft_ms is not None
    assert len(result.ttft_ms.samples) == 3
    assert result.itl_ms is None


def test_decode_starts_at_its_depth_and_feeds_known_ids() -> None:
    session = CountingSession()
    test = BenchTest(new_tokens=3, depth=5)
    (result,) = run_tests(session, [test], token_ids=IDS, repetitions=2)
    run = [
        ("prefill", tuple(IDS[:5]), 0),
        *(("decode", (IDS[5 + i],), 5 + i) for i in range(3)),
    ]
    assert session.calls == run * 3
    assert result.itl_ms is not None
    assert len(result.itl_ms.samples) == 6  # 2 runs of 3 gaps
    assert result.ttft_ms is None


def test_decode_without_depth_starts_after_one_token() -> None:
    session = CountingSession()
    run_tests(session, [BenchTest(new_tokens=1)], token_ids=IDS, repetitions=1)
    assert session.calls[-2:] == [("prefill", (0,), 0), ("decode", (1,), 1)]


def test_bandwidth_is_read_around_decode_alone() -> None:
    session = CountingSession()

    def read() -> float:
        reads = [call for call in session.calls if call[0] == "read"]
        session.calls.append(("read", (), len(session.held)))
        return 10.0 + 3 * len(reads)

    prefill, decode = run_tests(
        session, make_tests([4], [2], [0]), token_ids=IDS, repetitions=1, read_bandwidth=read
    )
    decoded = [("prefill", (0,), 0), ("decode", (1,), 1), ("decode", (2,), 2)]
    turn = [("prefill", (0, 1, 2, 3), 0), ("read", (), 0), *decoded, ("read", (), 3)]
    assert session.calls == turn * 2
    # those of the warm-up, 10 and 13, do not count
    assert (prefill.bandwidths, decode.bandwidths) == ((), (17.5,))


def test_tests_take_turns() -> None:
    session = CountingSession()
    run_tests(session, make_tests([4], [1], [0]), token_ids=IDS, repetitions=2)
    sizes = [len(ids) for kind, ids, _ in session.calls if kind == "prefill"]
    assert sizes == [4, 1] * 3


def test_progress_ends_at_its_total() -> None:
    seen: list[tuple[int, int]] = []
    run_tests(
        CountingSession(),
        make_tests([4], [1], [0]),
        token_ids=IDS,
        repetitions=2,
        report=lambda step, done, total: seen.append((done, total)),
    )
    assert seen == [(i, 6) for i in range(7)]
