"""POST /v1/chat/completions/render: the prompt that a request would be, and nothing else.

The name and `token_ids` are vLLM's. Its router asks here before it chooses a replica: which one's
KV cache holds the longest beginning can only be told by tokens.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from edgekit.serve.ask import prepare
from edgekit.serve.bodies import read_request
from edgekit.serve.openai_ask import chat_ask
from edgekit.serve.openai_types import ChatRequest
from edgekit.serve.request import in_thread, require_model, service_of
from edgekit.serve.wire import json_response


async def render(request: Request) -> Response:
    """Refuses what /v1/chat/completions would refuse. Raises `HttpError`, `EdgekitError`."""
    service = service_of(request)
    limits = service.settings
    asked = await read_request(request, ChatRequest, max_bytes=limits.max_body_bytes)
    require_model(service, asked.model)
    work = await in_thread(prepare, service.asker, chat_ask(asked, limit=limits.max_new_tokens))
    return json_response({"model": service.model_name, "token_ids": list(work.prompt_ids)})
