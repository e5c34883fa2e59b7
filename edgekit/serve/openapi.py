"""An OpenAPI 3.1 document of endpoints, made from their pydantic models.

Nothing is written twice: what a request may hold is the model that checks it.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema
from starlette.requests import Request
from starlette.responses import Response

Schema = dict[str, Any]
_REASONS = {
    400: "A field is wrong or not supported; the message names it",
    401: "There is no key, or an unknown one",
    403: "This server is for this machine only",
    404: "There is no such model",
    408: "The body did not arrive in time",
    413: "The body is too large",
    415: "The body is not application/json",
    429: "As many requests wait as may; `Retry-After` says when to come again",
    500: "The engine failed",
    503: "The server cannot answer now: it starts, or it ends",
    504: "The deadline of the server is over",
}
_ALWAYS = (401, 403)
_ANSWERING = (400, 404, 408, 413, 415, 429, 500, 503, 504)


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One path with one method, and what goes in and comes out."""

    path: str
    handler: Callable[[Request], Awaitable[Response]]
    summary: str
    method: Literal["GET", "POST"] = "GET"
    request: type[BaseModel] | None = None
    answer: type[BaseModel] | None = None
    """None: plain text."""
    stream: str = ""
    """What a stream is, where there can be one."""
    events: Sequence[str] = ()
    """The names of its events, if they have names."""
    errors: Sequence[int] = ()
    """Beside those of every endpoint, and those of every request with a body."""
    error: type[BaseModel]
    unlike: Mapping[int, type[BaseModel]] = field(default_factory=dict)
    """Statuses whose answer has another shape."""


def make_document(endpoints: Sequence[Endpoint], *, title: str, version: str) -> Schema:
    """The document of these endpoints."""
    inputs = {e.request for e in endpoints if e.request is not None}
    outputs = {
        model
        for e in endpoints
        for model in (e.answer, e.error, *e.unlike.values())
        if model is not None
    }
    wanted: list[tuple[type[BaseModel], JsonSchemaMode]] = [
        *((model, "validation") for model in sorted(inputs, key=lambda m: m.__name__)),
        *((model, "serialization") for model in sorted(outputs, key=lambda m: m.__name__)),
    ]
    refs, definitions = models_json_schema(wanted, ref_template="#/components/schemas/{model}")
    schemas: dict[str, Schema] = definitions["$defs"]
    for model in inputs:
        _allow_null(schemas[refs[model, "validation"]["$ref"].rpartition("/")[2]])
    paths: dict[str, Schema] = {}
    for endpoint in endpoints:
        path = paths.setdefault(endpoint.path.replace(":path}", "}"), {})
        path[endpoint.method.lower()] = _operation(endpoint, refs)
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": version},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
        # a server that was started with keys wants one of the first two
        "security": [{"bearer": []}, {"key": []}, {}],
    }


def _operation(endpoint: Endpoint, refs: dict[Any, Schema]) -> Schema:
    content: Schema = {"text/plain": {"schema": {"type": "string"}}}
    if endpoint.answer is not None:
        content = {"application/json": {"schema": refs[endpoint.answer, "serialization"]}}
    if endpoint.stream:
        content["text/event-stream"] = {"schema": _event(endpoint)}
    operation: Schema = {
        "operationId": endpoint.handler.__name__,
        "summary": endpoint.summary,
        "responses": {"200": {"description": "The answer", "content": content}},
    }
    statuses = {*_ALWAYS, *endpoint.errors, *(_ANSWERING if endpoint.request else ())}
    for status in sorted(statuses):
        schema = refs[endpoint.unlike.get(status, endpoint.error), "serialization"]
        error = {"application/json": {"schema": schema}}
        shape: Schema = {"description": _REASONS[status], "content": error}
        if status in (429, 503):
            seconds = {"schema": {"type": "integer"}, "description": "Seconds"}
            shape["headers"] = {"Retry-After": seconds}
        operation["responses"][str(status)] = shape
    if endpoint.request is not None:
        body = {"application/json": {"schema": refs[endpoint.request, "validation"]}}
        operation["requestBody"] = {"required": True, "content": body}
    names = re.findall(r"{(\w+)", endpoint.path)
    if names:
        text = {"type": "string", "minLength": 1}
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": text} for name in names
        ]
    return operation


def _event(endpoint: Endpoint) -> Schema:
    """One event of a stream, as its lines are."""
    return {
        "type": "object",
        "description": endpoint.stream,
        "properties": {
            "data": {"type": "string", "contentMediaType": "application/json"},
            # one without a name is a `message`: WHATWG HTML, 9.2.6
            "event": {"enum": list(endpoint.events) or ["message"]},
        },
        "required": ["data"],
        "additionalProperties": False,
    }


def _allow_null(schema: Schema) -> None:
    """A field of a request that may be left out may be null: `wire.read_request` drops it."""
    required = schema.get("required", ())
    for name, value in schema["properties"].items():
        options = value.get("anyOf", [value])
        if name in required or {"type": "null"} in options:
            continue
        schema["properties"][name] = {"anyOf": [*options, {"type": "null"}]}
