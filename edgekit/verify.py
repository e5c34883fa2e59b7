"""Does the engine answer as the checkpoint does? Measured before a manifest is written.

The reference answers were recorded while the model was quantized; the engine is asked the same
held-out prompts here, so that this needs neither torch nor the checkpoint and runs on the device
as well. Two comparisons: with the original, which says how good the quantized engine is, and with
the model as ModelOpt simulates it, which must agree closely: what differs there is not
quantization but a mistake in packing, scales or the graph.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from edgekit.errors import QualityError
from edgekit.precision import find_precision
from edgekit.progress import Progress, no_progress
from edgekit.reference import Reference, ask, mean_kl

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgekit.backends import Session

_MAX_KL_FROM_SIMULATION = 0.02
"""Kernels round activations to int8 per group, which ModelOpt does not simulate: 0.003 nats on
SmolLM2-135M. A wrong nibble order or scale gives whole nats."""
_MAX_KL_FROM_STATIC_SIMULATION = 0.25
"""W8A8: ModelOpt simulates one static scale per layer, the kernels take one per call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """The figures that `verify` puts into the manifest. Divergences in nats per token."""

    positions: int
    mean_kl: float
    """From the original checkpoint's distribution to the engine's."""
    mean_kl_simulated: float
    """From ModelOpt's simulated model to the engine."""
    top1_agreement: float
    """Share of positions where engine and original find the same token likeliest."""
    perplexity_ratio: float
    """Engine to original, on the held-out exchanges."""
    known_answer_ids: tuple[int, ...]
    """The engine's greedy answer to the known prompt."""
    known_answer_agreement: int
    """Leading tokens that equal the original's answer."""
    known_answer: str = ""
    """The same as text."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types for the manifest."""
        return {**asdict(self), "known_answer_ids": list(self.known_answer_ids)}


def measure_quality(
    session: Session, reference: Reference, *, slot: int = 0, report: Progress = no_progress
) -> Quality:
    """Ask the engine the reference's prompts. Leaves `slot` empty."""
    import numpy as np

    done = 0

    def logits_of(ids: Sequence[int], count: int) -> NDArray[np.float32]:
        nonlocal done
        report("verify", done, len(reference.prompts))
        done += 1
        session.truncate(slot, 0)
        return session.prefill(slot, ids, num_logits=count)

    answers = ask(
        logits_of, reference.prompts, first_position=reference.first_position,
        top_ids=reference.top_ids,
    )
    rows = np.arange(len(answers.top1))
    best = reference.top_ids[rows, reference.original.argmax(axis=1)]
    known = _greedy(session, slot, reference.known_prompt, len(reference.known_answer))
    session.truncate(slot, 0)
    report("verify", len(reference.prompts), len(reference.prompts))
    same = [a == b for a, b in zip(known, reference.known_answer, strict=True)]
    return Quality(
        positions=len(rows),
        mean_kl=mean_kl(reference.original, answers.log_probs),
        mean_kl_simulated=mean_kl(reference.simulated, answers.log_probs),
        top1_agreement=float((best == answers.top1).mean()),
        perplexity_ratio=math.exp(float((reference.original_next - answers.next).mean())),
        known_answer_ids=tuple(known),
        known_answer_agreement=same.index(False) if False in same else len(same),
    )


def require_quality(quality: Quality, precision: str) -> None:
    """Raises `QualityError` naming the first figure that is beyond its limit."""
    row = find_precision(precision)
    simulation_limit = (
        _MAX_KL_FROM_STATIC_SIMULATION if row.activation_bits < 16 else _MAX_KL_FROM_SIMULATION
    )
    for name, value, limit in (
        ("mean KL divergence from ModelOpt's simulation", quality.mean_kl_simulated,
         simulation_limit),
        ("mean KL divergence from the checkpoint", quality.mean_kl, row.max_mean_kl),
        ("perplexity ratio to the checkpoint", quality.perplexity_ratio,
         row.max_perplexity_ratio),
    ):
        # NaN compares false with everything: ask for what must hold
        if not value <= limit:
            raise QualityError(
                f"{precision} engine failed its check: {name} is {value:.4f}, limit {limit:g}",
                hint="try `--precision int8`, or calibrate on more of your own text with "
                "`--calibration FILE --calibration-tokens 4096`",
            )


def _greedy(session: Session, slot: int, prompt: Sequence[int], tokens: int) -> list[int]:
    session.truncate(slot, 0)
    logits = session.prefill(slot, prompt)
    answer = [int(logits[-1].argmax())]
    while len(answer) < tokens:
        answer.append(int(session.decode([slot], [answer[-1]])[0].argmax()))
    return answer[:tokens]
