"""One answer from a backend that samples by itself: steered by stopping and going on."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict
from typing import TYPE_CHECKING

from edgekit.errors import InputError
from edgekit.runtime.sampling import Sampling
from edgekit.runtime.token_source import Step, TokenSource

if TYPE_CHECKING:
    from edgekit.backends.base import Logits, StreamingSession

_NO_LOGITS = "this engine's backend shows no logits"


class NoLogits:
    """A `Session` in form, for what asks one for its sizes: it holds no tokens, and whoever wants
    logits is told that there are none (`InputError`)."""

    def __init__(self, stream: StreamingSession, *, num_slots: int, vocab_size: int) -> None:
        self.num_slots = num_slots
        self.vocab_size = vocab_size
        self._stream = stream

    @property
    def context_tokens(self) -> int:
        """Tokens that a prompt and its answer can have together."""
        return self._stream.context_tokens

    fills_apart = False

    def length(self, slot: int) -> int:
        """None: what the backend caches is its own."""
        return 0

    def prefill(self, slot: int, token_ids: Sequence[int], *, num_logits: int = 1) -> Logits:
        """Raises `InputError`."""
        raise InputError(_NO_LOGITS, hint="build the engine for another `--backend`")

    def decode(self, slots: Sequence[int], token_ids: Sequence[int]) -> Logits:
        """Raises `InputError`."""
        raise InputError(_NO_LOGITS, hint="build the engine for another `--backend`")

    def truncate(self, slot: int, length: int) -> None:
        """Nothing is held."""

    def close(self) -> None:
        """Free the memory. Safe to call twice."""
        self._stream.close()


class StreamedGeneration(TokenSource):
    """What `Generation` is, over a `StreamingSession`.

    Tokens that a caller forces end the stream, and another one begins after them: the backend
    has their prefix in its cache or computes it again. Raises what `StreamingSession.stream`
    raises, and `InputError` for a constraint, which needs logits.
    """

    def __init__(
        self,
        session: StreamingSession,
        prompt_ids: Sequence[int],
        *,
        sampling: Sampling,
        max_new_tokens: int | None = None,
        stop_ids: Collection[int] = frozenset(),
    ) -> None:
        super().__init__(
            prompt_ids,
            context_tokens=session.context_tokens,
            max_new_tokens=max_new_tokens,
            stop_ids=stop_ids,
        )
        self._session = session
        self._sampling = sampling

    def __iter__(self) -> Iterator[Step]:
        while self.finish_reason is None and not self.is_stopped:
            if self.constraint is not None:
                raise InputError(
                    f"{_NO_LOGITS}, so its answers cannot be held to a structure",
                    hint="leave the structure out, or build the engine for another `--backend`",
                )
            yield from self._forced_steps() if self._forced else self._one_stream()

    def _forced_steps(self) -> Iterator[Step]:
        while self._forced and self.finish_reason is None:
            yield self._take(self._forced.popleft())

    def _one_stream(self) -> Iterator[Step]:
        """Steps until the backend ends the answer, or the caller steers."""
        stream = self._session.stream(
            self._context_ids,
            sampling=asdict(self._sampling),
            max_new_tokens=self.max_new_tokens - len(self.new_ids),
        )
        self.num_passes += 1
        with closing(stream):
            for token_id in stream:
                if token_id in self._stop_ids:
                    self.finish("stop")
                    return
                yield self._take(token_id)
                is_steered = self._forced or self.constraint is not None or self.is_stopped
                if self.finish_reason is not None or is_steered:
                    return
        self.finish("length")
