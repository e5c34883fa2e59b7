"""The one loop that makes tokens, for `chat`, `serve` and `bench`.

A `Generation` is iterated by whoever serves one slot. A scheduler with many slots drives the
same object by hand, so that all slots share one pass over the weights:

    while (next_id := generation.fill(max_tokens)) is None:
        …                                               # the prompt, but for its last token
    while next_id is not None and not generation.finish_reason:
        if known := generation.known_next():            # goes through the engine by itself
            step = yield from generation.run_known(next_id, known)
        else:
            logits = decode_slots([generation.slot, …], [next_id, …])
            step = generation.advance(logits[0])
        next_id = step and step.token_id

What comes next is known before it is sampled where a caller forces tokens (`force`), a constraint
leaves one choice, or a drafter guesses. Such tokens go through the engine in one pass with the
last one, and each row of logits is then sampled from in order: a guess stays exactly where it is
what sampling gives anyway. So the answer has the same distribution as without, and with the same
seed the same tokens, as far as the engine's logits do not depend on how many tokens share a pass.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgekit.runtime.sampling import Sampler
from edgekit.runtime.slot import Slot
from edgekit.runtime.steer import Drafter
from edgekit.runtime.token_source import Step, TokenSource

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgekit.backends.base import Logits


@dataclass(frozen=True, slots=True)
class Known:
    """Tokens to send along with the last one."""

    token_ids: list[int]
    num_guessed: int = 0
    """All of them, where a drafter guessed them, or none."""


class Generation(TokenSource):
    """One answer from one slot.

    The longest prefix of `prompt_ids` that `slot` holds already is reused, unless told not to;
    `max_new_tokens=None` takes the room left; `chunk_tokens` cuts the prefill, so that `stop` need
    not wait for a long one. Ends at a stop id, which is counted nowhere, or at the token limit.
    The last token of an answer that ended at the limit is not in the KV cache. While it is
    iterated it raises what `Session` and `Sampler.sample` raise.
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
        top_logprobs: int = 0,
        drafter: Drafter | None = None,
    ) -> None:
        super().__init__(
            prompt_ids,
            context_tokens=slot.context_tokens,
            max_new_tokens=max_new_tokens,
            stop_ids=stop_ids,
        )
        self.slot = slot
        self._sampler = sampler
        self._reuse_prefix = reuse_prefix
        self._chunk_tokens = chunk_tokens
        self._with_logprobs = with_logprobs or top_logprobs > 0
        self._top_logprobs = top_logprobs
        self._drafter = drafter
        self._num_prefilled: int | None = None
        """Tokens of the prompt in the slot; None before the first pass."""

    def __iter__(self) -> Iterator[Step]:
        step = self.start()
        while step is not None:
            yield step
            if self.finish_reason is not None or self.is_stopped:
                return
            if known := self.known_next():
                step = yield from self.run_known(step.token_id, known)
            else:
                step = self.advance(self._decode(step.token_id))

    def _decode(self, token_id: int) -> Logits:
        self.num_passes += 1
        return self.slot.decode(token_id)

    def run_known(self, last_id: int, known: Known) -> Generator[Step, None, Step | None]:
        """Send the last token and those that may follow in one pass.

        Yields all steps of them but the one that is returned, after which the answer goes on; None:
        it has ended. The slot is left with the tokens that were taken, also when the caller stops
        in between.
        """
        token_ids = [last_id, *known.token_ids]
        num_guessed = known.num_guessed
        before = self.slot.length
        rows = self.slot.extend(token_ids)
        self.num_passes += 1
        num_taken = num_right = 0
        try:
            for row, guess in zip(rows, [*token_ids[1:], None], strict=True):
                num_taken += 1
                step = self.advance(row)
                num_right += step is not None and step.token_id == guess
                if step is None or step.token_id != guess or self.finish_reason is not None:
                    return step
                yield step
                if self.finish_reason is not None:
                    return None
            raise AssertionError("the last row has no guess to agree with")
        finally:
            self.slot.truncate(before + num_taken)
            if num_guessed and self._drafter is not None:
                self.drafted_tokens += num_guessed
                self.accepted_tokens += num_right
                self._drafter.observe(num_guessed, num_right)

    def known_next(self, *, with_guesses: bool = True) -> Known | None:
        """What may follow the last token, before the engine has seen it; None: nothing is known.

        Without guesses only what must follow.
        """
        # one token is left for the row after the last of these
        room = self.max_new_tokens - len(self.new_ids) - 1
        if room < 1:
            return None
        if self._forced:
            return Known(list(self._forced)[:room])
        if self.constraint is not None and (only := self.constraint.forced()[:room]):
            return Known(only)
        if self._drafter is None or not with_guesses:
            return None
        guess = self._drafter.propose(self._context_ids, room)
        return Known(guess, num_guessed=len(guess)) if guess else None

    def start(self) -> Step | None:
        """Prefill what the slot does not hold yet, and the first token."""
        step = None
        while not self.is_prefilled:
            if self.is_stopped:
                return None
            step = self.prefill(self._chunk_tokens)
        return step

    @property
    def is_prefilled(self) -> bool:
        """The whole prompt has gone through the engine."""
        return self._num_prefilled == self.prompt_tokens

    @property
    def left_to_prefill(self) -> int:
        """Tokens of the prompt that have not gone through the engine; all of them at first."""
        return self.prompt_tokens - (self._num_prefilled or 0)

    def prefill(self, max_tokens: int | None = None) -> Step | None:
        """Send the next `max_tokens` of the prompt, or all; the last ones give the first step.

        None: there are more, or the answer ended before its first token. What the slot holds
        already is not sent, but one token at least, because only that gives logits.
        """
        first = self._reuse()
        if max_tokens is not None and (end := first + max_tokens) < self.prompt_tokens:
            self.slot.fill(self._context_ids[first:end])
            self._num_prefilled = end
            return None
        logits = self.slot.prefill(self._context_ids[first : self.prompt_tokens])
        self._num_prefilled = self.prompt_tokens
        return self.advance(logits)

    def fill(self, max_tokens: int) -> int | None:
        """Send the next `max_tokens` of the prompt, but never the last one.

        That is returned when all before it are in the slot: it goes through the engine together
        with the last tokens of other answers. None: there are more.
        """
        first, last = self._reuse(), self.prompt_tokens - 1
        end = min(first + max_tokens, last)
        if end > first:
            self.slot.fill(self._context_ids[first:end])
            self._num_prefilled = end
        return self._context_ids[last] if end == last else None

    def _reuse(self) -> int:
        """How much of the prompt is in the slot, which keeps what it held of it at first."""
        if self._num_prefilled is None:
            prompt = self._context_ids[: self.prompt_tokens]
            held = self.slot.common_prefix(prompt) if self._reuse_prefix else 0
            self.cached_tokens = min(held, self.prompt_tokens - 1)
            self.slot.truncate(self.cached_tokens)
            self._num_prefilled = self.cached_tokens
        return self._num_prefilled

    def advance(self, logits: Logits) -> Step | None:
        """Choose a token from logits `[V]`, or take a forced one; None when it ends the answer.

        Before the next call the token must have been appended to the slot.
        """
        if self._forced:
            token_id = self._forced.popleft()
        else:
            token_id = self._choose(logits)
            if token_id in self._stop_ids:
                self.finish("stop")
                return None
        if not self._with_logprobs:
            return self._take(token_id)
        logprobs = _logprobs(logits)
        return self._take(
            token_id, float(logprobs[token_id]), _likeliest(logprobs, self._top_logprobs)
        )

    def _choose(self, logits: Logits) -> int:
        if self.constraint is None:
            return self._sampler.sample(logits, self._context_ids)
        token_id = self._sampler.sample(self.constraint.mask(logits), self._context_ids)
        self.constraint.accept(token_id)
        return token_id


def _logprobs(logits: Logits) -> NDArray[np.float64]:
    """log softmax, the maximum taken out first."""
    shifted = logits.astype(np.float64) - float(logits.max())
    logprobs: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum())
    return logprobs


def _likeliest(logprobs: NDArray[np.float64], count: int) -> tuple[tuple[int, float], ...]:
    """The `count` likeliest ids with their logprobs, the best one first."""
    if count == 0:
        return ()
    count = min(count, len(logprobs))
    best = np.argpartition(logprobs, len(logprobs) - count)[-count:]
    return tuple((int(i), float(logprobs[i])) for i in best[np.argsort(-logprobs[best])])
