"""Is the plan true? Planned bytes against the peak resident memory of a fresh process.

Each measurement loads an engine as `edgekit chat` does, fills every KV slot to its last token and
decodes on all of them at once.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgekit.bench.tables import markdown_table
from edgekit.checkpoint import read_checkpoint
from edgekit.plan import make_plan
from edgekit.profile import find_profile
from edgekit.question import Question
from edgekit.steps import Budget
from edgekit.units import GIB, MIB
from peers.catalog import ENGINES, Model
from peers.environment import CACHE, PeerError, own_python, run, say
from peers.processor import PROCESSORS
from peers.rounds import prepare_engines

_PRECISIONS = ("int4_awq", "int8", "int8_sq", "fp16")
_CONTEXTS = (512, 2048)
_BATCHES = (1, 2)
_UNLIMITED = Budget(bytes=1024 * GIB, where="anywhere")


def compare_memory(
    models: Sequence[Model], *, threads: int, rebuild: bool, out: Path | None
) -> int:
    """Print planned and measured bytes, and write them as JSON; 1 when one is off by over 10 %."""
    results = []
    for model in models:
        engines = [ENGINES[f"edgekit-{name}"] for name in _PRECISIONS]
        outcomes = prepare_engines(model, engines, PROCESSORS["native"], rebuild=rebuild)
        checkpoint = read_checkpoint(model.checkpoint(CACHE / model.name))
        question = Question(
            model=model.name, spec=checkpoint.spec, profile=find_profile("cpu"),
            backend="onnxruntime", budget=_UNLIMITED, host=_UNLIMITED,
        )  # fmt: skip
        for precision, outcome in zip(_PRECISIONS, outcomes, strict=True):
            if outcome.opened is None:
                continue
            for context in _CONTEXTS:
                for batch in _BATCHES:
                    plan = make_plan(
                        replace(question, batch=batch), precision=precision, context=context
                    )
                    measured = _peak(outcome.opened, context, batch, threads)
                    results.append(
                        {
                            "model": model.name, "precision": precision, "context_tokens": context,
                            "batch": batch, "planned_bytes": plan.total_bytes,
                            "peak_rss_bytes": measured,
                        }
                    )  # fmt: skip
                    say(f"{model.name} {precision} {context} x {batch}: {_row(results[-1])[-3:]}")
    head = ["model", "precision", "context", "batch", "planned, MiB", "measured, MiB", "ratio"]
    print(markdown_table(head, [_row(result) for result in results], text_columns=2))
    out = out or CACHE / "memory.json"
    out.write_text(json.dumps(results, indent=2), encoding="utf-8")
    say(f"\nwritten to {out}")
    off = [r for r in results if abs(r["planned_bytes"] / r["peak_rss_bytes"] - 1) > 0.1]
    say(f"{len(off)} of {len(results)} are off by more than 10 %")
    return 1 if off else 0


def _row(result: dict[str, Any]) -> list[str]:
    planned, measured = result["planned_bytes"], result["peak_rss_bytes"]
    return [
        result["model"], result["precision"], str(result["context_tokens"]), str(result["batch"]),
        f"{planned / MIB:.0f}", f"{measured / MIB:.0f}", f"{planned / measured:.2f}",
    ]  # fmt: skip


def _peak(engine: Path, context: int, batch: int, threads: int) -> int:
    job, out = CACHE / "job.json", CACHE / "result.json"
    job.write_text(json.dumps({"context": context, "batch": batch, "threads": threads}))
    out.unlink(missing_ok=True)
    command = [own_python(), "-m", "peers.memory", engine, job, out]
    run(command, what=f"{engine}", timeout_s=600)
    peak = int(json.loads(out.read_text())["peak_rss_bytes"])
    if not peak:
        raise PeerError("this system does not say how much memory a process used")
    return peak


def main(arguments: Sequence[str]) -> None:
    """`python -m peers.memory ENGINE JOB.json OUT.json`, in a process of its own."""
    from edgekit.runtime.load import load_engine
    from peers.worker import peak_rss_bytes

    engine, job_file, out = map(Path, arguments)
    job = json.loads(job_file.read_text(encoding="utf-8"))
    context, batch = job["context"], job["batch"]
    with load_engine(
        engine, context_tokens=context, num_slots=batch, threads=job["threads"]
    ) as loaded:
        session = loaded.session
        for slot in range(batch):
            session.prefill(slot, [7] * (context - 8))
        for _ in range(8):
            session.decode(list(range(batch)), [7] * batch)
    out.write_text(json.dumps({"peak_rss_bytes": peak_rss_bytes()}), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
