"""How soon the first tokens come, with and without kept kernels, and how fast the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edgekit.backends.base import Session
from edgekit.bench.measure import BenchTest, TestResult, run_tests
from edgekit.progress import Progress, no_progress
from gpu_check.lines import Line, at_least, at_most, must, told

PROMPT_TOKENS = 512
NEW_TOKENS = 128
SECOND_TOKEN = "load to second token"
BOUND_SHARE = 0.5
"""Of the memory's bandwidth: published INT4 decode kernels reach 16 to 62 % (onnxruntime#32382),
well-made ones 70 to 90 %. Below half the weights are read twice, or the cache is copied."""
LAYER_S = 50e-6
"""Added for every layer of a token: ten kernels that are launched one by one, at 5 microseconds. In
a small model the launches are all; whoever needs more has lost the recorded graph and waits for
the processor between kernels."""
BOUND_SLACK = 1.1
"""Above the bound, bandwidth or bytes are counted wrong; memory clocks differ by some percent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What the plan says of decode: tokens/s; `None` where the bandwidth is not known."""

    empty: float | None
    full: float | None
    num_layers: int


def check_first_tokens(
    open_session: Callable[[], Session],
    token_ids: Sequence[int],
    clock: Callable[[], float],
    *,
    first_s: float | None = None,
) -> tuple[Session, list[Line]]:
    """Open, one prompt, one step: the session, and what each took.

    `first_s` is what the same took without kept kernels; with it the sum is judged.
    """
    times = [clock()]
    session = open_session()
    try:
        times.append(clock())
        session.prefill(0, token_ids)
        times.append(clock())
        session.decode([0], token_ids[:1])
        times.append(clock())
        session.truncate(0, 0)
    except BaseException:
        session.close()
        raise
    whole = times[-1] - times[0]
    names = ("load", f"first prompt, {len(token_ids)} tokens", "first step")
    lines = [
        told(name, after - before, "s")
        for name, before, after in zip(names, times, times[1:], strict=False)
    ]
    if first_s is None:
        lines.append(told(SECOND_TOKEN, whole, "s"))
    else:
        note = "limit: without kept kernels"
        lines.append(at_most(SECOND_TOKEN, whole, first_s, "s", note=note))
    return session, lines


def bench_tests(context_tokens: int) -> list[BenchTest]:
    """Prefill, decode on an empty and on a full slot; shorter where the context is short."""
    new = min(NEW_TOKENS, context_tokens // 4)
    return [
        BenchTest(prompt_tokens=min(PROMPT_TOKENS, context_tokens)),
        BenchTest(new_tokens=new),
        BenchTest(new_tokens=new, depth=context_tokens - new),
    ]


def check_speed(
    session: Session,
    token_ids: Sequence[int],
    bounds: Bounds,
    *,
    repetitions: int,
    report: Progress = no_progress,
) -> list[Line]:
    """Medians over the repetitions; `token_ids` fills the context."""
    tests = bench_tests(session.context_tokens)
    results = run_tests(session, tests, token_ids=token_ids, repetitions=repetitions, report=report)
    return speed_lines(results, bounds)


def speed_lines(results: Sequence[TestResult], bounds: Bounds) -> list[Line]:
    """Of `bench_tests`, in their order."""
    prompt, empty, full = results
    return [
        *_decode("decode, empty context", empty, bounds.empty, bounds.num_layers),
        *_decode("decode, full context", full, bounds.full, bounds.num_layers),
        at_least(
            f"prefill, {prompt.test.prompt_tokens} tokens", prompt.tokens_per_s.p50,
            empty.tokens_per_s.p50, "tokens/s", samples=prompt.tokens_per_s.samples,
            note="limit: decode",
        ),
    ]  # fmt: skip


def slowest(bound: float, num_layers: int) -> float:
    """Tokens/s below which decode is no longer what the card can do."""
    return 1 / (1 / (BOUND_SHARE * bound) + num_layers * LAYER_S)


def _decode(name: str, result: TestResult, bound: float | None, num_layers: int) -> list[Line]:
    median, samples = result.tokens_per_s.p50, result.tokens_per_s.samples
    what = f"{name}, {result.test.new_tokens} tokens"
    if not bound:
        note = "the bandwidth of this card is not known"
        return [told(what, median, "tokens/s", samples=samples, note=note)]
    return [
        at_least(
            what, median, slowest(bound, num_layers), "tokens/s", planned=bound,
            samples=samples, note=f"{100 * median / bound:.0f} % of the bandwidth",
        ),
        must(
            f"{name}: not above the bound", median <= BOUND_SLACK * bound,
            f"at most {BOUND_SLACK:.2f} of it",
        ),
    ]  # fmt: skip
