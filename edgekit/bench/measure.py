"""Run tests on a session, named as llama-bench names them: `pp512`, `tg128`, `tg128 @ d512`.

Every run does the same work: fixed synthetic ids, no stop ids, no sampling. What is timed:

- `ppP`: one `prefill` of P tokens on an empty slot. Its TTFT ends when the likeliest next token
  has been picked from the logits.
- `tgN @ dD`: N `decode` calls with known ids, after an untimed prefill of D tokens (at least
  one). The ITL are the gaps between these calls' ends.

Where memory is what bounds decode, its bandwidth is read before the prefill and after the last of
these calls: on a machine that is shared it may be another a second later.

Loading, tokenizing and a first warm-up of each test are outside. The tests take turns, so that a
machine that slows down touches all of them alike.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from time import perf_counter_ns

from edgekit.backends.base import Session
from edgekit.bench.metrics import RequestTiming, Summary, rate
from edgekit.errors import InputError
from edgekit.progress import Progress, no_progress

_SEED = 1234
_WARMUP_TOKENS = 8
"""Decode calls of a warm-up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchTest:
    """One row: either a prefill of `prompt_tokens` or `new_tokens` of decode at `depth`."""

    prompt_tokens: int = 0
    new_tokens: int = 0
    depth: int = 0
    """Tokens in the KV cache before the first decode; 0 means one, since decode needs a start."""

    @property
    def name(self) -> str:
        """`pp512`, `tg128`, `tg128 @ d512`."""
        if self.prompt_tokens:
            return f"pp{self.prompt_tokens}"
        return f"tg{self.new_tokens}" + (f" @ d{self.depth}" if self.depth else "")

    @property
    def held_tokens(self) -> int:
        """Tokens in the slot when decode begins."""
        return max(self.depth, 1)

    @property
    def needed_tokens(self) -> int:
        """Context that the test fills."""
        return self.prompt_tokens or self.held_tokens + self.new_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class TestResult:
    """What one test gave."""

    __test__ = False  # pytest collects classes by this name
    test: BenchTest
    tokens_per_s: Summary
    ttft_ms: Summary | None = None
    """Only of a prefill."""
    itl_ms: Summary | None = None
    """Only of decode; pooled over all repetitions."""
    spans_ns: tuple[tuple[int, int], ...] = ()
    """From where to where each repetition computed `tokens / repetitions` tokens."""
    tokens: int = 0
    """Computed within all of `spans_ns`."""
    bandwidths: tuple[float, ...] = ()
    """Read bandwidth beside each repetition, bytes/s; empty: not measured."""


@dataclass(frozen=True, slots=True)
class Repetition:
    """One run of one test."""

    tokens_per_s: float
    """Of the test's phase."""
    timing: RequestTiming
    bandwidth: float | None = None
    """Mean of the read bandwidth before and after it, bytes/s."""


def make_tests(
    prompt_tokens: Sequence[int], new_tokens: Sequence[int], depths: Sequence[int]
) -> list[BenchTest]:
    """Every prefill, then every decode at every depth, without repetitions and sizes of 0."""
    prefills = [BenchTest(prompt_tokens=p) for p in prompt_tokens if p]
    decodes = [BenchTest(new_tokens=n, depth=d) for d in depths for n in new_tokens if n]
    tests = list(dict.fromkeys(prefills + decodes))
    if not tests:
        raise InputError("there is nothing to measure: every `-p` and `-n` is 0")
    return tests


def check_context(tests: Sequence[BenchTest], context_tokens: int, *, more: int = 0) -> None:
    """Raises `InputError` naming the first test that the engine's context cannot hold.

    `more` is what every test needs besides, of a stream.
    """
    for test in tests:
        if (needed := test.needed_tokens + more) > context_tokens:
            raise InputError(
                f"{test.name} needs {needed} tokens of context, the engine has {context_tokens}",
                hint="lower `-p`, `-n` or `-d`, or build the engine with a larger `--context`",
            )


def synthetic_ids(count: int, *, vocab_size: int, special_ids: Collection[int] = ()) -> list[int]:
    """The same `count` ids on every run, from all of the vocabulary but `special_ids`."""
    usable = [i for i in range(vocab_size) if i not in special_ids]
    return random.Random(_SEED).choices(usable, k=count)


