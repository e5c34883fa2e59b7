"""Clients that people have: litellm and LangChain, over real sockets.

The official clients of OpenAI and Anthropic are in test_openai, test_responses and test_messages.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from tests.serve.conftest import Serve

REASONER = "Llama-3.1-Nemotron-Nano-8B-v1"
ASK: Any = [{"role": "user", "content": "Hello?"}]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
THOUGHT = "Hm, yes.\n</think>\n\nYes."
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}


class Sky(BaseModel):
    """What is above."""

    blue: bool
    color: str


@pytest.fixture(autouse=True)
def _loopback_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that looks anywhere else fails."""
    connect = socket.socket.connect

    def checked(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            assert address[0] in ("127.0.0.1", "::1", "localhost"), address
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", checked)


def litellm(*calls: dict[str, Any]) -> list[Any]:
    """What litellm's functions gave; each call names its `function`."""
    script = Path(__file__).with_name("litellm_asks.py")
    done = subprocess.run(
        [sys.executable, script], input=json.dumps(calls), capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results: list[Any] = json.loads(done.stdout.splitlines()[-1])
    return results


@pytest.mark.slow
def test_litellm_chats_streams_calls_and_thinks(serve: Serve) -> None:
    def to(*says: str, model: str = "tiny", **options: Any) -> dict[str, Any]:
        url = serve(*says, model=model).url
        given = {"model": f"openai/{model}", "api_base": f"{url}/v1", "api_key": "none"}
        return {"function": "completion", **given, "messages": ASK, **options}

    shape = {"name": "Sky", "schema": Sky.model_json_schema(), "strict": True}
    answer, parts, called, shaped, thought, refused = litellm(
        to("Good day.", max_tokens=50),
        to("Good day.", stream=True),
        to(CALL, tools=[WEATHER]),
        to(response_format={"type": "json_schema", "json_schema": shape}, max_tokens=200),
        to(
            THOUGHT, model=REASONER, reasoning_effort="high",
            allowed_openai_params=["reasoning_effort"],
        ),
        to("x", temperature=-1),
    )  # fmt: skip
    assert answer["choices"][0]["message"]["content"] == "Good day."
    assert answer["usage"]["completion_tokens"] > 0
    deltas = [part["choices"][0]["delta"].get("content") or "" for part in parts]
    assert "".join(deltas) == "Good day."
    assert len([delta for delta in deltas if delta]) > 3
    function = called["choices"][0]["message"]["tool_calls"][0]["function"]
    assert function["name"] == "weather"
    assert json.loads(function["arguments"]) == {"city": "Rome"}
    assert set(json.loads(shaped["choices"][0]["message"]["content"])) == {"blue", "color"}
    message = thought["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("Hm, yes.", "Yes.")
    assert refused["error"] == "BadRequestError"
    assert "temperature" in refused["message"]


@pytest.mark.slow
def test_litellm_speaks_the_other_two_interfaces(serve: Serve) -> None:
    said = serve("Good day.").url
    thought = serve(f"Hm.\n</think>\n\nLook:{CALL}", model=REASONER).url
    answer, called = litellm(
        {
            "function": "responses",
            "model": "openai/tiny",
            "api_base": f"{said}/v1",
            "api_key": "none",
            "input": "Hello?",
        },
        {
            "function": "completion",
            "model": f"anthropic/{REASONER}",
            "api_base": thought,
            "api_key": "none",
            "messages": ASK,
            "max_tokens": 300,
            "tools": [WEATHER],
            "thinking": {"type": "enabled", "budget_tokens": 100},
            "allowed_openai_params": ["thinking"],  # it knows no other model of that interface
        },
    )
    assert answer["output"][0]["content"][0]["text"] == "Good day."
    message = called["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("Hm.", "Look:")
    assert json.loads(message["tool_calls"][0]["function"]["arguments"]) == {"city": "Rome"}


@pytest.mark.parametrize("is_responses", [False, True])
def test_langchain_chats_streams_calls_and_structures(serve: Serve, is_responses: bool) -> None:
    from langchain_core.messages import HumanMessage, ToolMessage
    from langchain_core.tools import tool
    from langchain_openai import ChatOpenAI

    @tool
    def weather(city: str) -> str:
        """The weather of a city."""
        return f"It rains in {city}."

    def to(*says: str, **options: Any) -> Any:
        given: dict[str, Any] = {"model": "tiny", "api_key": "none", "max_retries": 0}
        server = serve(*says)
        url = f"{server.url}/v1"
        model = ChatOpenAI(**given, base_url=url, use_responses_api=is_responses, **options)
        server.kept(model.root_client)
        return model

    answer = to("Good day.").invoke("Hello?")
    assert answer.text == "Good day."
    assert answer.usage_metadata["output_tokens"] > 0
    assert "".join(part.text for part in to("Good day.").stream("Hello?")) == "Good day."
    model = to(CALL, "It rains.").bind_tools([weather])
    turns: list[Any] = [HumanMessage("Rome?")]
    called = model.invoke(turns)
    assert [(c["name"], c["args"]) for c in called.tool_calls] == [("weather", {"city": "Rome"})]
    turns += [called, *(ToolMessage(weather.invoke(c["args"]), tool_call_id=c["id"])
                        for c in called.tool_calls)]  # fmt: skip
    assert model.invoke(turns).text == "It rains."
    forced = to(max_tokens=300).bind_tools([weather], tool_choice="any").invoke("Rome?")
    assert [c["name"] for c in forced.tool_calls] == ["weather"]
    sky = to(max_tokens=200).with_structured_output(Sky, method="json_schema").invoke("Look up.")
    assert isinstance(sky, Sky)


def test_langchain_asks_for_thinking(serve: Serve) -> None:
    from langchain_openai import ChatOpenAI

    given: dict[str, Any] = {"model": REASONER, "api_key": "none", "max_retries": 0}
    server = serve(THOUGHT, THOUGHT, model=REASONER)
    url = f"{server.url}/v1"
    model = ChatOpenAI(**given, base_url=url, reasoning_effort="high")
    server.kept(model.root_client)
    answer = model.invoke("Is it?")
    assert answer.text == "Yes."
    details: Any = answer.usage_metadata
    assert details["output_token_details"]["reasoning"] > 3
    reasoning = {"effort": "high", "summary": "auto"}
    answer = ChatOpenAI(**given, base_url=url, reasoning=reasoning).invoke("Is it?")
    assert answer.text == "Yes."
    blocks: Any = answer.content_blocks
    assert [b["reasoning"] for b in blocks if b["type"] == "reasoning"] == ["Hm, yes."]
