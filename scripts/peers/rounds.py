"""Interleaved rounds: every engine once per round, each time in a new process."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from time import monotonic

from edgekit.bench.conditions import BUSY_PERCENT, busy_percent
from peers.catalog import Engine, Model
from peers.environment import CACHE, PeerError, own_python, peers_python, run, say
from peers.prepare import Source, cache_directory, prepared
from peers.processor import Processor

_TIMEOUT_S = 900
METRICS = ("pp", "tg", "tg_deep", "load_s", "peak_rss_bytes")


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What became of one engine."""

    engine: Engine
    processor: Processor
    opened: Path | None = None
    rounds: list[dict[str, float]] = field(default_factory=list)
    error: str | None = None
    """Why it is left out, or why a round is missing."""

    def median(self, metric: str) -> float | None:
        """Over the rounds; None where there is none."""
        values = [values[metric] for values in self.rounds]
        return median(values) if values else None

    def ratio(self, peer: Outcome, metric: str) -> float | None:
        """To a peer: the median of the ratios within a round, for the machine's speed drifts from
        round to round; None where no round has both."""
        theirs = {values["round"]: values[metric] for values in peer.rounds}
        ratios = [
            mine[metric] / theirs[mine["round"]]
            for mine in self.rounds
            if theirs.get(mine["round"])
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
    job: dict[str, object],
    label: str,
    patience_s: float = 0,
) -> None:
    """Measure; each round begins with another engine, so that none always follows the same one.

    Before each measurement, waits up to `patience_s` for other programs to be quiet.
    """
    able = [outcome for outcome in outcomes if outcome.opened]
    for number in range(rounds):
        shift = number % max(len(able), 1)
        for outcome in able[shift:] + able[:shift]:
            if outcome.error:
                continue
            busy = _wait_until_quiet(patience_s)
            try:
                measured = json.loads(work(outcome, "speed", job).read_text())
                outcome.rounds.append({**measured, "busy_percent": busy, "round": number})
            except PeerError as exc:
                outcome.error = str(exc)
                say(f"{label}: {exc}")
                continue
            last = outcome.rounds[-1]
            say(
                f"{label} {number + 1}/{rounds}  {outcome.engine.title:<24}"
                f"prefill {last['pp']:7.1f}  decode {last['tg']:6.1f} tokens/s"
                + (f"  ({busy:.0f} % used by others)" if busy > BUSY_PERCENT else "")
            )


def _wait_until_quiet(patience_s: float) -> float:
    """Share of the processor that others use, as soon as it is small or the patience is over."""
    end = monotonic() + patience_s
    while (busy := busy_percent()) > BUSY_PERCENT and monotonic() < end:
        pass
    return busy


def work(outcome: Outcome, what: str, job: dict[str, object]) -> Path:
    """One process of `peers.worker`; returns the file it wrote."""
    engine, processor = outcome.engine, outcome.processor
    job_file = CACHE / "job.json"
    job_file.write_text(json.dumps(job), encoding="utf-8")
    out = CACHE / ("result.json" if what == "speed" else "losses.npy")
    out.unlink(missing_ok=True)
    python = own_python()
    if not engine.is_ours:
        python = peers_python(processor.name, processor.cmake_args)
    opened = outcome.opened or Path()
    command: list[str | Path] = [python, "-m", "peers.worker", what, engine.adapter]
    run(
        [*command, opened, job_file, out],
        what=engine.title, timeout_s=_TIMEOUT_S, environment=processor.environment(),
    )  # fmt: skip
    return out
