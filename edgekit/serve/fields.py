"""Kinds of fields that requests of every interface have, and what they say together.

Values are taken as JSON has them: a number in quotes is no number. A union's branches carry names
in brackets, which `wire` leaves out of the place of an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool

from edgekit.models.convention import Think
from edgekit.runtime.chat_options import ChatOptions
from edgekit.serve.refusals import FieldError

T = TypeVar("T")
Many: TypeAlias = Annotated[list[T], Field(fail_fast=True)]
"""A list of a request. It ends at the first mistake: there is room for a million in a body."""
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
Number = Annotated[float, Field(allow_inf_nan=False)]
# 0 is equal to False, and not the same
No = Annotated[Literal[False], BeforeValidator(lambda value: value if value is False else None)]
Yes = Annotated[Literal[True], BeforeValidator(lambda value: value if value is True else None)]
"""What some clients always send, with the one value that changes nothing."""
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]
Budget = Annotated[int, Field(ge=-1, le=2**31 - 1)] | None
BUDGET_NAMES = ("thinking_budget", "thinking_budget_tokens", "thinking_token_budget",
                "reasoning_budget", "reasoning_budget_tokens")  # fmt: skip
_MOST_STOPS = 64
_LONGEST_STOP = 1024
"""Each token of the answer is compared with all of them, while the other answers wait."""
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed")


class Strict(BaseModel):
    """Unknown fields are errors."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Drawn(Strict):
    """How tokens are drawn. What is left out is as the model's card recommends."""

    seed: Annotated[int, Field(ge=0, lt=2**64)] | None = None
    temperature: Annotated[Number, Field(ge=0, le=100)] | None = None
    top_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    min_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[Number, Field(ge=0.01, le=100)] | None = None


class TemplateVariables(Strict):
    """What is passed on to the chat template."""

    enable_thinking: StrictBool | None = None
    thinking: StrictBool | None = None


class Reasoning(Strict):
    """Thinking, as OpenRouter and LM Studio spell it."""

    effort: Effort | None = None
    enabled: StrictBool | None = None
    max_tokens: Annotated[int, Field(ge=-1)] | None = None


class Thinks(Strict):
    """Thinking, in every spelling that clients of OpenAI's interfaces have for it."""

    reasoning: Reasoning | None = None
    enable_thinking: StrictBool | None = None
    chat_template_kwargs: TemplateVariables | None = None
    thinking_budget: Budget = None
    thinking_budget_tokens: Budget = None
    thinking_token_budget: Budget = None
    reasoning_budget: Budget = None
    reasoning_budget_tokens: Budget = None


def tag_of(value: Any) -> str:
    """The branch of a union that a value's `type` names; a value without one is a message."""
    kind = value.get("type", "message") if isinstance(value, dict) else "message"
    return f"[{kind}]"


def read_options(
    request: Drawn,
    *,
    think: Think | None,
    budget: int | None,
    stop: list[str] | str | None,
    max_new: int | None,
    limit: int | None,
    stop_field: str = "stop",
) -> ChatOptions:
    """What is set of sampling, stops and limits. Raises `FieldError`."""
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if "" in stops:
        raise FieldError(stop_field, f"`{stop_field}` must not hold an empty text")
    if len(stops) > _MOST_STOPS:
        raise FieldError(stop_field, f"`{stop_field}` has {len(stops)} texts, {_MOST_STOPS} may be")
    if longest := max((len(text) for text in stops if len(text) > _LONGEST_STOP), default=0):
        raise FieldError(
            stop_field, f"`{stop_field}` has a text of {longest} characters, {_LONGEST_STOP} may be"
        )
    given: dict[str, Any] = {name: getattr(request, name) for name in _SAMPLING}
    if limit is not None:
        max_new = min(max_new or limit, limit)
    return ChatOptions(**given, think=think, budget=budget, stop=stops, max_new_tokens=max_new)


def one_of(values: Mapping[str, Any]) -> Any:
    """The value that several names of one thing have; None: none has one. Raises `FieldError`."""
    given = {name: value for name, value in values.items() if value is not None}
    for name, value in given.items():
        first = next(iter(given))
        if value != given[first]:
            raise FieldError(name, f"`{name}` is {value}, `{first}` is {given[first]}: give one")
    return next(iter(given.values()), None)
