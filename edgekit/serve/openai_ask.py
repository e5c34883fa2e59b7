"""OpenAI's requests as an `Ask`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgekit.errors import InputError
from edgekit.models.convention import Think
from edgekit.runtime.chat_options import ChatOptions
from edgekit.runtime.prompt import Message
from edgekit.runtime.structure import Structure
from edgekit.runtime.tools import Tool, read_tools
from edgekit.serve.ask import EFFORT_BUDGETS, Ask, FieldError
from edgekit.serve.openai_types import (
    BUDGET_NAMES,
    ChatRequest,
    CompletionRequest,
    JsonObjectFormat,
    JsonSchemaFormat,
    NamedChoice,
    ResponseFormat,
    Sampled,
)

_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed")


def chat_ask(request: ChatRequest, *, limit: int | None) -> Ask:
    """Raises `FieldError`. `limit`: new tokens that an answer may have at most."""
    think, think_field, budget = read_thinking(request)
    tools = _read_tools(request)
    choice = _read_choice(request, tools)
    structure = read_format(request.response_format)
    if structure is not None and tools and choice != "none":
        raise FieldError(
            "response_format",
            "`response_format` and `tools` together are not supported: an answer of that form "
            "cannot be a call",
        )
    if request.top_logprobs is not None and not request.logprobs:
        raise FieldError("top_logprobs", "`top_logprobs` needs `logprobs`")
    max_new = _same(
        {
            "max_tokens": request.max_tokens,
            "max_completion_tokens": request.max_completion_tokens,
        }
    )
    return Ask(
        messages=[to_message(m.model_dump(exclude_none=True)) for m in request.messages],
        tools=tools,
        tool_choice=choice,
        one_call=not request.parallel_tool_calls,
        structure=structure,
        options=read_options(request, think=think, budget=budget, max_new=max_new, limit=limit),
        think_field=think_field,
        bias=_read_bias(request.logit_bias),
        with_logprobs=request.logprobs,
        top_logprobs=request.top_logprobs or 0,
        n=request.n,
    )


def completion_ask(request: CompletionRequest, *, limit: int | None) -> Ask:
    """Raises `FieldError`. The prompt is another matter."""
    return Ask(
        messages=[],
        options=read_options(
            request, think=None, budget=None, max_new=request.max_tokens or 16, limit=limit
        ),
        bias=_read_bias(request.logit_bias),
        with_logprobs=request.logprobs is not None,
        top_logprobs=request.logprobs or 0,
        n=request.n,
    )


def read_options(
    request: Sampled,
    *,
    think: Think | None,
    budget: int | None,
    max_new: int | None,
    limit: int | None,
) -> ChatOptions:
    """What is set of sampling, stops and limits."""
    stop = request.stop or ()
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    if "" in stops:
        raise FieldError("stop", "`stop` must not hold an empty text")
    given: dict[str, Any] = {name: getattr(request, name) for name in _SAMPLING}
    if limit is not None:
        max_new = min(max_new or limit, limit)
    return ChatOptions(**given, think=think, budget=budget, stop=stops, max_new_tokens=max_new)


def read_thinking(request: ChatRequest) -> tuple[Think | None, str, int | None]:
    """What the request says of thinking: the mode, the field that said it, and the budget.

    Raises `FieldError` where two fields contradict each other.
    """
    modes: dict[str, bool | None] = {"enable_thinking": request.enable_thinking}
    budgets: dict[str, int | None] = {name: getattr(request, name) for name in BUDGET_NAMES}
    efforts = {"reasoning_effort": request.reasoning_effort}
    if request.chat_template_kwargs is not None:
        variables = request.chat_template_kwargs
        modes["chat_template_kwargs.enable_thinking"] = variables.enable_thinking
        modes["chat_template_kwargs.thinking"] = variables.thinking
    if request.reasoning is not None:
        modes["reasoning.enabled"] = request.reasoning.enabled
        budgets["reasoning.max_tokens"] = request.reasoning.max_tokens
        efforts["reasoning.effort"] = request.reasoning.effort
    effort, budget, mode = _same(efforts), _same(budgets), _same(modes)
    name = _first_set(modes) or _first_set(budgets) or _first_set(efforts) or "enable_thinking"
    if effort is not None:
        if mode is not None and mode != (effort != "none"):
            raise FieldError(name, f"`{name}` contradicts `{_first_set(efforts)}`: {effort}")
        mode = effort != "none"
        budget = EFFORT_BUDGETS[effort] if budget is None else budget
    if budget is not None:
        if mode is not None and mode != (budget != 0):
            raise FieldError(name, f"`{name}` contradicts a thinking budget of {budget}")
        mode = budget != 0
    if mode is None:
        return None, name, None
    return ("on" if mode else "off"), name, (budget if mode else None)


def _same(values: Mapping[str, Any]) -> Any:
    """The value that several names of one thing have; None: none has one. Raises `FieldError`."""
    given = {name: value for name, value in values.items() if value is not None}
    for name, value in given.items():
        first = next(iter(given))
        if value != given[first]:
            raise FieldError(name, f"`{name}` is {value}, `{first}` is {given[first]}: give one")
    return next(iter(given.values()), None)


def _first_set(values: Mapping[str, Any]) -> str | None:
    return next((name for name, value in values.items() if value is not None), None)


def _read_tools(request: ChatRequest) -> tuple[Tool, ...]:
    if not request.tools:
        return ()
    try:
        return read_tools(request.tools)
    except InputError as exc:
        raise FieldError("tools", str(exc)) from exc


def _read_choice(request: ChatRequest, tools: tuple[Tool, ...]) -> str:
    choice = request.tool_choice
    if choice is None:
        return "auto"
    if choice in ("required",) and not tools:
        raise FieldError("tool_choice", "`tool_choice` is `required`, and `tools` has none")
    if isinstance(choice, NamedChoice):
        name = choice.function.name
        if name not in [tool.name for tool in tools]:
            raise FieldError("tool_choice", f"`tool_choice` names a tool that is not there: {name}")
        return f"={name}"
    return choice


def read_format(wanted: ResponseFormat | None) -> Structure | None:
    """The structure that an answer must have."""
    if isinstance(wanted, JsonObjectFormat):
        return Structure(json_object=True)
    if isinstance(wanted, JsonSchemaFormat):
        return Structure(json_schema=wanted.json_schema.schema_)
    return None


def _read_bias(given: Mapping[str, float] | None) -> dict[int, float]:
    bias = {}
    for key, value in (given or {}).items():
        if not key.isascii() or not key.isdigit() or len(key) > 9:
            raise FieldError("logit_bias", f"`logit_bias` has a key that is no token id: {key!r}")
        bias[int(key)] = value
    return bias


def to_message(message: Message) -> Message:
    """A message as chat templates know it: text parts joined, `developer` is `system`."""
    if isinstance(message.get("content"), list):
        message["content"] = "".join(part["text"] for part in message["content"])
    if message["role"] == "developer":
        message["role"] = "system"
    if message["role"] == "assistant":
        message.setdefault("content", "")
    return message
