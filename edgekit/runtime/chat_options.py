"""What the user asks of a conversation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from edgekit.errors import InputError
from edgekit.models.convention import Think
from edgekit.runtime.budget import check_budget
from edgekit.runtime.sampling import Sampling
from edgekit.runtime.structure import Structure


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatOptions:
    """What the user set; None leaves it to the engine. Raises `InputError` on a bad value."""

    think: Think | None = None
    budget: int | None = None
    """Tokens of thinking: -1 no cap, 0 none."""
    system: str | None = None
    stop: tuple[str, ...] = ()
    max_new_tokens: int | None = None
    """None: the room left in the context."""
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    lookup: bool = True
    """Guess the next tokens from what the context holds already."""
    structure: Structure | None = None
    """What every answer must fit."""

    def __post_init__(self) -> None:
        self.sampling(Sampling())  # so that a bad value is known before an engine is loaded
        if "" in self.stop:
            raise InputError("a stop string must not be empty", hint="leave out `--stop ''`")
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise InputError(
                f"max_new_tokens must be at least 1: {self.max_new_tokens}",
                hint="leave it out for the room left in the context",
            )
        if self.budget is not None and check_budget(self.budget) == 0 and self.think == "on":
            raise InputError(
                "thinking with a budget of 0", hint="leave out `--think on`, or the budget"
            )
        if self.budget is not None and self.budget != 0 and self.think == "off":
            raise InputError(
                f"a thinking budget of {self.budget} without thinking",
                hint="leave out `--think off`, or the budget",
            )

    def sampling(self, recommended: Sampling) -> Sampling:
        """The recommended sampling with what the user set in its place."""
        names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed")
        given: dict[str, Any] = {n: getattr(self, n) for n in names if getattr(self, n) is not None}
        return replace(recommended, **given)
