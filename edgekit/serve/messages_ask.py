"""Requests of Anthropic's Messages interface as an `Ask`.

Without `thinking` there is none, as that interface has it, unless the system text asks for it in
the model's own words.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from edgekit.models.convention import Think
from edgekit.runtime.budget import NO_CAP
from edgekit.runtime.chat_options import ChatOptions
from edgekit.runtime.prompt import Message
from edgekit.runtime.structure import Structure
from edgekit.serve.ask import EFFORT_BUDGETS, Ask
from edgekit.serve.calls import chosen_tool, declared_tools
from edgekit.serve.fields import read_options
from edgekit.serve.messages_types import (
    AssistantTurn,
    CountRequest,
    MessagesRequest,
    NamedToolChoice,
    TextBlock,
    ThinkingAdaptive,
    ThinkingDisabled,
    ThinkingEnabled,
    ToolChoice,
    ToolResultBlock,
    ToolUseBlock,
    UserTurn,
)
from edgekit.serve.refusals import FieldError

_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


def messages_ask(request: CountRequest, *, limit: int | None = None) -> Ask:
    """Raises `FieldError`. `limit`: new tokens that an answer may have at most."""
    if isinstance(request.messages[-1], AssistantTurn):
        raise FieldError(
            "messages",
            "`messages` ends with an answer: to go on with a text that is given is not supported",
        )
    tools = declared_tools(
        [
            {"name": t.name, "description": t.description, "parameters": t.input_schema}
            for t in request.tools or ()
        ]
    )
    choice = request.tool_choice
    form = request.output_config.format if request.output_config else None
    think, budget = _thinking(request)
    options = ChatOptions(think=think, budget=budget)
    if isinstance(request, MessagesRequest):
        options = read_options(
            request, think=think, budget=budget, stop=request.stop_sequences,
            stop_field="stop_sequences", max_new=request.max_tokens, limit=limit,
        )  # fmt: skip
    return Ask(
        messages=[*_system(request.system), *_messages(request)],
        tools=tools,
        tool_choice=chosen_tool(tools, _choice(choice)),
        one_call=choice is not None and bool(choice.disable_parallel_tool_use),
        structure=None if form is None else Structure(json_schema=form.schema_),
        structure_field="output_config.format",
        options=options,
        think_field="thinking",
        think_default=None if isinstance(request.thinking, ThinkingAdaptive) else "off",
    )


def _choice(choice: ToolChoice | NamedToolChoice | None) -> str | None:
    if choice is None:
        return None
    return f"={choice.name}" if isinstance(choice, NamedToolChoice) else _CHOICES[choice.type]


def _thinking(request: CountRequest) -> tuple[Think | None, int | None]:
    """The mode and the budget; of two limits the smaller one holds."""
    wanted = request.thinking
    effort = request.output_config.effort if request.output_config else None
    if wanted is None or isinstance(wanted, ThinkingDisabled):
        if effort is not None:
            raise FieldError(
                "output_config.effort",
                "`output_config.effort` limits thinking, and `thinking` does not ask for any",
            )
        return (None if wanted is None else "off"), None
    efforts = {**EFFORT_BUDGETS, "max": NO_CAP}
    limits = [efforts[effort]] if effort is not None else []
    if isinstance(wanted, ThinkingEnabled):
        limits.append(wanted.budget_tokens)
    limits = [limit for limit in limits if limit != NO_CAP]
    return ("on" if isinstance(wanted, ThinkingEnabled) else None), min(limits, default=NO_CAP)


def _system(system: str | Sequence[TextBlock] | None) -> list[Message]:
    return [{"role": "system", "content": _text(system)}] if system else []


def _messages(request: CountRequest) -> Iterator[Message]:
    for turn in request.messages:
        if isinstance(turn.content, str):
            yield {"role": turn.role, "content": turn.content}
        elif isinstance(turn, UserTurn):
            yield from _asked(turn.content)
        elif isinstance(turn, AssistantTurn):
            yield _answered(turn.content)
        else:
            yield {"role": "system", "content": _text(turn.content)}


def _asked(blocks: Sequence[TextBlock | ToolResultBlock]) -> Iterator[Message]:
    """Results as messages of their own, the texts between them joined, in their order."""
    texts: list[TextBlock] = []
    for block in blocks:
        if isinstance(block, TextBlock):
            texts.append(block)
            continue
        if texts:
            yield {"role": "user", "content": _text(texts)}
        texts = []
        head = "Error: " if block.is_error else ""
        content = head + _text(block.content or "")
        yield {"role": "tool", "content": content, "tool_call_id": block.tool_use_id}
    if texts or not blocks:
        yield {"role": "user", "content": _text(texts)}


def _answered(blocks: Sequence[object]) -> Message:
    """What was said and called; what was thought is never sent again."""
    message: Message = {
        "role": "assistant",
        "content": _text([block for block in blocks if isinstance(block, TextBlock)]),
    }
    calls = [
        {
            "id": block.id,
            "type": "function",
            "function": {
                "name": block.name,
                "arguments": json.dumps(block.input, ensure_ascii=False),
            },
        }
        for block in blocks
        if isinstance(block, ToolUseBlock)
    ]
    return {**message, "tool_calls": calls} if calls else message


def _text(content: str | Sequence[TextBlock]) -> str:
    return content if isinstance(content, str) else "".join(block.text for block in content)
