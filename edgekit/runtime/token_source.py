"""What is known of one answer's tokens, whoever makes them: counts, times, how it ended."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter_ns
from typing import Literal

from edgekit.errors import InputError
from edgekit.runtime.steer import Constraint

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One new token."""

    token_id: int
    logprob: float | None = None
    """Natural log of the model's own probability, before any filter; only where asked for."""
    top: tuple[tuple[int, float], ...] = ()
    """The likeliest ids here and their `logprob`, the best one first; only where asked for."""


class TokenSource(ABC):
    """One answer: an iterator of `Step`, and what is known about it during and after.

    Between two steps the caller may `force` tokens, `finish`, or set `constraint`. Closing the
    iterator early is safe. Raises `InputError` when the prompt is empty or leaves no room.
    """

    def __init__(
        self,
        prompt_ids: Sequence[int],
        *,
        context_tokens: int,
        max_new_tokens: int | None,
        stop_ids: Collection[int],
    ) -> None:
        self.max_new_tokens = _token_limit(context_tokens, prompt_ids, max_new_tokens)
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
        self.constraint: Constraint | None = None
        """What the tokens from now on must fit; forced ones are not checked."""
        self.num_passes = 0
        """Passes through the engine after the prefill, each of one token or more."""
        self.drafted_tokens = 0
        """Tokens that a drafter guessed; `accepted_tokens` of them came true."""
        self.accepted_tokens = 0
        self._context_ids = list(prompt_ids)
        self._stop_ids = frozenset(stop_ids)
        self.is_stopped = False
        """Another thread wants no more tokens: see `stop`."""
        self._forced: deque[int] = deque()

    @abstractmethod
    def __iter__(self) -> Iterator[Step]:
        """Tokens as they come."""

    def force(self, token_ids: Sequence[int]) -> None:
        """The answer goes on with these tokens, whatever the model would say."""
        self._forced.extend(token_ids)

    @property
    def room(self) -> int:
        """Tokens that may still be chosen: those left, but for the forced ones among them."""
        return max(0, self.max_new_tokens - len(self.new_ids) - len(self._forced))

    def stop(self) -> None:
        """End after the next token, or within the prefill; `finish_reason` stays None."""
        self.is_stopped = True

    def finish(self, reason: FinishReason) -> None:
        """End the answer; called from outside when its text holds a stop string."""
        self.finish_reason = reason

    def _take(
        self,
        token_id: int,
        logprob: float | None = None,
        top: tuple[tuple[int, float], ...] = (),
    ) -> Step:
        """Note a new token; the last one that fits ends the answer."""
        self.token_ns.append(perf_counter_ns())
        self.new_ids.append(token_id)
        self._context_ids.append(token_id)
        if len(self.new_ids) >= self.max_new_tokens:
            self.finish("length")
        return Step(token_id=token_id, logprob=logprob, top=top)

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
        raise InputError("the prompt has no tokens", hint="write something to answer")
    if max_new_tokens is not None and max_new_tokens < 1:
        raise InputError(
            f"max_new_tokens must be at least 1: {max_new_tokens}",
            hint="leave it out for the room left in the context",
        )
    room = context_tokens - len(prompt_ids)
    if room < 1:
        raise InputError(
            f"the prompt has {len(prompt_ids)} tokens, the context holds {context_tokens} "
            "with at least one for the answer",
            hint="shorten the prompt, or build the engine with a larger `--context`",
        )
    return room if max_new_tokens is None else min(room, max_new_tokens)
