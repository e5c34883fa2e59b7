"""What Anthropic's interface answers with, for the document; see `openai_answers`."""

from __future__ import annotations

from typing import Any, Literal

from edgekit.serve.fields import Strict
from edgekit.serve.openai_answers import Timings

MESSAGE_EVENTS = (
    "message_start",
    "ping",
    "content_block_start",
    "content_block_delta",
    "content_block_stop",
    "message_delta",
    "message_stop",
    "error",
)


class AnthropicProblem(Strict):
    """Why a request was refused, or failed."""

    type: str
    message: str


class AnthropicError(Strict):
    """An answer other than 200."""

    type: Literal["error"]
    error: AnthropicProblem


class SaidBlock(Strict):
    """What was said."""

    type: Literal["text"]
    text: str


class ThoughtBlock(Strict):
    """What was thought; the signature is a digest of it."""

    type: Literal["thinking"]
    thinking: str
    signature: str


class CalledBlock(Strict):
    """A call, complete and checked."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


class ThinkingTokens(Strict):
    """New tokens that were thinking."""

    thinking_tokens: int


class MessageUsage(Strict):
    """Tokens of a request; the prompt's are `input_tokens` and `cache_read_input_tokens`."""

    input_tokens: int
    cache_read_input_tokens: int
    cache_creation_input_tokens: int
    output_tokens: int
    output_tokens_details: ThinkingTokens


class AnsweredMessage(Strict):
    """The answer to a conversation."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[SaidBlock | ThoughtBlock | CalledBlock]
    stop_reason: (
        Literal[
            "end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"
        ]
        | None
    )
    stop_sequence: str | None
    usage: MessageUsage
    timings: Timings | None


class TokenCount(Strict):
    """Tokens of a prompt."""

    input_tokens: int