def run_tests(
    session: Session,
    tests: Sequence[BenchTest],
    *,
    token_ids: Sequence[int],
    repetitions: int,
    read_bandwidth: Callable[[], float] | None = None,
    report: Progress = no_progress,
) -> list[TestResult]:
    """Warm up, then measure each test `repetitions` times in turns, on slot 0.

    `token_ids` must be as long as the largest `needed_tokens`; `read_bandwidth` gives bytes/s.
    """

    def run(test: BenchTest, new_tokens: int) -> Repetition:
        return _run_once(session, test, token_ids, new_tokens, read_bandwidth)

    return take_turns(tests, run, repetitions=repetitions, report=report)


def take_turns(
    tests: Sequence[BenchTest],
    run: Callable[[BenchTest, int], Repetition],
    *,
    repetitions: int,
    report: Progress,
) -> list[TestResult]:
    """Warm up with `run(test, new_tokens)`, then measure each test so often."""
    total = len(tests) * (repetitions + 1)
    for done, test in enumerate(tests):
        report("measure", done, total)
        run(test, min(test.new_tokens, _WARMUP_TOKENS))
    runs: list[list[Repetition]] = [[] for _ in tests]
    done = len(tests)
    for _ in range(repetitions):
        for test, kept in zip(tests, runs, strict=True):
            report("measure", done, total)
            kept.append(run(test, test.new_tokens))
            done += 1
    report("measure", total, total)
    return [_result(test, kept) for test, kept in zip(tests, runs, strict=True)]


def _run_once(
    session: Session,
    test: BenchTest,
    token_ids: Sequence[int],
    new_tokens: int,
    read_bandwidth: Callable[[], float] | None,
) -> Repetition:
    session.truncate(0, 0)
    if test.prompt_tokens:
        return _time_prefill(session, token_ids[: test.prompt_tokens])
    # not after it: the prefill wakes threads and fills caches that decode then finds as usual
    before = None if read_bandwidth is None else read_bandwidth()
    session.prefill(0, token_ids[: test.held_tokens])
    timing = _time_decode(session, token_ids[test.held_tokens : test.held_tokens + new_tokens])
    bandwidth = None
    if read_bandwidth is not None and before is not None:
        bandwidth = (before + read_bandwidth()) / 2
    return Repetition(timing.decode_tokens_per_s, timing, bandwidth)


def _time_prefill(session: Session, prompt_ids: Sequence[int]) -> Repetition:
    sent_ns = perf_counter_ns()
    logits = session.prefill(0, prompt_ids)
    filled_ns = perf_counter_ns()
    int(logits[-1].argmax())
    timing = RequestTiming(sent_ns=sent_ns, token_ns=(perf_counter_ns(),))
    return Repetition(rate(len(prompt_ids), filled_ns - sent_ns), timing)


def _time_decode(session: Session, fed: Sequence[int]) -> RequestTiming:
    sent_ns = perf_counter_ns()
    token_ns = [sent_ns]
    for token_id in fed:
        session.decode([0], [token_id])
        token_ns.append(perf_counter_ns())
    return RequestTiming(sent_ns=sent_ns, token_ns=tuple(token_ns))


def _result(test: BenchTest, runs: Sequence[Repetition]) -> TestResult:
    speeds = Summary(tuple(run.tokens_per_s for run in runs))
    timings = [run.timing for run in runs]
    if test.prompt_tokens:
        return TestResult(
            test=test,
            tokens_per_s=speeds,
            ttft_ms=Summary(tuple(timing.ttft_ms for timing in timings)),
            spans_ns=tuple((timing.sent_ns, timing.token_ns[-1]) for timing in timings),
            tokens=test.prompt_tokens * len(runs),
        )
    return TestResult(
        test=test,
        tokens_per_s=speeds,
        itl_ms=Summary(tuple(gap for timing in timings for gap in timing.itl_ms)),
        spans_ns=tuple((timing.token_ns[0], timing.token_ns[-1]) for timing in timings),
        tokens=sum(len(timing.token_ns) - 1 for timing in timings),
        bandwidths=tuple(run.bandwidth for run in runs if run.bandwidth is not None),
    )
