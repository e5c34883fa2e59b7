"""The tests of a benchmark on a session that streams: what is asked, and what is timed."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import Any

import pytest

from edgekit.bench import stream as timed
from edgekit.bench.measure import BenchTest, make_tests
from edgekit.bench.stream import run_stream_tests
from edgekit.errors import BackendError

IDS = [9, 4, 7, 1, 9, 5, 8, 2]
MS = 1_000_000


class Stream:
    """Streams on a clock of its own: 20 ms until the first token, 5 ms for each after it."""

    context_tokens = 64

    def __init__(self, *, ends_after: int = 99) -> None:
        self.now_ns = 0
        self.asked: list[tuple[tuple[int, ...], int]] = []
        self.samplings: list[Mapping[str, Any]] = []
        self.num_open = 0
        self._ends_after = ends_after

    def stream(
        self, token_ids: Sequence[int], *, sampling: Mapping[str, Any], max_new_tokens: int
    ) -> Generator[int]:
        self.asked.append((tuple(token_ids), max_new_tokens))
        self.samplings.append(sampling)
        self.num_open += 1
        try:
            for number in range(min(max_new_tokens, self._ends_after)):
                self.now_ns += 5 * MS if number else 20 * MS
                yield number
        finally:
            self.num_open -= 1

    def close(self) -> None:
        pass


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> Stream:
    session = Stream()
    monkeypatch.setattr(timed, "perf_counter_ns", lambda: session.now_ns)
    return session


def test_prefill_is_the_prompt_by_the_time_to_the_first_token(session: Stream) -> None:
    (result,) = run_stream_tests(
        session, [BenchTest(prompt_tokens=6)], token_ids=IDS, repetitions=3
    )
    assert result.tokens_per_s.samples == pytest.approx([300.0] * 3)  # 6 tokens in 20 ms
    assert result.ttft_ms is not None
    assert result.ttft_ms.samples == (20.0, 20.0, 20.0)
    assert result.itl_ms is None
    assert [limit for _, limit in session.asked] == [1] * 4  # one of them warms up


def test_no_prompt_begins_like_one_that_the_backend_may_have_kept(session: Stream) -> None:
    run_stream_tests(session, make_tests([6, 3], [0], [0]), token_ids=IDS, repetitions=2)
    prompts = [prompt for prompt, _ in session.asked]
    assert [prompt[0] for prompt in prompts] == [9, 4, 7, 1, 5, 8]  # 9 is in IDS twice
    assert {prompt[1:] for prompt in prompts} == {tuple(IDS[1:6]), tuple(IDS[1:3])}


def test_decode_is_timed_from_the_first_token_on(session: Stream) -> None:
    test = BenchTest(new_tokens=4, depth=5)
    (result,) = run_stream_tests(session, [test], token_ids=IDS, repetitions=2)
    # 4 tokens after the first, 5 ms each; the 20 ms of the prompt are not in it
    assert result.tokens_per_s.samples == pytest.approx([200.0, 200.0])
    assert result.itl_ms is not None
    assert result.itl_ms.samples == (5.0,) * 8
    assert result.ttft_ms is None
    assert session.asked == [(tuple(IDS[:5]), 5)] * 3


def test_decode_without_depth_starts_after_one_token(session: Stream) -> None:
    run_stream_tests(session, [BenchTest(new_tokens=2)], token_ids=IDS, repetitions=1)
    assert session.asked == [((9,), 3)] * 2


def test_sampling_is_greedy_and_streams_are_closed(session: Stream) -> None:
    run_stream_tests(session, make_tests([2], [2], [0]), token_ids=IDS, repetitions=1)
    assert {sampling["temperature"] for sampling in session.samplings} == {0.0}
    assert session.num_open == 0


def test_an_answer_that_ends_early_is_no_speed() -> None:
    with pytest.raises(BackendError, match="ended after 3 of 5 tokens"):
        run_stream_tests(
            Stream(ends_after=3), [BenchTest(new_tokens=4)], token_ids=IDS, repetitions=1
        )
