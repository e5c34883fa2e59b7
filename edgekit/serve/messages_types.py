"""The requests of Anthropic's Messages interface that are supported, field by field.

`cache_control` is taken everywhere and changes nothing: what the beginning of a prompt shares with
one that a slot holds is not computed again, marked or not. Source: anthropic-python 2.14, `types`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, StrictBool, Tag

from edgekit.serve.fields import Count, Drawn, Many, No, Strict, tag_of


class CacheControl(Strict):
    """A mark in the prompt that costs and changes nothing here."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class Marked(Strict):
    """What may carry such a mark."""

    cache_control: CacheControl | None = None


class TextBlock(Marked):
    """Text; other kinds (images, documents) are not supported."""

    type: Literal["text"]
    text: str
    citations: None = None


class ToolUseBlock(Marked):
    """A call that the model made."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]
    caller: None = None
    toolset_name: None = None


class ToolResultBlock(Marked):
    """The result of a call; that of a call which failed begins with `Error: `."""

    type: Literal["tool_result"]
    tool_use_id: str
    content: str | Many[TextBlock] | None = None
    is_error: StrictBool | None = None
    toolset_name: None = None


class ThinkingBlock(Strict):
    """What was thought before; it is taken and never sent to the model again."""

    type: Literal["thinking"]
    thinking: str
    signature: str | None = None


class RedactedBlock(Strict):
    """What was thought before, where it cannot be read."""

    type: Literal["redacted_thinking"]
    data: str


Question = Annotated[
    Annotated[TextBlock, Tag("[text]")] | Annotated[ToolResultBlock, Tag("[tool_result]")],
    Discriminator(tag_of),
]
Answered = Annotated[
    Annotated[TextBlock, Tag("[text]")]
    | Annotated[ToolUseBlock, Tag("[tool_use]")]
    | Annotated[ThinkingBlock, Tag("[thinking]")]
    | Annotated[RedactedBlock, Tag("[redacted_thinking]")],
    Discriminator(tag_of),
]


class UserTurn(Strict):
    """A question, or the results of calls."""

    role: Literal["user"]
    content: str | Many[Question]


class AssistantTurn(Strict):
    """A past answer."""

    role: Literal["assistant"]
    content: str | Many[Answered]


class SystemTurn(Strict):
    """Instructions in the middle of a conversation."""

    role: Literal["system"]
    content: str | Many[TextBlock]


def role_of(value: Any) -> str:
    """The branch that a message's role names."""
    return f"[{value.get('role')}]" if isinstance(value, dict) else "[user]"


Turn = Annotated[
    Annotated[UserTurn, Tag("[user]")]
    | Annotated[AssistantTurn, Tag("[assistant]")]
    | Annotated[SystemTurn, Tag("[system]")],
    Discriminator(role_of),
]


class CustomTool(Marked):
    """A function; a required call is held to its schema, whether `strict` or not."""

    type: Literal["custom"] | None = None
    name: str
    description: str | None = None
    input_schema: dict[str, Any]
    strict: StrictBool | None = None
    eager_input_streaming: StrictBool | None = None
    """Changes nothing: a call is sent when it is complete."""
    defer_loading: No | None = None


class ToolChoice(Strict):
    """Whether a tool must be called."""

    type: Literal["auto", "any", "none"]
    disable_parallel_tool_use: StrictBool | None = None


class NamedToolChoice(Strict):
    """This tool must be called."""

    type: Literal["tool"]
    name: str
    disable_parallel_tool_use: StrictBool | None = None


class ThinkingEnabled(Strict):
    """Think, for so many tokens at most."""

    type: Literal["enabled"]
    budget_tokens: Count
    display: Literal["summarized", "omitted"] | None = None


class ThinkingAdaptive(Strict):
    """As the model is used to; `output_config.effort` limits it."""

    type: Literal["adaptive"]
    display: Literal["summarized", "omitted"] | None = None


class ThinkingDisabled(Strict):
    """Do not think."""

    type: Literal["disabled"]


Thinking = Annotated[
    Annotated[ThinkingEnabled, Tag("[enabled]")]
    | Annotated[ThinkingAdaptive, Tag("[adaptive]")]
    | Annotated[ThinkingDisabled, Tag("[disabled]")],
    Discriminator(tag_of),
]


class SchemaOutput(Strict):
    """JSON of a schema; it is enforced."""

    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Strict):
    """What the answer must look like, and how much thought goes before it."""

    format: SchemaOutput | None = None
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None


class Metadata(Strict):
    """Who asks."""

    user_id: str | None = None


class CountRequest(Marked):
    """POST /v1/messages/count_tokens."""

    model: str | None = None
    messages: Annotated[Many[Turn], Field(min_length=1)]
    system: str | Many[TextBlock] | None = None
    tools: Many[CustomTool] | None = None
    tool_choice: ToolChoice | NamedToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None


class MessagesRequest(CountRequest, Drawn):
    """POST /v1/messages."""

    max_tokens: Count
    stream: StrictBool = False
    stop_sequences: Many[str] | None = None
    metadata: Metadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
    speed: Literal["standard"] | None = None
