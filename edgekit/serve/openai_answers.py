"""What OpenAI's interfaces answer with, for the document of this server's interface.

Answers are made where they are written, as plain JSON; a test holds them to these.
"""

from __future__ import annotations

from typing import Any, Literal

from edgekit.serve.fields import Strict
from edgekit.serve.openai_types import PastCall
from edgekit.serve.scheduler import State


class Problem(Strict):
    """Why a request was refused, or failed. `param` names a field of it."""

    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIError(Strict):
    """An answer other than 200."""

    error: Problem


class Timings(Strict):
    """How long the first answer took, in milliseconds, and how fast it came."""

    queued_ms: float
    ttft_ms: float | None
    prefill_tokens_per_s: float | None
    decode_tokens_per_s: float | None


class CachedTokens(Strict):
    """Tokens of the prompt that were in a KV slot already."""

    cached_tokens: int


class ReasoningTokens(Strict):
    """New tokens that were thinking."""

    reasoning_tokens: int


class Usage(Strict):
    """Tokens of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens
    completion_tokens_details: ReasoningTokens


class Alternative(Strict):
    """A token that could have been."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(Alternative):
    """A token, and the likeliest at its place."""

    top_logprobs: list[Alternative]


class Logprobs(Strict):
    """Of every token of an answer."""

    content: list[TokenLogprob]
    refusal: None


FinishReason = Literal["stop", "length", "tool_calls"]


class AnswerMessage(Strict):
    """What the model said. `reasoning` is the same as `reasoning_content`."""

    role: Literal["assistant"]
    content: str | None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[PastCall] | None = None


class Choice(Strict):
    """One of `n` answers."""

    index: int
    message: AnswerMessage
    logprobs: Logprobs | None
    finish_reason: FinishReason


class ChatCompletion(Strict):
    """The answer to a conversation."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    timings: Timings | None


class TextLogprobs(Strict):
    """Of every token of a text."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: None


class TextChoice(Strict):
    """How a text goes on."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: FinishReason | None


class TextCompletion(Strict):
    """How texts go on; a stream is made of the same."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage | None = None
    timings: Timings | None = None


class EffortBudgets(Strict):
    """Tokens of thinking for an effort; -1: no cap."""

    none: int
    minimal: int
    low: int
    medium: int
    high: int
    xhigh: int


class ModelReasoning(Strict):
    """How a model can be told to think."""

    allowed_options: list[Literal["on", "off"]]
    default: Literal["on", "off"]
    effort_budgets: EffortBudgets


class Model(Strict):
    """The model that is served. `context_length` and `max_model_len` are the tokens of a slot."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    context_length: int
    max_model_len: int
    max_new_tokens: int | None
    precision: str
    kv_precision: str
    profile: str
    backend: str
    reasoning: ModelReasoning | None


class ModelList(Strict):
    """All models, which is one."""

    object: Literal["list"]
    data: list[Model]


class Tokenized(Strict):
    """Token ids of a text or a prompt."""

    tokens: list[int]
    count: int
    max_model_len: int
    token_strs: list[str] | None = None


class RenderedPrompt(Strict):
    """The prompt that a conversation would be."""

    model: str
    token_ids: list[int]


class Health(Strict):
    """`ok` with 200, or why there is no answer to be had."""

    status: Literal["ok", "starting"] | State


class Slots(Strict):
    """KV slots."""

    total: int
    busy: int


class Queue(Strict):
    """Answers that wait for a slot."""

    waiting: int
    limit: int


class GpuMemory(Strict):
    """Memory of a GPU that has some of its own."""

    name: str
    total_bytes: int | None
    free_bytes: int | None


class Memory(Strict):
    """What the process takes, what the plan says of it, and what the machine has."""

    rss_bytes: int
    weights_bytes: int
    kv_cache_bytes: int
    workspace_bytes: int
    runtime_bytes: int
    budget_bytes: int | None
    available_bytes: int | None
    gpus: list[GpuMemory]


class ServerStatus(Strict):
    """What the server does now."""

    state: State
    slots: Slots
    queue: Queue
    memory: Memory
    tokens_per_s: float


class OpenApiDocument(Strict):
    """This document."""

    openapi: str
    info: dict[str, Any]
    paths: dict[str, Any]
    components: dict[str, Any]
    security: list[dict[str, Any]]
