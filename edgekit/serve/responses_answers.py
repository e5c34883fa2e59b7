"""What /v1/responses answers with, for the document; see `openai_answers`."""

from __future__ import annotations

from typing import Any, Literal

from edgekit.serve.fields import Strict
from edgekit.serve.openai_answers import ReasoningTokens, Timings, TokenLogprob
from edgekit.serve.responses_types import (
    Format,
    FunctionChoice,
    FunctionTool,
    Status,
    SummaryText,
    ThoughtText,
)

RESPONSE_EVENTS = tuple(
    f"response.{name}"
    for name in (
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "reasoning_summary_part.added",
        "reasoning_text.delta",
        "reasoning_text.done",
        "reasoning_summary_text.delta",
        "reasoning_summary_text.done",
        "output_text.delta",
        "output_text.done",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "content_part.done",
        "reasoning_summary_part.done",
        "output_item.done",
        "completed",
        "incomplete",
        "failed",
    )
)


class SaidText(Strict):
    """Text of an answer."""

    type: Literal["output_text"]
    text: str
    annotations: list[dict[str, Any]]
    logprobs: list[TokenLogprob]


class SaidItem(Strict):
    """What was said."""

    type: Literal["message"]
    id: str
    status: Status
    role: Literal["assistant"]
    content: list[SaidText]


class ThoughtItem(Strict):
    """What was thought: as `content`, or as a `summary` where that was asked for."""

    type: Literal["reasoning"]
    id: str
    status: Status
    summary: list[SummaryText]
    content: list[ThoughtText] | None
    encrypted_content: str | None


class CalledItem(Strict):
    """A call, complete and checked."""

    type: Literal["function_call"]
    id: str
    status: Status
    call_id: str
    name: str
    arguments: str


class InputDetails(Strict):
    """Tokens of the prompt that were in a KV slot already."""

    cached_tokens: int
    cache_write_tokens: int


class ResponseUsage(Strict):
    """Tokens of a request."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: ReasoningTokens
    total_tokens: int


class ResponseProblem(Strict):
    """Why there is no whole answer."""

    code: str
    message: str


class Incomplete(Strict):
    """Why an answer ends early."""

    reason: Literal["max_output_tokens"]


class EchoedReasoning(Strict):
    """What was asked of thinking."""

    effort: str | None
    summary: str | None


class EchoedText(Strict):
    """What was asked of the text."""

    format: Format
    verbosity: Literal["medium"]


class ResponseObject(Strict):
    """The answer to a conversation, with what was asked; nothing is stored."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    model: str
    output: list[SaidItem | ThoughtItem | CalledItem]
    usage: ResponseUsage | None
    error: ResponseProblem | None
    incomplete_details: Incomplete | None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    parallel_tool_calls: bool
    previous_response_id: None
    reasoning: EchoedReasoning
    service_tier: Literal["default"]
    store: Literal[False]
    temperature: float
    text: EchoedText
    tool_choice: Literal["auto", "none", "required"] | FunctionChoice
    tools: list[FunctionTool]
    top_logprobs: int
    top_p: float
    truncation: Literal["disabled"]
    user: str | None
    timings: Timings | None
