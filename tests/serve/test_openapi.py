"""The document of the interface, and Schemathesis against it over real sockets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from edgekit.serve.endpoints import ENDPOINTS, document
from edgekit.serve.openapi import Endpoint
from tests.serve.conftest import Serve

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
    unsupported_method,
]


def test_the_document_has_every_endpoint_and_its_errors(serve: Serve) -> None:
    server = serve("x")
    told = httpx.get(f"{server.url}/openapi.json").json()
    assert told == document()
    assert told["openapi"] == "3.1.0"
    assert set(told["paths"]) == {row.path.replace(":path", "") for row in ENDPOINTS}
    for path, methods in told["paths"].items():
        for operation in methods.values():
            found = set(operation["responses"])
            assert {"200", "401", "403"} <= found
            if "requestBody" in operation:
                assert {"400", "413", "415", "429", "500", "503", "504"} <= found, path
    fields = told["components"]["schemas"]["MessagesRequest"]
    assert fields["additionalProperties"] is False
    assert {"max_tokens", "messages"} == set(fields["required"])
    assert {"type": "null"} in fields["properties"]["temperature"]["anyOf"]


ASK = [{"role": "user", "content": "Hello?"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": ASK, "logprobs": True, "top_logprobs": 1},
    "/v1/chat/completions/render": {"messages": ASK},
    "/v1/completions": {"prompt": "Hello", "logprobs": 1},
    "/v1/responses": {"input": "Hello?", "include": ["reasoning.encrypted_content"]},
    "/v1/messages": {"messages": ASK, "max_tokens": 300, "thinking": {"type": "adaptive"}},
    "/v1/messages/count_tokens": {"messages": ASK},
    "/tokenize": {"content": "Hello", "return_token_strs": True},
}
CALL = '<tool_call>\n{"name": "weather", "arguments": {}}\n</tool_call>'
TOOL: dict[str, Any] = {"name": "weather", "parameters": {"type": "object"}}
TOOLS: dict[str, list[dict[str, Any]]] = {
    "/v1/chat/completions": [{"type": "function", "function": TOOL}],
    "/v1/responses": [{"type": "function", **TOOL}],
    "/v1/messages": [{"name": "weather", "input_schema": {"type": "object"}}],
}


@pytest.mark.parametrize("row", ENDPOINTS, ids=lambda row: str(row.path))
def test_what_is_answered_is_what_the_document_says(serve: Serve, row: Endpoint) -> None:
    model = "Llama-3.1-Nemotron-Nano-8B-v1"
    server = serve(f"Hm.\n</think>\n\nLook: {CALL}", model=model)
    url = server.url + row.path.replace("{name:path}", model)
    refused = httpx.request(row.method, url, headers={"Host": "evil.example"})
    assert refused.status_code == 403
    row.error.model_validate_json(refused.content)
    tools = {"tools": TOOLS[row.path]} if row.path in TOOLS else {}
    body = {**BODIES[row.path], **tools} if row.method == "POST" else None
    answer = httpx.request(row.method, url, json=body)
    assert answer.status_code == 200, answer.text
    if row.answer is None:
        assert answer.headers["content-type"].startswith("text/plain")
        return
    row.answer.model_validate_json(answer.content)
    if row.path in TOOLS:
        assert {"Hm.", "Look: ", "weather"} <= set(texts_of(answer.json()))
    if row.method == "POST":
        refused = httpx.post(url, json={**BODIES[row.path], "nonsense": 1})
        assert refused.status_code == 400
        row.error.model_validate_json(refused.content)


def texts_of(value: Any) -> Iterator[str]:
    """Every text in a JSON value."""
    if isinstance(value, str):
        yield value
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from texts_of(item)


@pytest.mark.parametrize("text", ["\\ud83d", "NaN"])
def test_a_text_that_is_none_is_refused(serve: Serve, text: str) -> None:
    url = f"{serve('x').url}/v1/chat/completions"
    value = text if text == "NaN" else f'"{text}"'
    body = f'{{"messages": [{{"role": "user", "content": "x"}}], "tools": [{value}]}}'
    answer = httpx.post(url, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    pair = '{"content": "\\ud83d\\ude00"}'
    url = f"{serve('x').url}/tokenize"
    headers = {"Content-Type": "application/json"}
    assert httpx.post(url, content=pair, headers=headers).status_code == 200


@pytest.fixture
def url(serve: Serve) -> str:
    """Of a server whose model says anything, eight tokens at most."""
    return serve(max_new_tokens=8).url


@pytest.mark.slow
@schemathesis.openapi.from_dict(document()).parametrize()
@settings(max_examples=25, derandomize=True, deadline=None, suppress_health_check=[*HealthCheck])
def test_whatever_is_sent_is_answered_as_the_document_says(case: Any, url: str) -> None:
    if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
        case.body["model"] = "tiny"  # a name that is not there ends most requests early
    case.call_and_validate(base_url=url, checks=CHECKS)
