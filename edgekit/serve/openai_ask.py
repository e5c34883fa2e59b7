"""OpenAI's requests as an `Ask`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgekit.models.convention import Think
from edgekit.runtime.prompt import Message
from edgekit.runtime.structure import Structure
from edgekit.serve.ask import EFFORT_BUDGETS, Ask
from edgekit.serve.calls import chosen_tool, declared_tools
from edgekit.serve.fields import BUDGET_NAMES, Thinks, one_of, read_options
from edgekit.serve.openai_types import (
    ChatRequest,
    CompletionRequest,
    JsonObjectFormat,
    JsonSchemaFormat,
    NamedChoice,
    ResponseFormat,
)
from edgekit.serve.refusals import FieldError
from edgekit.serve.responses_types import ResponsesRequest


def chat_ask(request: ChatRequest, *, limit: int | None) -> Ask:
    """Raises `FieldError`. `limit`: new tokens that an answer may have at most."""
    require_stream(request)
    think, think_field, budget = read_thinking(
        request, {"reasoning_effort": request.reasoning_effort}
    )
    tools = declared_tools([t.model_dump(exclude_none=True) for t in request.tools or ()])
    choice = request.tool_choice
    if request.top_logprobs is not None and not request.logprobs:
        raise FieldError("top_logprobs", "`top_logprobs` needs `logprobs`")
    max_new = one_of(
        {
            "max_tokens": request.max_tokens,
            "max_completion_tokens": request.max_completion_tokens,
        }
    )
    return Ask(
        messages=[to_message(m.model_dump(exclude_none=True)) for m in request.messages],
        tools=tools,
        tool_choice=chosen_tool(
            tools, f"={choice.function.name}" if isinstance(choice, NamedChoice) else choice
        ),
        one_call=not request.parallel_tool_calls,
        structure=read_format(request.response_format),
        options=read_options(
            request, think=think, budget=budget, stop=request.stop, max_new=max_new, limit=limit
        ),
        think_field=think_field,
        bias=_read_bias(request.logit_bias),
        with_logprobs=request.logprobs,
        top_logprobs=request.top_logprobs or 0,
        n=request.n,
    )


def completion_ask(request: CompletionRequest, *, limit: int | None) -> Ask:
    """Raises `FieldError`. The prompt is another matter."""
    require_stream(request)
    return Ask(
        messages=[],
        options=read_options(
            request,
            think=None,
            budget=None,
            stop=request.stop,
            max_new=request.max_tokens or 16,
            limit=limit,
        ),
        bias=_read_bias(request.logit_bias),
        with_logprobs=request.logprobs is not None,
        top_logprobs=request.logprobs or 0,
        n=request.n,
    )


def require_stream(request: ChatRequest | CompletionRequest | ResponsesRequest) -> None:
    """Raises `FieldError` where a request says how to stream and does not ask for a stream."""
    if request.stream_options is not None and not request.stream:
        raise FieldError("stream_options", "`stream_options` needs `stream`: true")


def read_thinking(
    request: Thinks, efforts: dict[str, str | None]
) -> tuple[Think | None, str, int | None]:
    """What the request says of thinking: the mode, the field that said it, and the budget.

    `efforts`: names of its own for that, beside those of `Thinks`. Raises `FieldError` where two
    fields contradict each other.
    """
    modes: dict[str, bool | None] = {"enable_thinking": request.enable_thinking}
    budgets: dict[str, int | None] = {name: getattr(request, name) for name in BUDGET_NAMES}
    if request.chat_template_kwargs is not None:
        variables = request.chat_template_kwargs
        modes["chat_template_kwargs.enable_thinking"] = variables.enable_thinking
        modes["chat_template_kwargs.thinking"] = variables.thinking
    if request.reasoning is not None:
        modes["reasoning.enabled"] = request.reasoning.enabled
        budgets["reasoning.max_tokens"] = request.reasoning.max_tokens
        efforts = {**efforts, "reasoning.effort": request.reasoning.effort}
    effort, budget, mode = one_of(efforts), one_of(budgets), one_of(modes)
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


def _first_set(values: Mapping[str, Any]) -> str | None:
    return next((name for name, value in values.items() if value is not None), None)


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
