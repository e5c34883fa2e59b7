"""POST /v1/chat/completions."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from edgekit.runtime.piece import Piece
from edgekit.runtime.token_source import Step
from edgekit.serve.ask import prepare, several
from edgekit.serve.bodies import read_request
from edgekit.serve.job import Ended
from edgekit.serve.logprobs import logprobs_of
from edgekit.serve.openai_ask import chat_ask
from edgekit.serve.openai_types import ChatRequest
from edgekit.serve.reply import Reply, timings
from edgekit.serve.request import client_of, in_thread, require_model, service_of
from edgekit.serve.service import Running, Service
from edgekit.serve.wire import (
    EventStream,
    as_http_error,
    data_event,
    json_response,
    openai_error,
    unless_gone,
)


async def chat_completions(request: Request) -> Response:
    """Answer a conversation, whole or as a stream. Raises `HttpError`, `EdgekitError`."""
    service = service_of(request)
    limits = service.settings
    asked = await read_request(request, ChatRequest, max_bytes=limits.max_body_bytes)
    require_model(service, asked.model)
    ask = chat_ask(asked, limit=limits.max_new_tokens)
    work = await in_thread(prepare, service.asker, ask)
    client = client_of(request, asked.user or asked.safety_identifier or asked.prompt_cache_key)
    running = service.run(several(work, ask.n), client=client)
    writer = _Writer(service, ask.n, with_logprobs=ask.with_logprobs)
    if asked.stream:
        return EventStream(
            writer.stream(running, with_usage=asked.streams_usage),
            on_error=lambda exc: data_event(openai_error(as_http_error(exc))),
            on_end=running.cancel,
        )
    return json_response(await unless_gone(request, writer.whole(running)))


class _Writer:
    """The answers to one request in OpenAI's shapes."""

    def __init__(self, service: Service, n: int, *, with_logprobs: bool) -> None:
        self._tokenizer = service.asker.engine.tokenizer
        self._model = service.model_name
        self._with_logprobs = with_logprobs
        self._id = f"chatcmpl-{secrets.token_hex(12)}"
        self._created = int(time.time())
        self._replies = [Reply() for _ in range(n)]
        self._chunk_extra: dict[str, None] = {}
        """Of every chunk but the last one."""

    async def whole(self, running: Running) -> dict[str, Any]:
        async for number, event in running:
            for _ in self._replies[number].push(event):
                pass
        return {
            **self._head("chat.completion"),
            "choices": [self._choice(i, reply) for i, reply in enumerate(self._replies)],
            "usage": self._usage(),
            "timings": timings(self._replies[0].end),
        }

    async def stream(self, running: Running, *, with_usage: bool) -> AsyncIterator[bytes]:
        begun: set[int] = set()
        self._chunk_extra = {"usage": None} if with_usage else {}
        async for number, event in running:
            reply, before = self._replies[number], len(self._replies[number].steps)
            shown = list(reply.push(event))
            logprobs = self._logprobs(reply.steps[before:])
            if number not in begun:
                begun.add(number)
                yield self._chunk(number, {"role": "assistant", "content": ""})
            for piece in shown:
                yield self._chunk(number, self._delta(reply, piece), logprobs=logprobs)
                logprobs = None
            if logprobs is not None and logprobs["content"]:
                yield self._chunk(number, {}, logprobs=logprobs)
            if reply.end is not None:
                yield self._chunk(number, {}, finish=reply.finish_reason)
        if with_usage:
            last = {**self._head("chat.completion.chunk"), "choices": [], "usage": self._usage()}
            yield data_event({**last, "timings": timings(self._replies[0].end)})
        yield b"data: [DONE]\n\n"

    def _usage(self) -> dict[str, Any]:
        return usage([reply.end for reply in self._replies], n=len(self._replies))

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model}

    def _choice(self, number: int, reply: Reply) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": reply.text}
        if thought := reply.thinking.strip():
            message |= {"reasoning_content": thought, "reasoning": thought}
        if reply.calls:
            message["tool_calls"] = [call.to_dict() for call in reply.calls]
            message["content"] = reply.text or None
        return {
            "index": number,
            "message": message,
            "logprobs": self._logprobs(reply.steps),
            "finish_reason": reply.finish_reason,
        }

    def _delta(self, reply: Reply, piece: Piece) -> dict[str, Any]:
        if piece.call is not None:
            return {"tool_calls": [{"index": len(reply.calls) - 1, **piece.call.to_dict()}]}
        if piece.kind == "thinking":
            return {"reasoning_content": piece.text, "reasoning": piece.text}
        return {"content": piece.text}

    def _chunk(
        self,
        number: int,
        delta: dict[str, Any],
        *,
        logprobs: dict[str, Any] | None = None,
        finish: str | None = None,
    ) -> bytes:
        choice = {"index": number, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        head = self._head("chat.completion.chunk")
        return data_event({**head, "choices": [choice], **self._chunk_extra})

    def _logprobs(self, steps: Sequence[Step]) -> dict[str, Any] | None:
        if not self._with_logprobs:
            return None
        return {"content": logprobs_of(self._tokenizer, steps), "refusal": None}


def usage(ends: Sequence[Ended | None], *, n: int) -> dict[str, Any]:
    """Tokens of one request: a prompt counts once, however many answers it has.

    `n`: answers of each prompt, which follow each other.
    """
    done = [end for end in ends if end is not None]
    groups = [done[i : i + n] for i in range(0, len(done), n)]
    prompt = sum(group[0].prompt_tokens for group in groups)
    cached = sum(max(end.cached_tokens for end in group) for group in groups)
    new = sum(end.new_tokens for end in done)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": new,
        "total_tokens": prompt + new,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {"reasoning_tokens": sum(e.thinking_tokens for e in done)},
    }
