"""One answer that is wanted, on its way from HTTP to the engine and back.

    HTTP (event loop)                     scheduler (its own threads)
    ─────────────────                     ───────────────────────────
    Job ──── submit ────────────────────► queue ─► slot ─► Answer
    Job.cancel ── a flag, read between two passes ──►
    events ◄──── deliver(batch) ───────── Made, Made, …, then one of Ended, Failed

A job gets any number of `Made` and then exactly one `Ended` or `Failed`, whatever happens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from time import monotonic
from typing import Literal, TypeAlias

from edgekit.errors import EdgekitError
from edgekit.runtime.answer import Reading
from edgekit.runtime.piece import Piece
from edgekit.runtime.sampling import Sampling
from edgekit.runtime.token_source import Step

EndReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What the engine is asked: nothing in here changes."""

    prompt_ids: tuple[int, ...]
    sampling: Sampling
    reading: Reading
    max_new_tokens: int | None = None
    """None: the room left in the context."""
    bias: Mapping[int, float] = field(default_factory=dict)
    """Added to the logits of these ids."""
    with_logprobs: bool = False
    top_logprobs: int = 0
    one_call: bool = False
    """The answer ends after its first tool call."""


@dataclass(frozen=True, slots=True)
class Made:
    """A part of the answer: what became certain, and the tokens taken since the last part."""

    pieces: list[Piece]
    steps: list[Step]
    said: list[Step] = field(default_factory=list)
    """Those of `steps` that are no thinking, where log-probabilities are wanted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """The answer is over. Counts are tokens, times milliseconds from `submit`."""

    reason: EndReason
    prompt_tokens: int
    cached_tokens: int
    new_tokens: int
    thinking_tokens: int
    queued_ms: float
    ttft_ms: float | None
    """From `submit` to the first token, waiting included."""
    prefill_tokens_per_s: float | None
    decode_tokens_per_s: float | None
    was_cut: bool
    """Thinking did not end by itself."""
    stopped_by: str | None = None
    """The stop string of the request that ended it."""
    itl_ms: Sequence[float] = ()
    """The gaps between its tokens."""


@dataclass(frozen=True, slots=True)
class Failed:
    """There is no (whole) answer."""

    error: EdgekitError


Event: TypeAlias = "Made | Ended | Failed"

_numbers = count()


class Job:
    """`work` for one `client` (queues are fair between clients), until `deadline`, if any.

    `deadline` is a reading of `time.monotonic`.
    """

    def __init__(self, work: Work, *, client: str = "", deadline: float | None = None) -> None:
        self.number = next(_numbers)
        self.work = work
        self.client = client
        self.deadline = deadline
        self.submitted = monotonic()
        self.is_cancelled = False

    def cancel(self) -> None:
        """Nobody waits for it any more. Any thread, any number of times."""
        self.is_cancelled = True

    def is_late(self, now: float) -> bool:
        """Its deadline has passed."""
        return self.deadline is not None and now >= self.deadline
