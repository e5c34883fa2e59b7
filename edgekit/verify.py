"""Does the engine answer as the checkpoint does? Measured before a manifest is written.

The reference answers were recorded while the model was quantized; the engine is asked the same
held-out prompts here, so that this needs neither torch nor the checkpoint and runs on the device
as well. Two comparisons: with the original, which says how good the quantized engine is, and with
the model as ModelOpt simulates it, which must agree closely: what differs there is not
quantization but a mistake in packing, scales or the graph.

A backend that samples by itself is asked in the same terms where it tells log-probabilities: of the
whole vocabulary after each of those positions, each from a request of one token, so that what is
compared went through the kernels of prompts. Those of single steps are in the known answer, which
must begin as that of the twin does. Where it tells only the likeliest few (`TopScoring`), the least
divergence that fits them is compared, and the perplexity stays the twin's. Where it tells none, the
known answer is all that is asked.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.backends import find_backend
from edgekit.backends.base import Scores, Streams, TopScoring
from edgekit.engine import open_manifest
from edgekit.errors import InputError, QualityError
from edgekit.progress import Progress, no_progress
from edgekit.quality import (
    ON_ENGINE,
    ON_ENGINE_TOP,
    ON_TWIN_ANSWERED,
    Quality,
    require_quality,
)
from edgekit.reference import REFERENCE_FILE, Reference, ask, ask_top, mean_kl

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgekit.backends import Session
    from edgekit.backends.base import StreamingSession

_LOG = logging.getLogger(__name__)
_MIN_KNOWN_TOKENS = 4
"""Of the known answer's first tokens an engine that gives no logits must find so many: garbage, the
usual failure, goes wrong with the first, a near-tie later."""


def verify_engine(engine: Path, *, report: Progress = no_progress) -> Quality:
    """Check every file of an engine, then its answers, on this machine.

    Raises `EngineError` for a file that differs, `QualityError` for answers that do.
    """
    manifest = open_manifest(engine, full=True)
    backend = find_backend(manifest.backend["name"])
    if isinstance(backend, Streams):
        return check_streamed(
            backend,
            Quality.from_dict(manifest.quality),
            engine=engine,
            context_tokens=manifest.context_tokens,
            precision=manifest.precision,
            kv_precision=manifest.kv_precision,
            report=report,
        )
    return check_answers(
        lambda needed: backend.open(engine / "backend", context_tokens=needed, num_slots=1),
        engine=engine,
        context_tokens=manifest.context_tokens,
        precision=manifest.precision,
        kv_precision=manifest.kv_precision,
        report=report,
    )


def check_answers(
    open_session: Callable[[int], Session],
    open_unrounded: Callable[[int], Session] | None = None,
    *,
    engine: Path,
    context_tokens: int,
    precision: str,
    kv_precision: str = "fp16",
    on: str = ON_ENGINE,
    report: Progress = no_progress,
) -> Quality:
    """Ask a session, of so many tokens of context, the reference prompts below `engine`.

    Where activations are rounded, one that does not round them may be given as well: ModelOpt's
    simulation of the weights is compared with that one. Raises `QualityError` beyond a limit of
    the precision.
    """
    from tokenizers import Tokenizer

    reference = Reference.load(engine / "reference" / REFERENCE_FILE)
    longest = max(len(p) for p in (*reference.prompts, reference.known_prompt))
    needed = longest + len(reference.known_answer)
    if needed > context_tokens:
        raise QualityError(
            f"checking an engine takes {needed} tokens of context, this one has {context_tokens}",
            hint=f"build with `--context {needed}` or more",
        )
    quality = _ask(open_session(needed), reference, report)
    if open_unrounded is not None:
        same = _ask(open_unrounded(needed), reference, report)
        quality = replace(quality, mean_kl_simulated=same.mean_kl_simulated)
    text = Tokenizer.from_file(str(engine / "tokenizer" / "tokenizer.json"))
    answer = text.decode(list(quality.known_answer_ids)).strip()
    quality = replace(quality, known_answer=answer, measured_on=on)
    require_quality(quality, precision, kv_precision)
    return quality


def check_streamed(
    backend: Streams,
    quality: Quality,
    *,
    engine: Path,
    context_tokens: int,
    precision: str,
    kv_precision: str = "fp16",
    report: Progress = no_progress,
) -> Quality:
    """Ask an engine that samples by itself; its twin's figures, or its own of before, are
    `quality`. Raises `QualityError`."""
    files = engine / "backend"
    if not isinstance(backend, Scores):
        stream = backend.open_stream(files, context_tokens=context_tokens, num_slots=1)
        return check_known_answer(stream, quality, engine=engine)
    reference = Reference.load(engine / "reference" / REFERENCE_FILE)
    session, figures = backend.open_scores(files, context_tokens=context_tokens), None
    on = ON_ENGINE
    try:
        if isinstance(session, TopScoring):
            figures, on = ask_top(session.top_scores, reference, report), ON_ENGINE_TOP
        else:
            figures = _compare(
                lambda ids, count: session.scores(ids, first=len(ids) - count), reference, report
            )
    except InputError as exc:  # there are none: whatever else was wrong, the known answer says it
        _LOG.warning("no log-probabilities: %s; only the known answer is checked", exc)
    except BaseException:
        session.close()
        raise
    answered = check_known_answer(session, quality, engine=engine)
    if figures is None:
        return answered
    asked = replace(answered, **figures, measured_on=on)
    require_quality(asked, precision, kv_precision)
    return asked


def check_known_answer(session: StreamingSession, quality: Quality, *, engine: Path) -> Quality:
    """Ask an engine that gives no logits the known prompt; its twin's figures are `quality`.

    Closes the session. Raises `QualityError` where it does not begin as the twin does.
    """
    from tokenizers import Tokenizer

    reference = Reference.load(engine / "reference" / REFERENCE_FILE)
    wanted = quality.known_answer_ids
    try:
        stream = session.stream(
            reference.known_prompt, sampling={"temperature": 0.0}, max_new_tokens=len(wanted)
        )
        answer = tuple(stream)
    finally:
        session.close()
    said = Tokenizer.from_file(str(engine / "tokenizer" / "tokenizer.json")).decode(list(answer))
    same = _leading(answer, wanted)
    if same < min(_MIN_KNOWN_TOKENS, len(wanted)):
        raise QualityError(
            f"the engine does not answer as its checkpoint does: {said[:80]!r}, of which the first "
            f"{same} tokens are right",
            hint="build it again with `--force` (of TensorRT-LLM: with its timing cache deleted); "
            "another `--precision`, or `--batch 2`, may be right where this is wrong",
        )
    return replace(
        quality,
        known_answer_ids=answer,
        known_answer=said.strip(),
        known_answer_agreement=_leading(answer, reference.known_answer),
        measured_on=ON_TWIN_ANSWERED,
    )


def _leading(one: Sequence[int], other: Sequence[int]) -> int:
    """How many leading values are equal."""
    same = [a == b for a, b in zip(one, other, strict=False)]
    return same.index(False) if False in same else len(same)


def _ask(session: Session, reference: Reference, report: Progress) -> Quality:
    try:
        return measure_quality(session, reference, report=report)
    finally:
        session.close()


def measure_quality(
    session: Session, reference: Reference, *, slot: int = 0, report: Progress = no_progress
) -> Quality:
    """Ask the engine the reference's prompts. Leaves `slot` empty."""

    def logits_of(ids: Sequence[int], count: int) -> NDArray[np.float32]:
        session.truncate(slot, 0)
        if session.fills_apart:  # a row for each token, so that none goes in as a prompt does
            return session.prefill(slot, ids, num_logits=len(ids))[-count:]
        return session.prefill(slot, ids, num_logits=count)

    figures = _compare(logits_of, reference, report)
    if session.fills_apart:
        figures["mean_kl_after_prompts"] = _kl_after_prompts(session, slot, reference)
    known = _greedy(session, slot, reference.known_prompt, len(reference.known_answer))
    session.truncate(slot, 0)
    return Quality(
        **figures,
        known_answer_ids=tuple(known),
        known_answer_agreement=_leading(known, reference.known_answer),
    )


