"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's interface.

    message_start  ping
    for each block: content_block_start  content_block_delta …  content_block_stop
    message_delta (why it ended, usage)  message_stop

The signature of what was thought is a digest of it: past thinking is taken and never read again.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from edgekit.serve.ask import Ask, prepare, prompt_of, thinking_mode
from edgekit.serve.blocks import Block, Blocks, Change, blocks_of
from edgekit.serve.bodies import read_request
from edgekit.serve.job import Ended, Work
from edgekit.serve.messages_ask import messages_ask
from edgekit.serve.messages_types import CountRequest, MessagesRequest
from edgekit.serve.reply import Reply, timings
from edgekit.serve.request import client_of, in_thread, require_model, service_of
from edgekit.serve.service import Running, Service
from edgekit.serve.wire import (
    EventStream,
    anthropic_error,
    as_http_error,
    data_event,
    json_response,
    unless_gone,
)

_PING = data_event({"type": "ping"}, name="ping")


async def messages(request: Request) -> Response:
    """Answer a conversation, whole or as a stream. Raises `HttpError`, `EdgekitError`."""
    service = service_of(request)
    limits = service.settings
    asked = await read_request(request, MessagesRequest, max_bytes=limits.max_body_bytes)
    require_model(service, asked.model)
    ask = messages_ask(asked, limit=limits.max_new_tokens)
    work = await in_thread(prepare, service.asker, ask)
    client = client_of(request, asked.metadata.user_id if asked.metadata else None)
    running = service.run([work], client=client)
    writer = _Writer(service, asked, work)
    if asked.stream:
        return EventStream(
            writer.stream(running),
            on_error=lambda exc: data_event(anthropic_error(as_http_error(exc)), name="error"),
            on_end=running.cancel,
            alive=_PING,
        )
    return json_response(await unless_gone(request, writer.whole(running)))


async def count_tokens(request: Request) -> Response:
    """The tokens of the prompt that a request would be. Raises `HttpError`, `EdgekitError`."""
    service = service_of(request)
    limit = service.settings.max_body_bytes
    asked = await read_request(request, CountRequest, max_bytes=limit)
    require_model(service, asked.model)
    count = await in_thread(_count, service, messages_ask(asked))
    return json_response({"input_tokens": count})


def _count(service: Service, ask: Ask) -> int:
    mode = thinking_mode(service.asker, ask)
    return len(prompt_of(service.asker, ask, mode)[1])


class _Writer:
    """The answer to one request."""

    def __init__(self, service: Service, asked: MessagesRequest, work: Work) -> None:
        display = getattr(asked.thinking, "display", None)
        self._shows_thinking = display != "omitted"
        self._context_tokens = service.asker.engine.session.context_tokens
        self._prompt_tokens = len(work.prompt_ids)
        self._head = {
            "id": f"msg_{secrets.token_hex(12)}",
            "type": "message",
            "role": "assistant",
            "model": service.model_name,
        }
        self._reply = Reply()

    async def whole(self, running: Running) -> dict[str, Any]:
        async for _, event in running:
            for _ in self._reply.push(event):
                pass
        content = [self._block(block) for block in blocks_of(self._reply.pieces)]
        return self._message(content, self._reply.end)

    async def stream(self, running: Running) -> AsyncIterator[bytes]:
        yield _event("message_start", {"message": self._message([], None)})
        yield _PING
        blocks = Blocks()
        async for _, event in running:
            for piece in self._reply.push(event):
                for data in self._changed(blocks.push(piece)):
                    yield data
        for data in self._changed(blocks.finish()):
            yield data
        end = self._reply.end
        delta = {"stop_reason": self._stop_reason(end), "stop_sequence": end and end.stopped_by}
        yield _event("message_delta", {"delta": delta, "usage": self._usage(end)})
        yield _event("message_stop", {})

    def _changed(self, changes: Iterator[Change]) -> Iterator[bytes]:
        for change in changes:
            block, place = change.block, {"index": change.block.index}
            if change.what == "begin":
                yield _event("content_block_start", {**place, "content_block": _empty(block)})
                continue
            if change.what == "more" and (block.kind != "thinking" or self._shows_thinking):
                yield _event("content_block_delta", {**place, "delta": _delta(change)})
            if change.what == "end":
                if block.kind == "thinking":
                    delta = {"type": "signature_delta", "signature": _signature(block)}
                    yield _event("content_block_delta", {**place, "delta": delta})
                yield _event("content_block_stop", place)

    def _message(self, content: Sequence[Any], end: Ended | None) -> dict[str, Any]:
        return {
            **self._head,
            "content": content,
            "stop_reason": self._stop_reason(end),
            "stop_sequence": end and end.stopped_by,
            "usage": self._usage(end),
            "timings": timings(end),
        }

    def _usage(self, end: Ended | None) -> dict[str, Any]:
        """What was read from a slot's cache is counted apart from `input_tokens`."""
        cached = end.cached_tokens if end is not None else 0
        return {
            "input_tokens": self._prompt_tokens - cached,
            "cache_read_input_tokens": cached,
            "cache_creation_input_tokens": 0,
            "output_tokens": end.new_tokens if end is not None else 0,
            "output_tokens_details": {
                "thinking_tokens": end.thinking_tokens if end is not None else 0
            },
        }

    def _stop_reason(self, end: Ended | None) -> str | None:
        if end is None:
            return None
        if self._reply.finish_reason == "tool_calls":
            return "tool_use"
        if end.stopped_by is not None:
            return "stop_sequence"
        if self._reply.finish_reason == "stop":
            return "end_turn"
        is_full = end.prompt_tokens + end.new_tokens >= self._context_tokens
        return "model_context_window_exceeded" if is_full else "max_tokens"

    def _block(self, block: Block) -> dict[str, Any]:
        if block.kind == "thinking":
            thinking = block.text if self._shows_thinking else ""
            return {"type": "thinking", "thinking": thinking, "signature": _signature(block)}
        if block.call is not None:
            return {**_empty(block), "input": block.call.arguments}
        return {**_empty(block), "text": block.text}


def _event(kind: str, data: dict[str, Any]) -> bytes:
    return data_event({"type": kind, **data}, name=kind)


def _empty(block: Block) -> dict[str, Any]:
    """A block as it begins."""
    if block.call is not None:
        return {"type": "tool_use", "id": block.call.id, "name": block.call.name, "input": {}}
    if block.kind == "thinking":
        return {"type": "thinking", "thinking": "", "signature": ""}
    return {"type": "text", "text": ""}


def _delta(change: Change) -> dict[str, Any]:
    if change.block.kind == "call":
        return {"type": "input_json_delta", "partial_json": change.text}
    if change.block.kind == "thinking":
        return {"type": "thinking_delta", "thinking": change.text}
    return {"type": "text_delta", "text": change.text}


def _signature(block: Block) -> str:
    return hashlib.sha256(block.text.encode(errors="replace")).hexdigest()
