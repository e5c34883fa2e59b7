"""OpenAI's client at /v1/responses, over real sockets; every event against that client's types."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import httpx
import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from tests.serve.conftest import Running, Serve

REASONER = "Llama-3.1-Nemotron-Nano-8B-v1"
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
WEATHER: Any = {
    "type": "function",
    "name": "weather",
    "description": "The weather of a city",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
EVENTS: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


def events_of(server: Running, body: dict[str, Any]) -> list[Any]:
    """The events of a stream, each as its type in the official client, none of its fields lost."""
    events = []
    with httpx.stream("POST", f"{server.url}/v1/responses", json={**body, "stream": True}) as got:
        assert got.headers["content-type"].startswith("text/event-stream")
        name = ""
        for line in got.iter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            if line.startswith("data: "):
                data = json.loads(line.removeprefix("data: "))
                assert data["type"] == name
                events.append(EVENTS.validate_python(data))
    assert [e.sequence_number for e in events] == list(range(len(events)))
    return events


def prompt_of(server: Running) -> str:
    session: Any = server.engine.session
    return server.engine.tokenizer.decode(session.held[0], skip_special=False)


def test_a_text_is_answered_with_its_usage(serve: Serve) -> None:
    server = serve("Good day.")
    answer = server.client().responses.create(
        model="tiny", input="Hello?", instructions="Be kind.", max_output_tokens=50
    )
    assert answer.output_text == "Good day."
    assert answer.status == "completed"
    assert answer.usage is not None
    size = len(server.engine.tokenizer.encode("Good day.", add_special=False))
    assert answer.usage.output_tokens == size
    assert answer.usage.total_tokens == answer.usage.input_tokens + size
    assert answer.usage.input_tokens_details.cached_tokens == 0
    assert "system\nBe kind." in prompt_of(server)
    raw = httpx.post(f"{server.url}/v1/responses", json={"input": "x", "max_output_tokens": 2})
    assert Response.model_validate(raw.json()).store is False  # type: ignore[attr-defined]


@pytest.mark.parametrize("summary", [None, "auto"])
def test_events_come_in_order_and_say_what_the_whole_says(
    serve: Serve, summary: str | None
) -> None:
    text = "Hm, yes.\n</think>\n\nYes, it is."
    body = {"input": "Is it?", "reasoning": {"effort": "high", "summary": summary}}
    events = events_of(serve(text, model=REASONER), body)
    thought = "response.reasoning_text" if summary is None else "response.reasoning_summary_text"
    part = "content_part" if summary is None else "reasoning_summary_part"
    kinds = [event.type for event in events]
    assert [kind for kind, after in pairwise([*kinds, ""]) if kind != after] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        f"response.{part}.added",
        f"{thought}.delta",
        f"{thought}.done",
        f"response.{part}.done",
        "response.output_item.done",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    for name, whole in ((thought, "Hm, yes."), ("response.output_text", "Yes, it is.")):
        deltas = [e.delta for e in events if e.type == f"{name}.delta"]
        assert len(deltas) > 3
        assert "".join(deltas) == whole
        assert [e.text for e in events if e.type == f"{name}.done"] == [whole]
    last = events[-1].response
    assert last.output_text == "Yes, it is."
    assert last.usage.output_tokens_details.reasoning_tokens > 3
    assert [item.id for item in last.output] == [
        e.item.id for e in events if e.type == "response.output_item.done"
    ]
    again = serve(text, model=REASONER)
    whole = httpx.post(f"{again.url}/v1/responses", json=body).json()
    kept = ("type", "role", "content", "summary", "status", "encrypted_content")
    assert [{k: v for k, v in item.items() if k in kept} for item in whole["output"]] == [
        {k: v for k, v in item.model_dump().items() if k in kept and k in mine}
        for item, mine in zip(last.output, whole["output"], strict=True)
    ]


def test_the_official_stream_puts_it_together(serve: Serve) -> None:
    client = serve("Good day." + CALL).client()
    with client.responses.stream(model="tiny", input="Hello?", tools=[WEATHER]) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert "response.function_call_arguments.done" in kinds
    assert final.output_text == "Good day."
    call: Any = final.output[-1]
    assert (call.type, call.name, call.status) == ("function_call", "weather", "completed")
    assert json.loads(call.arguments) == {"city": "Rome"}


def test_a_conversation_with_a_call_goes_round(serve: Serve) -> None:
    server = serve(f"Hm.\n</think>\n\n{CALL}", "Fine.\n</think>\n\nIt is warm.", model=REASONER)
    client = server.client()
    history: list[Any] = [{"role": "user", "content": [{"type": "input_text", "text": "Rome?"}]}]
    first = client.responses.create(
        model=REASONER,
        input=history,
        tools=[WEATHER],
        include=["reasoning.encrypted_content"],
        store=False,
    )
    assert [item.type for item in first.output] == ["reasoning", "function_call"]
    reasoning: Any = first.output[0]
    assert reasoning.encrypted_content
    call: Any = first.output[1]
    history += first.output
    history.append({"type": "function_call_output", "call_id": call.call_id, "output": "30 °C"})
    second = client.responses.create(model=REASONER, input=history, tools=[WEATHER])
    assert second.output_text == "It is warm."
    prompt = prompt_of(server)
    assert '"city": "Rome"' in prompt
    assert "30 °C" in prompt
    assert "Hm." not in prompt


def test_a_required_call_and_a_schema_are_held_to(serve: Serve) -> None:
    class Sky(BaseModel):
        blue: bool
        clouds: int

    client = serve().client()
    answer = client.responses.create(
        model="tiny", input="Hello?", tools=[WEATHER], max_output_tokens=300,
        tool_choice={"type": "function", "name": "weather"},
    )  # fmt: skip
    call: Any = answer.output[0]
    assert json.loads(call.arguments)["city"] in ("Paris", "Rome")
    parsed = client.responses.parse(
        model="tiny", input="Hello?", text_format=Sky, temperature=1.2, max_output_tokens=300,
        extra_body={"seed": 4},
    )  # fmt: skip
    assert isinstance(parsed.output_parsed, Sky)
    any_object = client.responses.create(
        model="tiny", input="?", text={"format": {"type": "json_object"}}, max_output_tokens=60
    )
    assert isinstance(json.loads(any_object.output_text), dict)


def test_the_tokens_of_what_is_said_have_logprobs_and_those_of_thoughts_have_not(
    serve: Serve,
) -> None:
    text = f"Hm, yes.\n</think>\n\nYes, it is. {CALL}"
    asked: dict[str, Any] = {
        "input": "Is it?",
        "include": ["message.output_text.logprobs"],
        "top_logprobs": 2,
        "tools": [WEATHER],
        "enable_thinking": True,
    }
    whole = Response.model_validate(
        httpx.post(f"{serve(text, model=REASONER).url}/v1/responses", json=asked).json()
    )
    message: Any = whole.output[1]
    entries = message.content[0].logprobs
    assert whole.top_logprobs == 2
    # with the text comes the token that began the call, as far as it was read by then
    assert "".join(entry.token for entry in entries).strip() in ("Yes, it is.", "Yes, it is. <")
    assert all(len(e.top_logprobs) == 2 and e.logprob <= 0 and e.bytes for e in entries)
    events = events_of(serve(text, model=REASONER), asked)
    streamed = [
        e for event in events if event.type.endswith("text.delta") and "output" in event.type
        for e in event.logprobs
    ]  # fmt: skip
    assert [e.token for e in streamed] == [e.token for e in entries]
    (done,) = [event for event in events if event.type == "response.output_text.done"]
    assert [e.token for e in done.logprobs] == [e.token for e in entries]
    last: Any = events[-1].response.output[1]
    assert [e.token for e in last.content[0].logprobs] == [e.token for e in entries]
    plain = events_of(serve(text, model=REASONER), {"input": "Is it?"})
    assert all(event.logprobs == [] for event in plain if "output_text." in event.type)


def test_the_token_limit_is_incomplete(serve: Serve) -> None:
    server = serve("One, two, three, four, five")
    events = events_of(server, {"input": "Count.", "max_output_tokens": 4})
    assert events[-1].type == "response.incomplete"
    last = events[-1].response
    assert last.incomplete_details.reason == "max_output_tokens"
    assert last.output[-1].status == "incomplete"
    assert last.usage.output_tokens == 4


def test_what_fails_in_the_middle_is_said_at_the_end(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve("One, two, three, four, five")
    session: Any = server.engine.session
    decode, calls = session.decode, []

    def failing(*args: Any) -> Any:
        calls.append(args)
        if len(calls) > 3:
            raise RuntimeError("the device is gone")
        return decode(*args)

    monkeypatch.setattr(session, "decode", failing)
    events = events_of(server, {"input": "Count."})
    assert events[-1].type == "response.failed"
    assert events[-1].response.error.code == "server_error"
    assert events[-1].response.status == "failed"
    with pytest.raises(openai.InternalServerError):
        server.client().responses.create(model="tiny", input="Count.")


@pytest.mark.parametrize(
    ("extra", "toggle"),
    [
        ({}, "on"),
        ({"reasoning": {"effort": "none"}}, "off"),
        ({"reasoning": {"effort": "low"}, "instructions": "detailed thinking off"}, "on"),
        ({"instructions": "detailed thinking off"}, "off"),
        ({"thinking_budget": 0}, "off"),
        ({"chat_template_kwargs": {"enable_thinking": False}}, "off"),
    ],
)
def test_what_switches_thinking_reaches_the_prompt(
    serve: Serve, extra: dict[str, Any], toggle: str
) -> None:
    server = serve("ok", model=REASONER)
    body = {"input": "Hello?", "max_output_tokens": 300, **extra}
    assert httpx.post(f"{server.url}/v1/responses", json=body).status_code == 200
    assert f"system\ndetailed thinking {toggle}" in prompt_of(server)


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id", "not supported"),
        ({"conversation": "conv_1"}, "conversation", "not supported"),
        ({"store": True}, "store", "False"),
        ({"background": True}, "background", "False"),
        ({"truncation": "auto"}, "truncation", "disabled"),
        ({"top_logprobs": 3}, "top_logprobs", "needs `include`"),
        ({"stream_options": {"include_obfuscation": False}}, "stream_options", "needs `stream`"),
        ({"input": []}, "input", "at least 1"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0.type", "item_reference"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
            "input.0.content.0.type",
            "input_image",
        ),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type", "function"),
        ({"tool_choice": "required"}, "tool_choice", "has none"),
        ({"reasoning": {"effort": "high"}}, "reasoning.effort", "no thinking to switch on"),
        ({"reasoning": {"summary": "concise"}}, "reasoning.summary", "detailed"),
        ({"text": {"verbosity": "low"}}, "text.verbosity", "medium"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format.type", "grammar"),
        (
            {"text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "no"}}}},
            "text.format",
            "no",
        ),
        ({"include": ["message.input_image.image_url"]}, "include.0", "encrypted_content"),
        ({"temperature": "1"}, "temperature", "number"),
        ({"input": "y" * 2000}, "input", "holds 900"),
    ],
)
def test_what_is_wrong_is_named(serve: Serve, body: dict[str, Any], param: str, words: str) -> None:
    answer = httpx.post(f"{serve('x').url}/v1/responses", json={"input": "Hello?", **body})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == param
    assert words in error["message"]