def _kl_after_prompts(session: Session, slot: int, reference: Reference) -> float | None:
    """The half of each exchange that follows one which went in as a prompt does."""
    position = max(len(prompt) for prompt in reference.prompts) // 2
    later = reference.starting_at(position)
    if not later.prompts:
        return None

    def logits_of(ids: Sequence[int], count: int) -> NDArray[np.float32]:
        session.truncate(slot, 0)
        session.prefill(slot, ids[:-count], num_logits=0)
        return session.prefill(slot, ids[-count:], num_logits=count)

    divergence: float = _compare(logits_of, later, no_progress)["mean_kl_simulated"]
    return divergence


def _compare(
    logits_of: Callable[[Sequence[int], int], NDArray[np.float32]],
    reference: Reference,
    report: Progress,
) -> dict[str, Any]:
    """`logits_of(ids, n)` gives the last n rows of logits; log-probabilities are such. The fields
    of `Quality` that follow from them."""
    import numpy as np

    done = 0

    def told(ids: Sequence[int], count: int) -> NDArray[np.float32]:
        nonlocal done
        report("verify", done, len(reference.prompts))
        done += 1
        return logits_of(ids, count)

    answers = ask(
        told,
        reference.prompts,
        first_position=reference.first_position,
        top_ids=reference.top_ids,
    )
    report("verify", len(reference.prompts), len(reference.prompts))
    rows = np.arange(len(answers.top1))
    best = reference.top_ids[rows, reference.original.argmax(axis=1)]
    loss = reference.original_next.astype(np.float64) - answers.next
    return {
        "positions": len(rows),
        "mean_kl": mean_kl(reference.original, answers.log_probs),
        "mean_kl_simulated": mean_kl(reference.simulated, answers.log_probs),
        "top1_agreement": float((best == answers.top1).mean()),
        # beyond e^700 there is no float; 1e304 says the same
        "perplexity_ratio": math.exp(min(700.0, float(loss.mean()))),
    }


def _greedy(session: Session, slot: int, prompt: Sequence[int], tokens: int) -> list[int]:
    session.truncate(slot, 0)
    logits = session.prefill(slot, prompt)
    answer = [int(logits[-1].argmax())]
    while len(answer) < tokens:
        answer.append(int(session.decode([slot], [answer[-1]])[0].argmax()))
    return answer[:tokens]
