"""Requests of OpenAI's Responses interface as an `Ask`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgekit.runtime.prompt import Message
from edgekit.runtime.structure import Structure
from edgekit.serve.ask import Ask
from edgekit.serve.calls import chosen_tool, declared_tools
from edgekit.serve.fields import read_options
from edgekit.serve.openai_ask import read_thinking, require_stream
from edgekit.serve.openai_types import JsonObjectFormat
from edgekit.serve.refusals import FieldError
from edgekit.serve.responses_types import (
    CallItem,
    FunctionChoice,
    FunctionTool,
    InputText,
    MessageItem,
    OutputText,
    ReasoningItem,
    ResponsesRequest,
    ResultItem,
    SchemaFormat,
    TextConfig,
)


def responses_ask(request: ResponsesRequest, *, limit: int | None) -> Ask:
    """Raises `FieldError`. `limit`: new tokens that an answer may have at most."""
    require_stream(request)
    think, think_field, budget = read_thinking(request, {})
    tools = declared_tools([_bare(tool) for tool in request.tools or ()])
    with_logprobs = "message.output_text.logprobs" in (request.include or ())
    if request.top_logprobs and not with_logprobs:
        raise FieldError(
            "top_logprobs", "`top_logprobs` needs `include`: message.output_text.logprobs"
        )
    return Ask(
        messages=_messages(request),
        messages_field="input",
        tools=tools,
        tool_choice=chosen_tool(tools, _choice(request.tool_choice)),
        one_call=not request.parallel_tool_calls,
        structure=_structure(request.text),
        structure_field="text.format",
        options=read_options(
            request, think=think, budget=budget, stop=None,
            max_new=request.max_output_tokens, limit=limit,
        ),
        think_field=think_field,
        with_logprobs=with_logprobs,
        logprobs_field="include",
        top_logprobs=request.top_logprobs or 0,
    )  # fmt: skip


def _choice(choice: str | FunctionChoice | None) -> str | None:
    return f"={choice.name}" if isinstance(choice, FunctionChoice) else choice


def _bare(tool: FunctionTool) -> dict[str, Any]:
    return {"name": tool.name, "description": tool.description, "parameters": tool.parameters}


def _structure(text: TextConfig | None) -> Structure | None:
    form = None if text is None else text.format
    if isinstance(form, JsonObjectFormat):
        return Structure(json_object=True)
    if isinstance(form, SchemaFormat):
        return Structure(json_schema=form.schema_)
    return None


def _messages(request: ResponsesRequest) -> list[Message]:
    messages: list[Message] = []
    if request.instructions:
        messages.append({"role": "system", "content": request.instructions})
    if isinstance(request.input, str):
        return [*messages, {"role": "user", "content": request.input}]
    for item in request.input:
        if isinstance(item, MessageItem):
            role = "system" if item.role == "developer" else item.role
            messages.append({"role": role, "content": _text(item.content)})
        elif isinstance(item, CallItem):
            _add_call(messages, item)
        elif isinstance(item, ResultItem):
            content = _text(item.output)
            messages.append({"role": "tool", "content": content, "tool_call_id": item.call_id})
        else:
            assert isinstance(item, ReasoningItem)  # never sent again
    return messages


def _add_call(messages: list[Message], item: CallItem) -> None:
    """To the answer that it belongs to: what was said before it, or the call before it."""
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": ""})
    function = {"name": item.name, "arguments": item.arguments}
    calls = messages[-1].setdefault("tool_calls", [])
    calls.append({"id": item.call_id, "type": "function", "function": function})


def _text(content: str | Sequence[InputText | OutputText]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)
