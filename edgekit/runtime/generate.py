"""The one loop that makes tokens, for `chat`, `serve` and `bench`.

A `Generation` is iterated by whoever serves one slot. A scheduler with many slots drives the
same object by hand, so that all slots share one pass over the weights:

    step = generation.start()                           # prefill
    while step and not generation.finish_reason:
        logits = decode_slots([generation.slot, …], [step.token_id, …])
        step = generation.advance(logits[0])
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter_ns
from typing import TYPE_CHECKING, Literal

import numpy as np

from edgekit.errors import InputError
from edgekit.runtime.sampling import Sampler
from edgekit.runtime.slot import Slot

if TYPE_CHECKING:
    from edgekit.backends.base import Logits

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One new token."""

    token_id: int
    logprob: float | None = None
    """Natural log of the model's own probability, before any filter; only where asked for."""


class Generation:
    """One answer: an iterator of `Step`, and what is known about it during and after.

    The longest prefix of `prompt_ids` that `slot` holds already is reused, unless told not to;
    `max_new_tokens=None` takes the room left; `chunk_tokens` cuts the prefill (`Slot.prefill`).
    Ends at a stop id, which is counted nowhere, or at the token limit. The last token of an
    answer that ended at the limit is not in the KV cache. Closing the iterator early is safe.

    Raises `InputError` at once when the prompt is empty or leaves no room; while it is iterated,
    what `Session` and `Sampler.sample` raise.
    """

    def __init__(
        self,
        slot: Slot,
        prompt_ids: Sequence[int],
        *,
        sampler: Sampler,
        max_new_tokens: int | None = None,
        stop_ids: Collection[int] = frozenset(),
        reuse_prefix: bool = True,
        chunk_tokens: int | None = None,
        with_logprobs: bool = False,
    ) -> None:
        self.slot = slot
        self.max_new_tokens = _token_limit(slot.context_tokens, prompt_ids, max_new_tokens)
        """What was asked for, clipped to the room left in the context."""
        self.finish_reason: FinishReason | None = None
        """None until the answer ended, and for good when it was interrupted."""
        self.prompt_tokens = len(prompt_ids)
        self.cached_tokens = 0
        """Tokens of the prompt that were in the KV cache already."""
        self.new_ids: list[int] = []
        self.sent_ns = perf_counter_ns()
        """When the request came; `token_ns` are readings of the same clock."""
        self.token_ns: list[int] = []
        self._context_ids = list(prompt_ids)
        self._sampler = sampler
        self._stop_ids = frozenset(stop_ids)
        self._reuse_prefix = reuse_prefix
        self._chunk_tokens = chunk_tokens
        self._with_logprobs = with_logprobs

    def __iter__(self) -> Iterator[Step]:
        step = self.start()
        while step is not None:
            yield step
            if self.finish_reason is not None:
                return
            step = self.advance(self.slot.decode(step.token_id))

    def start(self) -> Step | None:
        """Prefill what the slot does not hold yet, and the first token.

        At least one token is prefilled, because only that gives logits.
        """
        prompt = self._context_ids[: self.prompt_tokens]
        held = self.slot.common_prefix(prompt) if self._reuse_prefix else 0
        self.cached_tokens = min(held, self.prompt_tokens - 1)
        self.slot.truncate(self.cached_tokens)
        rest = prompt[self.cached_tokens :]
        return self.advance(self.slot.prefill(rest, chunk_tokens=self._chunk_tokens))

    def advance(self, logits: Logits) -> Step | None:
        """Choose a token from logits `[V]`; None when it ends the answer.

        Before the next call the token must have been appended to the slot.
        """
        token_id = self._sampler.sample(logits, self._context_ids)
        if token_id in self._stop_ids:
            self.finish("stop")
            return None
        self.token_ns.append(perf_counter_ns())
        self.new_ids.append(token_id)
        self._context_ids.append(token_id)
        if len(self.new_ids) >= self.max_new_tokens:
            self.finish("length")
        logprob = _logprob(logits, token_id) if self._with_logprobs else None
        return Step(token_id=token_id, logprob=logprob)

    def finish(self, reason: FinishReason) -> None:
        """End the answer; called from outside when its text holds a stop string."""
        self.finish_reason = reason

    @property
    def ttft_ms(self) -> float | None:
        """Time to first token: prefill and the first sample."""
        return (self.token_ns[0] - self.sent_ns) / 1e6 if self.token_ns else None

    @property
    def prefill_tokens_per_s(self) -> float | None:
        """Prompt tokens that were not cached, per second until the first token."""
        ttft_ms = self.ttft_ms
        return (self.prompt_tokens - self.cached_tokens) / ttft_ms * 1e3 if ttft_ms else None

    @property
    def decode_tokens_per_s(self) -> float | None:
        """The n-1 tokens after the first, per second since the first; None for n < 2."""
        if len(self.token_ns) < 2:
            return None
        spent_ns = self.token_ns[-1] - self.token_ns[0]
        return (len(self.token_ns) - 1) / spent_ns * 1e9 if spent_ns else None


def _token_limit(context_tokens: int, prompt_ids: Sequence[int], max_new_tokens: int | None) -> int:
    if not prompt_ids:
        raise InputError("the prompt has no tokens")
    if max_new_tokens is not None and max_new_tokens < 1:
        raise InputError(f"max_new_tokens must be at least 1: {max_new_tokens}")
    room = context_tokens - len(prompt_ids)
    if room < 1:
        raise InputError(
            f"the prompt has {len(prompt_ids)} tokens, the context holds {context_tokens} "
            "with at least one for the answer",
            hint="shorten the prompt, or build the engine with a larger `--context`",
        )
    return room if max_new_tokens is None else min(room, max_new_tokens)


def _logprob(logits: Logits, token_id: int) -> float:
    """log softmax at one place, the maximum taken out first."""
    shifted = logits.astype(np.float64) - float(logits.max())
    return float(shifted[token_id] - np.log(np.exp(shifted).sum()))
