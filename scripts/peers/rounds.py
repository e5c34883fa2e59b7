"""Rounds of turns: in each round every engine is loaded in a new process, then they take turns.

A machine that is shared, or moves its virtual cores, has another speed some seconds later. So what
is compared lies seconds apart: one prompt and its answers of one engine, then of the next, and
again, while the others wait. All engines of a round are in memory at once.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from time import monotonic

from edgekit.bench.conditions import BUSY_PERCENT, busy_percent
from peers.catalog import Engine, Model
from peers.environment import CACHE, PeerError, own_python, peers_python, run, say, variables
from peers.prepare import Source, cache_directory, prepared
from peers.processor import Processor
from peers.turns import Worker

_TIMEOUT_S = 900
METRICS = ("pp", "tg", "tg_deep", "load_s", "peak_rss_bytes")


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What became of one engine."""

    engine: Engine
    processor: Processor
    opened: Path | None = None
    turns: list[dict[str, float]] = field(default_factory=list)
    error: str | None = None
    """Why it is left out, or why turns are missing."""

    def median(self, metric: str) -> float | None:
        """Over the turns of all rounds; None where there is none."""
        values = [values[metric] for values in self.turns]
        return median(values) if values else None

    def ratio(self, peer: Outcome, metric: str) -> float | None:
        """To a peer: the median of the ratios within a turn, for the machine's speed drifts from
        turn to turn; None where no turn has both."""
        theirs = {values["turn"]: values[metric] for values in peer.turns}
        ratios = [
            mine[metric] / theirs[mine["turn"]] for mine in self.turns if theirs.get(mine["turn"])
        ]
        return median(ratios) if ratios else None


def prepare_engines(
    model: Model, engines: Sequence[Engine], processor: Processor, *, rebuild: bool = False
) -> list[Outcome]:
    """Convert the model for every engine, or note why that failed.

    Conversions are kept; `rebuild` makes those of edgekit again, whose code may have changed.
    """
    base = CACHE / model.name
    base.mkdir(parents=True, exist_ok=True)
    source = Source(
        checkpoint=model.checkpoint(base),
        build_flags=model.build_flags,
        peers_python=partial(peers_python, processor.name, processor.cmake_args),
    )
    outcomes = []
    for engine in engines:
        outcome = Outcome(engine=engine, processor=processor)
        out = cache_directory(model.name, engine.name)
        if rebuild and engine.is_ours:
            shutil.rmtree(out, ignore_errors=True)
        if not (out / "open").is_file():
            say(f"{model.name}: converting for {engine.title}")
        try:
            outcome.opened = prepared(out, partial(engine.convert, source))
        except PeerError as exc:
            outcome.error = str(exc)
            say(f"{model.name}: {engine.title} is left out: {exc}")
        outcomes.append(outcome)
    return outcomes


def run_rounds(
    outcomes: Sequence[Outcome],
    *,
    rounds: int,
    turns: int,
    job: dict[str, object],
    label: str,
    patience_s: float = 0,
) -> None:
    """Measure; each turn begins with another engine, so that none always follows the same one.

    Before each round, waits up to `patience_s` for other programs to be quiet.
    """
    job_file = CACHE / "job.json"
    job_file.write_text(json.dumps(job), encoding="utf-8")
    for number in range(rounds):
        busy = _wait_until_quiet(patience_s)
        with ExitStack() as stack:
            waiting: list[tuple[Outcome, Worker]] = []
            for outcome in outcomes:
                if outcome.opened and not outcome.error:
                    with _noting(outcome, label):
                        worker = stack.enter_context(_worker(outcome, job_file))
                        waiting.append((outcome, worker))
            for turn in range(number * turns, (number + 1) * turns):
                shift = turn % max(len(waiting), 1)
                for outcome, worker in waiting[shift:] + waiting[:shift]:
                    if outcome.error:
                        continue
                    with _noting(outcome, label):
                        found = worker.turn(turn)
                        outcome.turns.append({**found, "busy_percent": busy, "turn": turn})
        for outcome, _ in waiting:
            _say_round(outcome, f"{label} {number + 1}/{rounds}", number * turns, busy)


@contextmanager
def _noting(outcome: Outcome, label: str) -> Iterator[None]:
    """An engine that fails is left out from here on."""
    try:
        yield
    except PeerError as exc:
        outcome.error = str(exc)
        say(f"{label}: {exc}")


def _say_round(outcome: Outcome, label: str, first_turn: int, busy: float) -> None:
    last = [values for values in outcome.turns if values["turn"] >= first_turn]
    if not last:
        return
    prefill, decode = (median(values[metric] for values in last) for metric in ("pp", "tg"))
    say(
        f"{label}  {outcome.engine.title:<24}prefill {prefill:7.1f}  decode {decode:6.1f} tokens/s"
        + (f"  ({busy:.0f} % used by others)" if busy > BUSY_PERCENT else "")
    )


def _wait_until_quiet(patience_s: float) -> float:
    """Share of the processor that others use, as soon as it is small or the patience is over."""
    end = monotonic() + patience_s
    while (busy := busy_percent()) > BUSY_PERCENT and monotonic() < end:
        pass
    return busy


def _python(outcome: Outcome) -> Path:
    if outcome.engine.is_ours:
        return own_python()
    return peers_python(outcome.processor.name, outcome.processor.cmake_args)


def _worker(outcome: Outcome, job_file: Path) -> Worker:
    return Worker(
        [_python(outcome), "-m", "peers.worker", "speed", outcome.engine.adapter,
         outcome.opened or Path(), job_file],
        title=outcome.engine.title,
        environment=variables(outcome.processor.environment()),
        log=CACHE / f"{outcome.engine.name}.log",
    )  # fmt: skip


def losses(outcome: Outcome, job: dict[str, object]) -> Path:
    """One process of `peers.worker`; returns the file it wrote."""
    job_file, out = CACHE / "job.json", CACHE / "losses.npy"
    job_file.write_text(json.dumps(job), encoding="utf-8")
    out.unlink(missing_ok=True)
    command: list[str | Path] = [_python(outcome), "-m", "peers.worker", "losses"]
    run(
        [*command, outcome.engine.adapter, outcome.opened or Path(), job_file, out],
        what=outcome.engine.title, timeout_s=_TIMEOUT_S,
        environment=outcome.processor.environment(),
    )  # fmt: skip
    return out
