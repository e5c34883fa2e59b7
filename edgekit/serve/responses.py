"""POST /v1/responses: OpenAI's Responses interface, without memory.

    created, in_progress, then for each block of the answer
        output_item.added  content_part.added  …delta …  …done  content_part.done  output_item.done
    and one of completed, incomplete (the token limit), failed

What was thought is an item of type `reasoning`, with its text as `content`, or as `summary` where
the request asks for one.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from edgekit.serve.ask import prepare
from edgekit.serve.blocks import Block, Blocks, Change, blocks_of
from edgekit.serve.bodies import read_request
from edgekit.serve.job import Ended, Work
from edgekit.serve.reply import Reply, timings
from edgekit.serve.request import client_of, in_thread, require_model, service_of
from edgekit.serve.responses_ask import responses_ask
from edgekit.serve.responses_items import Items
from edgekit.serve.responses_types import FunctionChoice, ResponsesRequest
from edgekit.serve.service import Running, Service
from edgekit.serve.wire import (
    EventStream,
    as_http_error,
    data_event,
    json_response,
    unless_gone,
)


async def responses(request: Request) -> Response:
    """Answer a conversation, whole or as a stream. Raises `HttpError`, `EdgekitError`."""
    service = service_of(request)
    limits = service.settings
    asked = await read_request(request, ResponsesRequest, max_bytes=limits.max_body_bytes)
    require_model(service, asked.model)
    ask = responses_ask(asked, limit=limits.max_new_tokens)
    work = await in_thread(prepare, service.asker, ask)
    client = client_of(request, asked.user or asked.safety_identifier or asked.prompt_cache_key)
    running = service.run([work], client=client)
    writer = _Writer(service, asked, work)
    if asked.stream:
        return EventStream(writer.stream(running), on_error=writer.failed, on_end=running.cancel)
    return json_response(await unless_gone(request, writer.whole(running)))


class _Writer:
    """The answer to one request."""

    def __init__(self, service: Service, asked: ResponsesRequest, work: Work) -> None:
        token = secrets.token_hex(12)
        reasoning, include = asked.reasoning, asked.include or ()
        self._items = Items(
            token,
            service.asker.engine.tokenizer,
            as_summary=reasoning is not None and reasoning.summary is not None,
            with_digest="reasoning.encrypted_content" in include,
        )
        self._head = {**_echo(asked, work), "id": f"resp_{token}", "model": service.model_name}
        self._reply = Reply()
        self._blocks = Blocks()
        self._number = 0

    async def whole(self, running: Running) -> dict[str, Any]:
        async for _, event in running:
            for _ in self._reply.push(event):
                pass
        return self._response(self._end_status, blocks_of(self._reply.pieces))

    async def stream(self, running: Running) -> AsyncIterator[bytes]:
        for kind in ("response.created", "response.in_progress"):
            yield self._event(kind, {"response": self._response("in_progress", [])})
        async for _, event in running:
            for piece in self._reply.push(event):
                for change in self._blocks.push(piece, self._reply.pieces[-1][1]):
                    for data in self._changed(change, "completed"):
                        yield data
        status = self._end_status
        for change in self._blocks.finish():
            for data in self._changed(change, status):
                yield data
        response = self._response(status, self._blocks.done)
        yield self._event(f"response.{status}", {"response": response})

    def failed(self, error: Exception) -> bytes:
        """The event that ends a stream which goes no further."""
        told = as_http_error(error)
        failure = {"code": "server_error", "message": told.message}
        response = {**self._response("failed", self._blocks.done), "error": failure}
        return self._event("response.failed", {"response": response})

    @property
    def _end_status(self) -> str:
        return "incomplete" if self._reply.finish_reason == "length" else "completed"

    def _changed(self, change: Change, status: str) -> Iterator[bytes]:
        for kind, data in self._items.events(change, status=status):
            yield self._event(kind, data)

    def _event(self, kind: str, data: dict[str, Any]) -> bytes:
        numbered = {"type": kind, "sequence_number": self._number, **data}
        self._number += 1
        return data_event(numbered, name=kind)

    def _response(self, status: str, blocks: Sequence[Block]) -> dict[str, Any]:
        is_cut = status == "incomplete"
        last = len(blocks) - 1
        output = [
            self._items.item(
                block, "incomplete" if is_cut and i == last and block.call is None else "completed"
            )
            for i, block in enumerate(blocks)
        ]
        return {
            **self._head,
            "status": status,
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
            "output": output,
            "usage": _usage(self._reply.end),
            "timings": timings(self._reply.end),
        }


def _echo(asked: ResponsesRequest, work: Work) -> dict[str, Any]:
    """What a response says of its request, with what was left open as it was decided."""
    reasoning, form = asked.reasoning, asked.text.format if asked.text else None
    choice = asked.tool_choice or "auto"
    shown = {"type": "text"} if form is None else form.model_dump(by_alias=True)
    return {
        "object": "response",
        "created_at": int(time.time()),
        "error": None,
        "instructions": asked.instructions,
        "max_output_tokens": asked.max_output_tokens,
        "metadata": asked.metadata or {},
        "parallel_tool_calls": asked.parallel_tool_calls,
        "previous_response_id": None,
        "reasoning": {
            "effort": reasoning.effort if reasoning else None,
            "summary": reasoning.summary if reasoning else None,
        },
        "service_tier": "default",
        "store": False,
        "temperature": work.sampling.temperature,
        "text": {"format": shown, "verbosity": "medium"},
        "tool_choice": choice.model_dump() if isinstance(choice, FunctionChoice) else choice,
        "tools": [tool.model_dump() for tool in asked.tools or ()],
        "top_logprobs": asked.top_logprobs or 0,
        "top_p": work.sampling.top_p,
        "truncation": "disabled",
        "user": asked.user,
    }


def _usage(end: Ended | None) -> dict[str, Any] | None:
    if end is None:
        return None
    return {
        "input_tokens": end.prompt_tokens,
        "input_tokens_details": {"cached_tokens": end.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": end.new_tokens,
        "output_tokens_details": {"reasoning_tokens": end.thinking_tokens},
        "total_tokens": end.prompt_tokens + end.new_tokens,
    }
