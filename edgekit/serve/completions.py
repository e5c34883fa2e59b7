"""POST /v1/completions: go on with a text, as it is."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from edgekit.runtime.token_source import Step
from edgekit.serve.ask import prepare_text, several
from edgekit.serve.bodies import read_request
from edgekit.serve.chat_completions import usage
from edgekit.serve.job import Work
from edgekit.serve.logprobs import least
from edgekit.serve.openai_ask import completion_ask
from edgekit.serve.openai_types import CompletionRequest
from edgekit.serve.refusals import FieldError
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

_MOST_PROMPTS = 16


async def completions(request: Request) -> Response:
    """Continue one text or several. Raises `HttpError`, `EdgekitError`."""
    service = service_of(request)
    limits = service.settings
    asked = await read_request(request, CompletionRequest, max_bytes=limits.max_body_bytes)
    require_model(service, asked.model)
    works = await in_thread(_prepare_all, service, asked)
    running = service.run(works, client=client_of(request, asked.user))
    writer = _Writer(service, len(works), n=asked.n, with_logprobs=asked.logprobs is not None)
    if asked.stream:
        return EventStream(
            writer.stream(running, with_usage=asked.streams_usage),
            on_error=lambda exc: data_event(openai_error(as_http_error(exc))),
            on_end=running.cancel,
        )
    return json_response(await unless_gone(request, writer.whole(running)))


def _prepare_all(service: Service, asked: CompletionRequest) -> list[Work]:
    tokenizer = service.asker.engine.tokenizer
    prompts: list[Any] = [asked.prompt]
    if isinstance(asked.prompt, list) and asked.prompt and not isinstance(asked.prompt[0], int):
        prompts = list(asked.prompt)
    if len(prompts) * asked.n > _MOST_PROMPTS:
        raise FieldError("prompt", f"{len(prompts)} prompts and n = {asked.n} ask for more than "
                                   f"{_MOST_PROMPTS} answers")  # fmt: skip
    ask = completion_ask(asked, limit=service.settings.max_new_tokens)
    works = []
    for prompt in prompts:
        if isinstance(prompt, str):
            ids = tokenizer.encode(prompt, add_special=True)
        else:
            ids = list(prompt)
            vocab_size = service.asker.engine.session.vocab_size
            if any(i >= vocab_size for i in ids):
                raise FieldError("prompt", f"token ids must be within 0..{vocab_size - 1}")
        works += several(prepare_text(service.asker, ids, ask), ask.n)
    return works


class _Writer:
    """The texts of one request in OpenAI's shapes."""

    def __init__(self, service: Service, count: int, *, n: int, with_logprobs: bool) -> None:
        self._n = n
        self._tokenizer = service.asker.engine.tokenizer
        self._with_logprobs = with_logprobs
        self._head = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": service.model_name,
        }
        self._replies = [Reply() for _ in range(count)]

    async def whole(self, running: Running) -> dict[str, Any]:
        async for number, event in running:
            for _ in self._replies[number].push(event):
                pass
        choices = [
            self._choice(i, reply.text, reply.steps, reply.finish_reason)
            for i, reply in enumerate(self._replies)
        ]
        return {**self._head, "choices": choices, **self._measures()}

    async def stream(self, running: Running, *, with_usage: bool) -> AsyncIterator[bytes]:
        extra = {"usage": None} if with_usage else {}
        async for number, event in running:
            reply, before = self._replies[number], len(self._replies[number].steps)
            text = "".join(piece.text for piece in reply.push(event))
            steps = reply.steps[before:]
            finish = reply.finish_reason if reply.end is not None else None
            if text or steps or finish:
                choice = self._choice(number, text, steps, finish)
                yield data_event({**self._head, "choices": [choice], **extra})
        if with_usage:
            yield data_event({**self._head, "choices": [], **self._measures()})
        yield b"data: [DONE]\n\n"

    def _measures(self) -> dict[str, Any]:
        ends = [reply.end for reply in self._replies]
        return {"usage": usage(ends, n=self._n), "timings": timings(ends[0])}

    def _choice(
        self, number: int, text: str, steps: Sequence[Step], finish: str | None
    ) -> dict[str, Any]:
        logprobs = None
        if self._with_logprobs:
            logprobs = {
                "tokens": [self._text(step.token_id) for step in steps],
                "token_logprobs": [least(step.logprob) for step in steps],
                "top_logprobs": [{self._text(i): v for i, v in step.top} for step in steps],
                "text_offset": None,
            }
        return {"index": number, "text": text, "logprobs": logprobs, "finish_reason": finish}

    def _text(self, token_id: int) -> str:
        return self._tokenizer.decode([token_id], skip_special=False)
