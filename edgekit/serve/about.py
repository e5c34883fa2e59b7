"""What the server says of itself: models, health, status, metrics; and tokens without an answer."""

from __future__ import annotations

from typing import Any

import psutil
from starlette.requests import Request
from starlette.responses import Response

from edgekit.device import read_device
from edgekit.serve.ask import EFFORT_BUDGETS, Ask, prompt_of, thinking_mode
from edgekit.serve.bodies import read_request
from edgekit.serve.openai_ask import to_message
from edgekit.serve.openai_types import TokenizeRequest
from edgekit.serve.request import in_thread, require_model, service_of
from edgekit.serve.service import Service
from edgekit.serve.wire import HttpError, json_response


async def models(request: Request) -> Response:
    """GET /v1/models."""
    service = service_of(request)
    return json_response({"object": "list", "data": [_model(service)]})


async def one_model(request: Request) -> Response:
    """GET /v1/models/{name}. Raises `HttpError` 404."""
    service = service_of(request)
    require_model(service, request.path_params["name"])
    return json_response(_model(service))


def _model(service: Service) -> dict[str, Any]:
    engine, convention = service.asker.engine, service.asker.convention
    manifest = engine.manifest
    reasoning = None
    if convention is not None:
        reasoning = {
            # off also where nothing in the prompt says so: by a block that is over already
            "allowed_options": ["on", "off"],
            "default": convention.default,
            "effort_budgets": EFFORT_BUDGETS,
        }
    return {
        "id": service.model_name,
        "object": "model",
        "created": service.created,
        "owned_by": "edgekit",
        "context_length": engine.session.context_tokens,
        "max_model_len": engine.session.context_tokens,  # vLLM's name for it
        "max_new_tokens": service.settings.max_new_tokens,
        "precision": manifest.precision,
        "kv_precision": manifest.kv_precision,
        "profile": manifest.profile,
        "backend": manifest.backend["name"],
        "reasoning": reasoning,
    }


async def health(request: Request) -> Response:
    """GET /health: 200 only when an answer can be had."""
    service = getattr(request.app.state, "service", None)
    state = "starting" if service is None else service.scheduler.status().state
    if state == "running":
        return json_response({"status": "ok"})
    return json_response({"status": state}, status=503, headers={"Retry-After": "5"})


async def status(request: Request) -> Response:
    """GET /v1/status: slots, queue and memory, for people who look."""
    service = service_of(request)
    now, plan = service.scheduler.status(), service.asker.engine.manifest.plan
    session = service.asker.engine.session
    device = await in_thread(read_device)
    per_token = plan["kv_cache_bytes"] / (plan["context_tokens"] * plan["batch"])
    return json_response(
        {
            "state": now.state,
            "slots": {"total": now.slots, "busy": now.busy},
            "queue": {"waiting": now.waiting, "limit": now.queue_limit},
            "memory": {
                "rss_bytes": psutil.Process().memory_info().rss,
                "weights_bytes": plan["weights_bytes"],
                "kv_cache_bytes": int(per_token * session.context_tokens * session.num_slots),
                "workspace_bytes": plan["workspace_bytes"],
                "runtime_bytes": plan["runtime_bytes"],
                "budget_bytes": plan.get("budget_bytes"),
                "available_bytes": device.available_bytes,
                "gpus": [
                    {
                        "name": gpu.name,
                        "total_bytes": gpu.memory_bytes,
                        "free_bytes": gpu.free_bytes,
                    }
                    for gpu in device.gpus
                    if not gpu.is_integrated  # its memory is the machine's
                ],
            },
            "tokens_per_s": now.tokens_per_s,
        }
    )


async def metrics(request: Request) -> Response:
    """GET /metrics, in Prometheus' text format."""
    text = service_of(request).metrics.text()
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


async def tokenize(request: Request) -> Response:
    """POST /tokenize: the ids of a text, or of the prompt that messages would be."""
    service = service_of(request)
    limits = service.settings
    asked = await read_request(request, TokenizeRequest, max_bytes=limits.max_body_bytes)
    require_model(service, asked.model)
    given = [n for n in ("content", "prompt", "messages") if getattr(asked, n) is not None]
    if len(given) != 1:
        raise HttpError(400, "give one of `content`, `prompt` and `messages`", param="content")
    adds = asked.add_special_tokens and "add_special_tokens" in asked.model_fields_set
    if adds and asked.messages is not None:
        raise HttpError(
            400, "`add_special_tokens` is for a text: in `messages` the chat template has them",
            param="add_special_tokens",
        )  # fmt: skip
    ids = await in_thread(_ids, service, asked)
    tokenizer = service.asker.engine.tokenizer
    answer: dict[str, Any] = {
        "tokens": ids,
        "count": len(ids),
        "max_model_len": service.asker.engine.session.context_tokens,
    }
    if asked.return_token_strs:
        answer["token_strs"] = [tokenizer.decode([i], skip_special=False) for i in ids]
    return json_response(answer)


def _ids(service: Service, asked: TokenizeRequest) -> list[int]:
    asker = service.asker
    if asked.messages is None:
        text = asked.content if asked.content is not None else asked.prompt
        assert text is not None
        return asker.engine.tokenizer.encode(text, add_special=asked.add_special_tokens)
    ask = Ask(messages=[to_message(m.model_dump(exclude_none=True)) for m in asked.messages])
    return prompt_of(asker, ask, thinking_mode(asker, ask))[1]
