"""The requests of OpenAI's interface that are supported, field by field.

Whatever is not here is refused with its name. Fields that some clients always send are here with
the one value that changes nothing. Source: OpenAI's OpenAPI document; the names for thinking are
those of llama.cpp, vLLM, SGLang and TabbyAPI.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StrictBool

from edgekit.serve.fields import Count, Drawn, Effort, Many, No, Number, Strict, Thinks
from edgekit.serve.neutral import NeutralChatFields, NeutralFields


def _zero(value: Any) -> Any:
    if isinstance(value, int | float) and value:
        raise ValueError("only 0 is supported")
    return value


Zero = Annotated[float, BeforeValidator(_zero), Field(ge=0, le=0)]


class TextPart(Strict):
    """A part of a message; other kinds (images, audio, files) are not supported."""

    type: Literal["text"]
    text: str


Text = str | Many[TextPart]


class CalledFunction(Strict):
    """The function of a past call."""

    name: str
    arguments: str
    parsed_arguments: Any = Field(default=None, exclude=True)
    """The official client's own reading of them, which it sends back."""


class PastCall(Strict):
    """A call that the model made."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class SystemMessage(Strict):
    """Instructions."""

    role: Literal["system", "developer"]
    content: Text
    name: str | None = None


class UserMessage(Strict):
    """A question."""

    role: Literal["user"]
    content: Text
    name: str | None = None


class AssistantMessage(Strict):
    """A past answer; what was thought is taken and never sent to the model again."""

    role: Literal["assistant"]
    content: Text | None = None
    name: str | None = None
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: Annotated[Many[Any], Field(max_length=0)] | None = None
    parsed: Any = Field(default=None, exclude=True)
    """The official client's own reading of the content, which it sends back."""
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: Many[PastCall] | None = None


class ToolMessage(Strict):
    """The result of a call."""

    role: Literal["tool"]
    content: Text
    tool_call_id: str
    name: str | None = None


ChatMessage = Annotated[
    SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")
]


class NamedSchema(Strict):
    """A JSON schema with a name; it is enforced whether `strict` or not."""

    name: str
    description: str | None = None
    schema_: dict[str, Any] | bool = Field(default=True, alias="schema")
    strict: StrictBool | None = None


class TextFormat(Strict):
    """Any text."""

    type: Literal["text"]


class JsonObjectFormat(Strict):
    """Any JSON object."""

    type: Literal["json_object"]


class JsonSchemaFormat(Strict):
    """JSON of a schema."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


ResponseFormat = Annotated[
    TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")
]


class ToolFunction(Strict):
    """A function; a required call is held to its schema, whether `strict` or not."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: StrictBool | None = None


class ChatTool(Strict):
    """What the model may call."""

    type: Literal["function"]
    function: ToolFunction


class FunctionName(Strict):
    """Names a tool."""

    name: str


class NamedChoice(Strict):
    """This tool must be called."""

    type: Literal["function"]
    function: FunctionName


class StreamOptions(Strict):
    """What a stream holds besides."""

    include_usage: StrictBool = False
    include_obfuscation: No = False


class Sampled(Drawn):
    """What both completions have."""

    model: str | None = None
    stream: StrictBool = False
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=16)] = 1
    stop: str | Many[str] | None = None
    frequency_penalty: Zero = 0
    presence_penalty: Zero = 0
    logit_bias: dict[str, Annotated[Number, Field(ge=-100, le=100)]] | None = None
    max_tokens: Count | None = None
    user: str | None = None

    @property
    def streams_usage(self) -> bool:
        """The last part of the stream has the usage."""
        return self.stream_options is not None and self.stream_options.include_usage


class ChatRequest(NeutralChatFields, Sampled, Thinks):
    """POST /v1/chat/completions."""

    messages: Annotated[Many[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Count | None = None
    logprobs: StrictBool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    tools: Many[ChatTool] | None = None
    tool_choice: Literal["auto", "none", "required"] | NamedChoice | None = None
    parallel_tool_calls: StrictBool = True
    reasoning_effort: Effort | None = None
    modalities: Many[Literal["text"]] | None = None
    service_tier: Literal["auto", "default"] | None = None
    store: No | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None


TokenIds = Many[Annotated[int, Field(ge=0)]]


class CompletionRequest(NeutralFields, Sampled):
    """POST /v1/completions."""

    prompt: str | TokenIds | Many[str] | Many[TokenIds]
    echo: No = False
    best_of: Annotated[int, Field(ge=1, le=1)] | None = None
    suffix: None = None
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None


class TokenizeRequest(Strict):
    """POST /tokenize, as vLLM and llama.cpp spell it."""

    model: str | None = None
    content: str | None = None
    prompt: str | None = None
    messages: Annotated[Many[ChatMessage], Field(min_length=1)] | None = None
    add_special_tokens: StrictBool = True
    return_token_strs: StrictBool = False
