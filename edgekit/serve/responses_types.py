"""The requests of OpenAI's Responses interface that are supported, field by field.

Nothing is stored here: `store` may only be false, and what refers to a stored response or
conversation is not supported. Source: openai-python 3.57, `types/responses`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, StrictBool, Tag

from edgekit.serve.fields import Count, Drawn, Many, No, Reasoning, Strict, Thinks, tag_of
from edgekit.serve.openai_types import JsonObjectFormat, StreamOptions, TextFormat

Status = Literal["in_progress", "completed", "incomplete"]


class InputText(Strict):
    """A part of what was asked; other kinds (images, audio, files) are not supported."""

    type: Literal["input_text"]
    text: str


class OutputText(Strict):
    """A part of what was answered; only its text is sent to the model again."""

    type: Literal["output_text"]
    text: str
    annotations: Many[dict[str, Any]] | None = None
    logprobs: Many[dict[str, Any]] | None = None


Part = Annotated[
    Annotated[InputText, Tag("[input_text]")] | Annotated[OutputText, Tag("[output_text]")],
    Discriminator(tag_of),
]


class MessageItem(Strict):
    """A message."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: str | Many[Part]
    id: str | None = None
    status: Status | None = None
    phase: None = None


class CallItem(Strict):
    """A call that the model made."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    id: str | None = None
    status: Status | None = None
    caller: None = None
    namespace: None = None


class ResultItem(Strict):
    """The result of a call."""

    type: Literal["function_call_output"]
    call_id: str
    output: str | Many[InputText]
    id: str | None = None
    name: str | None = None
    status: Status | None = None
    caller: None = None
    namespace: None = None


class ThoughtText(Strict):
    """What was thought."""

    type: Literal["reasoning_text"]
    text: str


class SummaryText(Strict):
    """A summary of what was thought."""

    type: Literal["summary_text"]
    text: str


class ReasoningItem(Strict):
    """What was thought before; it is taken and never sent to the model again."""

    type: Literal["reasoning"]
    id: str | None = None
    summary: Many[SummaryText] | None = None
    content: Many[ThoughtText] | None = None
    encrypted_content: str | None = None
    status: Status | None = None


Item = Annotated[
    Annotated[MessageItem, Tag("[message]")]
    | Annotated[CallItem, Tag("[function_call]")]
    | Annotated[ResultItem, Tag("[function_call_output]")]
    | Annotated[ReasoningItem, Tag("[reasoning]")],
    Discriminator(tag_of),
]


class FunctionTool(Strict):
    """A function; a required call is held to its schema, whether `strict` or not."""

    type: Literal["function"]
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: StrictBool | None = None


class FunctionChoice(Strict):
    """This tool must be called."""

    type: Literal["function"]
    name: str


class SchemaFormat(Strict):
    """JSON of a schema; it is enforced whether `strict` or not."""

    type: Literal["json_schema"]
    name: str
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: StrictBool | None = None


Format = Annotated[
    Annotated[TextFormat, Tag("[text]")]
    | Annotated[JsonObjectFormat, Tag("[json_object]")]
    | Annotated[SchemaFormat, Tag("[json_schema]")],
    Discriminator(tag_of),
]


class TextConfig(Strict):
    """What the answer must look like."""

    format: Format | None = None
    verbosity: Literal["medium"] | None = None


class ResponsesReasoning(Reasoning):
    """Thinking; with a `summary` it comes as one, whole: nothing shortens it."""

    summary: Literal["auto", "detailed"] | None = None


Include = Literal["reasoning.encrypted_content", "message.output_text.logprobs"]


class ResponsesRequest(Drawn, Thinks):
    """POST /v1/responses."""

    model: str | None = None
    input: str | Annotated[Many[Item], Field(min_length=1)]
    instructions: str | None = None
    stream: StrictBool = False
    stream_options: StreamOptions | None = None
    max_output_tokens: Count | None = None
    reasoning: ResponsesReasoning | None = None
    text: TextConfig | None = None
    tools: Many[FunctionTool] | None = None
    tool_choice: Literal["auto", "none", "required"] | FunctionChoice | None = None
    parallel_tool_calls: StrictBool = True
    include: Many[Include] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    metadata: Annotated[dict[str, str], Field(max_length=16)] | None = None
    store: No | None = None
    background: No | None = None
    truncation: Literal["disabled"] | None = None
    service_tier: Literal["auto", "default"] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
