"""Bodies of requests: at most so many bytes, within so many seconds, and what is wrong in them."""

from __future__ import annotations

import asyncio
import json
import math
import re
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from edgekit.serve.wire import HttpError

_BODY_SECONDS = 30.0
_MOST_PROBLEMS = 1000
Model = TypeVar("Model", bound=BaseModel)
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


async def read_request(request: Request, model: type[Model], *, max_bytes: int) -> Model:
    """The JSON body of a request, checked. Raises `HttpError` with the field that is wrong."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        # a page of another origin can send any other kind without asking
        raise HttpError(415, f"the body must be application/json, not {kind or 'untyped'}")
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.strip().lower() not in ("", "identity"):
        raise HttpError(415, f"the body must be sent as it is, not as {encoding}")
    body = await _read_body(request, max_bytes)
    try:
        text = body.decode()
        data = json.loads(text, parse_constant=_no_constant, parse_float=_finite)
        if _SURROGATE.search(text):  # half a pair is no text, and nothing can encode it
            json.dumps(data, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as exc:
        raise HttpError(400, f"the body is not JSON: {exc}") from exc
    if not isinstance(data, dict):
        raise HttpError(400, "the body must be a JSON object")
    try:
        # null is what some clients send for what they leave out
        return model.model_validate({k: v for k, v in data.items() if v is not None})
    except ValidationError as exc:
        raise _first_problem(exc) from exc
    except RecursionError as exc:
        raise HttpError(400, "the body is nested too deeply") from exc


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):  # no JSON could say it again
        raise ValueError(f"{text} is out of range")
    return value


def _first_problem(exc: ValidationError) -> HttpError:
    if exc.error_count() > _MOST_PROBLEMS:  # each would be a dictionary
        return HttpError(400, f"{exc.error_count()} values of the body are wrong or not supported")
    found = exc.errors(include_url=False, include_input=False)
    # of the branches of a union the one that came furthest is the one that was meant, or the one
    # whose kind of value it was
    first = max(found, key=lambda error: (len(error["loc"]), not error["type"].endswith("_type")))
    place = [
        str(part)
        for i, part in enumerate(first["loc"])
        if not _is_branch(part, before=first["loc"][i - 1] if i else "")
    ]
    name = ".".join(place) or None
    if first["type"] == "extra_forbidden":
        return HttpError(400, f"`{name}` is not supported", param=name, code="unsupported_field")
    if first["type"] == "union_tag_invalid" and name:
        kind = first["ctx"]["tag"].strip("[]")
        name = f"{name}.{'role' if 'role' in first['ctx']['discriminator'] else 'type'}"
        return HttpError(400, f"`{name}` is not supported: {kind}", param=name)
    message = first["msg"].removeprefix("Value error, ")
    return HttpError(400, f"`{name}`: {message}" if name else message, param=name)


def _is_branch(part: int | str, *, before: int | str) -> bool:
    """Whether a step of pydantic's path is no part of the request, but a branch of a union."""
    if isinstance(part, int):
        return False
    is_role = isinstance(before, int) and part in (
        "system",
        "developer",
        "user",
        "assistant",
        "tool",
    )
    return is_role or part == "str" or "[" in part or part[:1].isupper()


async def _read_body(request: Request, max_bytes: int) -> bytes:
    too_large = HttpError(413, f"the body is larger than {max_bytes} bytes")
    said = request.headers.get("content-length", "")
    if said.isdigit() and int(said) > max_bytes:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for part in request.stream():
                body += part
                if len(body) > max_bytes:
                    raise too_large
    except TimeoutError as exc:
        raise HttpError(408, f"the body did not arrive within {_BODY_SECONDS:g} s") from exc
    return bytes(body)
