"""The tests of `measure` on a backend that samples by itself: timed where tokens arrive.

Every run does the same work, as there; no token ends an answer and sampling is greedy.

- `ppP`: a request of one token after P. Its time ends when the token is here, so that the request's
  way, the queue and the backend's first sample are in it. Its first id is new every time: backends
  keep prompts, and what begins like a kept one is not computed again.
- `tgN @ dD`: a request of N + 1 tokens after D (at least one). The clock starts with the first of
  them, so that the prompt is not in it; the ITL are the gaps between arrivals.

A stream needs a place for one more token than `measure` does: the last one has it although it is
never read. Tokens are the model's own: known ones cannot be fed.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from time import perf_counter_ns

from edgekit.backends.base import StreamingSession
from edgekit.bench.measure import BenchTest, Repetition, TestResult, take_turns
from edgekit.bench.metrics import RequestTiming, rate
from edgekit.errors import BackendError
from edgekit.progress import Progress, no_progress
from edgekit.runtime.sampling import Sampling

TIMING = "stream"
NOTES = (
    "timed where tokens arrive in edgekit: sampling and the way from the backend are in it, and "
    "prefill is the tokens of the prompt by the time to the first new one",
    "peak RSS is edgekit's own process; the backend has another one",
)
_DRAFTS = (
    "the engine drafts by itself ({}): several tokens may come at once, a step may give more than "
    "the bound, and synthetic tokens say little of how many drafts a text has accepted"
)


def stream_notes(speculation: str) -> tuple[str, ...]:
    """What is to be known of figures of a stream."""
    return NOTES if speculation == "none" else (*NOTES, _DRAFTS.format(speculation))


def run_stream_tests(
    session: StreamingSession,
    tests: Sequence[BenchTest],
    *,
    token_ids: Sequence[int],
    repetitions: int,
    report: Progress = no_progress,
) -> list[TestResult]:
    """Warm up, then measure each test `repetitions` times in turns.

    `token_ids` are as long as the longest prompt at least; the session has no stop ids. Raises
    `BackendError` for an answer that ends early.
    """
    openers = itertools.cycle(dict.fromkeys(token_ids))

    def run(test: BenchTest, new_tokens: int) -> Repetition:
        if test.prompt_tokens:
            prompt = [next(openers), *token_ids[1 : test.prompt_tokens]]
            timing = _time(session, prompt, 1)
            return Repetition(rate(len(prompt), timing.token_ns[0] - timing.sent_ns), timing)
        timing = _time(session, list(token_ids[: test.held_tokens]), new_tokens + 1)
        return Repetition(timing.decode_tokens_per_s, timing)

    return take_turns(tests, run, repetitions=repetitions, report=report)


def _time(session: StreamingSession, prompt: list[int], new_tokens: int) -> RequestTiming:
    stream = session.stream(prompt, sampling=asdict(Sampling()), max_new_tokens=new_tokens)
    sent_ns = perf_counter_ns()
    with closing(stream):
        token_ns = tuple(perf_counter_ns() for _ in stream)
    if len(token_ns) != new_tokens:
        raise BackendError(
            f"the engine ended after {len(token_ns)} of {new_tokens} tokens, so there is no speed "
            "to tell",
            hint="use a smaller `-n`, or see `edgekit verify`",
        )
    return RequestTiming(sent_ns=sent_ns, token_ns=token_ns)
