"""One answer of an engine within a structure, and how long its mask took."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from time import perf_counter_ns
from typing import Any

from edgekit.runtime.generate import Generation
from edgekit.runtime.load import LoadedEngine
from edgekit.runtime.sampling import Sampler, Sampling
from edgekit.runtime.slot import Slot
from edgekit.runtime.text_constraint import TextConstraint

_ASK = "Write one JSON value that fits this JSON schema. Answer with the JSON only.\n\n{}"
_SHOWN = 4000


@dataclass(frozen=True, kw_only=True)
class Filled:
    """An answer and its times."""

    text: str
    token_ids: list[int]
    is_complete: bool
    """It ended by itself, not at the limit."""
    mask_us: list[float]
    """Per token: mask and state of the constraint."""
    step_ms: float | None
    """Median time from one token to the next."""


class SteeredSampler(Sampler):
    """Samples among what a constraint allows."""

    def __init__(self, sampling: Sampling, constraint: TextConstraint) -> None:
        super().__init__(sampling)
        self.constraint = constraint
        self.mask_us: list[float] = []

    def sample(self, logits: Any, history: Sequence[int]) -> int:
        start_ns = perf_counter_ns()
        masked = self.constraint.mask(logits)
        masked_ns = perf_counter_ns()
        token_id = super().sample(masked, history)
        sampled_ns = perf_counter_ns()
        self.constraint.accept(token_id)
        self.mask_us.append((perf_counter_ns() - sampled_ns + masked_ns - start_ns) / 1e3)
        return token_id


class ReplayingSampler(Sampler):
    """Samples freely, and then says what was said before."""

    def __init__(self, sampling: Sampling, token_ids: Sequence[int]) -> None:
        super().__init__(sampling)
        self._script = iter(token_ids)

    def sample(self, logits: Any, history: Sequence[int]) -> int:
        super().sample(logits, history)
        return next(self._script)


def prompt_of(engine: LoadedEngine, schema: Any) -> list[int]:
    """The chat that asks for a value of a schema."""
    said = dict(schema) if isinstance(schema, dict) else schema
    if isinstance(said, dict):
        said.pop("$schema", None)
    text = _ASK.format(json.dumps(said, ensure_ascii=False)[:_SHOWN])
    rendered = engine.template.render([{"role": "user", "content": text}])
    return engine.tokenizer.encode_chat(rendered)


def generate(
    engine: LoadedEngine,
    slot: Slot,
    prompt_ids: Sequence[int],
    sampler: Sampler,
    *,
    max_new_tokens: int,
) -> Filled:
    """An answer of at most that many tokens."""
    generation = Generation(
        slot,
        prompt_ids,
        sampler=sampler,
        max_new_tokens=max_new_tokens,
        stop_ids=engine.tokenizer.stop_ids,
    )
    ids = [step.token_id for step in generation]
    steps_ns = [after - before for before, after in pairwise(generation.token_ns)]
    return Filled(
        text=engine.tokenizer.decode(ids),
        token_ids=ids,
        is_complete=generation.finish_reason == "stop",
        mask_us=sampler.mask_us if isinstance(sampler, SteeredSampler) else [],
        step_ms=median(steps_ns) / 1e6 if steps_ns else None,
    )
