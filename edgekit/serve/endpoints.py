"""Every endpoint of the interface: a row here is a route, and a part of /openapi.json."""

from __future__ import annotations

from functools import cache
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from edgekit import __version__
from edgekit.serve import about
from edgekit.serve.chat_completions import chat_completions
from edgekit.serve.completions import completions
from edgekit.serve.messages import count_tokens, messages
from edgekit.serve.messages_answers import (
    MESSAGE_EVENTS,
    AnsweredMessage,
    AnthropicError,
    TokenCount,
)
from edgekit.serve.messages_types import CountRequest, MessagesRequest
from edgekit.serve.openai_answers import (
    ChatCompletion,
    Health,
    Model,
    ModelList,
    OpenAIError,
    OpenApiDocument,
    RenderedPrompt,
    ServerStatus,
    TextCompletion,
    Tokenized,
)
from edgekit.serve.openai_types import ChatRequest, CompletionRequest, TokenizeRequest
from edgekit.serve.openapi import Endpoint, make_document
from edgekit.serve.render import render
from edgekit.serve.responses import responses
from edgekit.serve.responses_answers import RESPONSE_EVENTS, ResponseObject
from edgekit.serve.responses_types import ResponsesRequest
from edgekit.serve.wire import json_response


async def openapi(request: Request) -> Response:
    """GET /openapi.json: this table as a document."""
    return json_response(document())


@cache
def document() -> dict[str, Any]:
    """The interface as an OpenAPI document."""
    return make_document(ENDPOINTS, title="edgekit serve", version=__version__)


def routes() -> list[Route]:
    """The routes of all endpoints."""
    return [Route(row.path, row.handler, methods=[row.method]) for row in ENDPOINTS]


_OPENAI_STREAM = "One `data:` a part, each a JSON object, and `data: [DONE]`."

ENDPOINTS = (
    Endpoint(
        path="/v1/chat/completions",
        method="POST",
        handler=chat_completions,
        summary="Answer a conversation (OpenAI)",
        request=ChatRequest,
        answer=ChatCompletion,
        stream=f"{_OPENAI_STREAM} Parts are `chat.completion.chunk`s.",
        error=OpenAIError,
    ),
    Endpoint(
        path="/v1/chat/completions/render",
        method="POST",
        handler=render,
        summary="The prompt that a conversation would be, as token ids (vLLM's)",
        request=ChatRequest,
        answer=RenderedPrompt,
        error=OpenAIError,
    ),
    Endpoint(
        path="/v1/completions",
        method="POST",
        handler=completions,
        summary="Go on with a text (OpenAI)",
        request=CompletionRequest,
        answer=TextCompletion,
        stream=f"{_OPENAI_STREAM} Parts are `text_completion`s.",
        error=OpenAIError,
    ),
    Endpoint(
        path="/v1/responses",
        method="POST",
        handler=responses,
        summary="Answer a conversation (OpenAI's Responses, without memory)",
        request=ResponsesRequest,
        answer=ResponseObject,
        stream="Events named after their `type`, from `response.created` to one of "
        "`response.completed`, `response.incomplete` and `response.failed`.",
        events=RESPONSE_EVENTS,
        error=OpenAIError,
    ),
    Endpoint(
        path="/v1/messages",
        method="POST",
        handler=messages,
        summary="Answer a conversation (Anthropic)",
        request=MessagesRequest,
        answer=AnsweredMessage,
        stream="Events named after their `type`, from `message_start` to one of `message_stop` "
        "and `error`.",
        events=MESSAGE_EVENTS,
        error=AnthropicError,
    ),
    Endpoint(
        path="/v1/messages/count_tokens",
        method="POST",
        handler=count_tokens,
        summary="Count the tokens of a prompt (Anthropic)",
        request=CountRequest,
        answer=TokenCount,
        error=AnthropicError,
    ),
    Endpoint(
        path="/v1/models",
        handler=about.models,
        summary="What is served: context, precision, ways to think",
        answer=ModelList,
        errors=(503,),
        error=OpenAIError,
    ),
    Endpoint(
        path="/v1/models/{name:path}",
        handler=about.one_model,
        summary="The same of one model",
        answer=Model,
        errors=(404, 503),
        error=OpenAIError,
    ),
    Endpoint(
        path="/v1/status",
        handler=about.status,
        summary="Slots, queue and memory",
        answer=ServerStatus,
        errors=(503,),
        error=OpenAIError,
    ),
    Endpoint(
        path="/tokenize",
        method="POST",
        handler=about.tokenize,
        summary="Token ids of a text, or of the prompt that messages would be",
        request=TokenizeRequest,
        answer=Tokenized,
        error=OpenAIError,
    ),
    Endpoint(
        path="/health",
        handler=about.health,
        summary="Whether an answer can be had",
        answer=Health,
        errors=(503,),
        error=OpenAIError,
        unlike={503: Health},
    ),
    Endpoint(
        path="/metrics",
        handler=about.metrics,
        summary="Counters and gauges for Prometheus",
        errors=(503,),
        error=OpenAIError,
    ),
    Endpoint(
        path="/openapi.json",
        handler=openapi,
        summary="This document",
        answer=OpenApiDocument,
        error=OpenAIError,
    ),
)
