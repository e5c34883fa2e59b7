"""One prompt answered with and without drafts: counts, times, and why texts differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.runtime.draft import PromptLookup
from edgekit.runtime.generate import Generation
from edgekit.runtime.sampling import Sampler, Sampling
from edgekit.runtime.slot import Slot

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgekit.runtime.load import LoadedEngine

    Logits = NDArray[np.float32]

_GRAM = 8
_WIDTHS = (2, 5, 17)
"""Tokens per pass whose logits are compared with those of one token per pass."""


@dataclass(slots=True, kw_only=True)
class PromptResult:
    """What one prompt gave. Plain decoding and drafting see the same KV cache of the prompt."""

    kind: str
    number: int
    plain_ids: list[int]
    drafted_ids: list[int]
    plain_passes: int
    """After the prefill: one for each token but the first, and one that ends the answer."""
    num_passes: int
    """Of the drafted run."""
    drafted_tokens: int
    accepted_tokens: int
    copied: float
    """Share of the answer that stands in the prompt, in runs of eight tokens or more."""
    looped: float
    """Share of the answer that repeats the answer, likewise."""
    plain_ms: list[float] = field(default_factory=list)
    """Per token after the first; one entry for each round."""
    drafted_ms: list[float] = field(default_factory=list)
    differs_at: int | None = None
    margin: float | None = None
    """Between the two largest logits of plain decoding where the texts part."""
    typical_margin: float | None = None
    """The median of that margin over the answer."""
    rounding: float | None = None
    """Largest difference of a logit between passes of one token and of several."""

    @property
    def new_tokens(self) -> int:
        """That are timed: all but the first."""
        return max(0, len(self.drafted_ids) - 1)

    @property
    def is_near_tie(self) -> bool:
        """Whether rounding explains that the texts part: it moves both logits."""
        if self.margin is None or self.rounding is None:
            return False
        return self.margin <= 2 * self.rounding

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        names = [name for name in self.__slots__ if not name.endswith("_ids")]
        return {
            **{name: getattr(self, name) for name in names},
            "new_tokens": len(self.drafted_ids),
            "plain_new_tokens": len(self.plain_ids),
        }


class Asker:
    """Asks one engine, always on the same slot, greedily."""

    def __init__(self, engine: LoadedEngine, *, new_tokens: int, marginal_cost: float) -> None:
        self.engine = engine
        self.marginal_cost = marginal_cost
        """For which drafts are made."""
        self._slot = Slot(engine.session)
        self._new_tokens = new_tokens

    def prompt_ids(self, text: str) -> list[int]:
        """As a chat sends it."""
        messages = [{"role": "user", "content": text.strip()}]
        return self.engine.tokenizer.encode_chat(self.engine.template.render(messages))

    def warm_up(self) -> None:
        """One pass of every width that drafts can have."""
        for width in range(1, 18):
            self._slot.truncate(0)
            self.engine.session.prefill(0, [7] * width, num_logits=width)

    def compare(self, kind: str, number: int, text: str, *, rounds: int) -> PromptResult:
        """Answer in the order plain, drafted, drafted, plain, so that a drift hits both alike."""
        prompt_ids = self.prompt_ids(text)
        margins: list[float] = []
        plain = self._answer(prompt_ids, drafts=False, sampler=_MarginSampler(margins))
        drafted = self._answer(prompt_ids, drafts=True)
        result = PromptResult(
            kind=kind,
            number=number,
            plain_ids=plain.new_ids,
            drafted_ids=drafted.new_ids,
            plain_passes=plain.num_passes,
            num_passes=drafted.num_passes,
            drafted_tokens=drafted.drafted_tokens,
            accepted_tokens=drafted.accepted_tokens,
            copied=share_within(plain.new_ids, prompt_ids),
            looped=share_repeated(plain.new_ids),
        )
        for _ in range(rounds):
            times: dict[bool, list[float]] = {False: [], True: []}
            for drafts in (False, True, True, False):
                speed = self._answer(prompt_ids, drafts=drafts).decode_tokens_per_s
                times[drafts] += [1e3 / speed] if speed else []
            if times[False] and times[True]:
                result.plain_ms.append(sum(times[False]) / len(times[False]))
                result.drafted_ms.append(sum(times[True]) / len(times[True]))
        self._explain(result, prompt_ids, margins)
        return result

    def _answer(
        self, prompt_ids: Sequence[int], *, drafts: bool, sampler: Sampler | None = None
    ) -> Generation:
        generation = Generation(
            self._slot,
            prompt_ids,
            sampler=sampler or Sampler(Sampling()),
            max_new_tokens=self._new_tokens,
            stop_ids=self.engine.tokenizer.stop_ids,
            drafter=PromptLookup(marginal_cost=self.marginal_cost) if drafts else None,
        )
        for _ in generation:
            pass
        return generation

    def _explain(
        self, result: PromptResult, prompt_ids: Sequence[int], margins: Sequence[float]
    ) -> None:
        result.rounding = self._rounding(prompt_ids, result.plain_ids)
        pairs = zip([*result.plain_ids, None], [*result.drafted_ids, None], strict=False)
        differing = (i for i, (ours, theirs) in enumerate(pairs) if ours != theirs)
        result.typical_margin = middle(margins)
        result.differs_at = next(differing, None)
        if result.differs_at is not None:
            result.margin = margins[result.differs_at]

    def _rounding(self, prompt_ids: Sequence[int], said: Sequence[int]) -> float | None:
        """Over all positions of the answer, with the keys and values of such passes before."""
        if len(said) < 2:
            return None
        alone = self._logits(prompt_ids, said, 1)
        return max(
            float(np.abs(self._logits(prompt_ids, said, width) - alone).max())
            for width in _WIDTHS
            if width <= len(said)
        )

    def _logits(self, prompt_ids: Sequence[int], said: Sequence[int], width: int) -> Logits:
        slot = self._slot
        held = min(slot.common_prefix(prompt_ids), len(prompt_ids))
        slot.truncate(held)
        if held < len(prompt_ids):
            slot.prefill(prompt_ids[held:])
        parts = [slot.extend(said[i : i + width]).copy() for i in range(0, len(said), width)]
        return np.concatenate(parts)


class _MarginSampler(Sampler):
    """Greedy, and notes the difference of the two largest logits."""

    def __init__(self, margins: list[float]) -> None:
        super().__init__(Sampling())
        self._margins = margins

    def sample(self, logits: Logits, history: Sequence[int]) -> int:
        second, first = np.partition(logits, -2)[-2:]
        self._margins.append(float(first - second))
        return super().sample(logits, history)


def share_within(ids: Sequence[int], source: Sequence[int]) -> float:
    """Share of `ids` in runs of eight that stand in `source`."""
    known = set(_grams(source))
    return _covered(ids, lambda gram: gram in known)


def share_repeated(ids: Sequence[int]) -> float:
    """Share of `ids` in runs of eight that came before in `ids`."""
    seen: set[tuple[int, ...]] = set()

    def is_repeated(gram: tuple[int, ...]) -> bool:
        before = gram in seen
        seen.add(gram)
        return before

    return _covered(ids, is_repeated)


def _covered(ids: Sequence[int], wanted: Callable[[tuple[int, ...]], bool]) -> float:
    covered: set[int] = set()
    for start, gram in enumerate(_grams(ids)):
        if wanted(gram):
            covered.update(range(start, start + _GRAM))
    return len(covered) / len(ids) if ids else 0.0


def _grams(ids: Sequence[int]) -> list[tuple[int, ...]]:
    return [tuple(ids[i : i + _GRAM]) for i in range(len(ids) - _GRAM + 1)]


def middle(values: Sequence[float]) -> float | None:
    """The median; None of nothing."""
    return median(values) if values else None
