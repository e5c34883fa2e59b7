"""Anthropic's client at /v1/messages, over real sockets; events against its types."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import anthropic
import httpx
import pytest
from anthropic.types import Message, RawMessageStreamEvent
from pydantic import TypeAdapter

from edgekit.serve.messages_ask import messages_ask
from edgekit.serve.messages_types import CountRequest
from tests.serve.conftest import Running, Serve

REASONER = "Llama-3.1-Nemotron-Nano-8B-v1"
ASK: Any = [{"role": "user", "content": "Hello?"}]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
WEATHER: Any = {
    "name": "weather",
    "description": "The weather of a city",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "cache_control": {"type": "ephemeral"},
}
EVENTS: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)


def client_of(server: Running, **options: Any) -> anthropic.Anthropic:
    given = {"base_url": server.url, "api_key": "none", "max_retries": 0}
    return server.kept(anthropic.Anthropic(**{**given, **options}))


def prompt_of(server: Running) -> str:
    session: Any = server.engine.session
    return server.engine.tokenizer.decode(session.held[0], skip_special=False)


def test_an_answer_with_its_usage(serve: Serve) -> None:
    server = serve("Good day.")
    system: Any = [{"type": "text", "text": "Be ", "cache_control": {"type": "ephemeral"}},
                   {"type": "text", "text": "kind."}]  # fmt: skip
    answer = client_of(server).messages.create(
        model="tiny", max_tokens=50, messages=ASK, system=system, metadata={"user_id": "me"}
    )
    block: Any = answer.content[0]
    assert (block.type, block.text) == ("text", "Good day.")
    assert answer.stop_reason == "end_turn"
    size = len(server.engine.tokenizer.encode("Good day.", add_special=False))
    assert answer.usage.output_tokens == size
    assert "system\nBe kind." in prompt_of(server)
    count = client_of(server).messages.count_tokens(model="tiny", messages=ASK, system=system)
    assert count.input_tokens == answer.usage.input_tokens


def test_a_second_turn_counts_what_was_not_computed_again(serve: Serve) -> None:
    client = client_of(serve())
    turns: list[Any] = [{"role": "user", "content": "x" * 300}]
    first = client.messages.create(model="tiny", max_tokens=5, messages=turns)
    turns += [{"role": "assistant", "content": first.content}, {"role": "user", "content": "More?"}]
    again = client.messages.create(model="tiny", max_tokens=5, messages=turns)
    assert (again.usage.cache_read_input_tokens or 0) >= 300
    whole = client.messages.count_tokens(model="tiny", messages=turns).input_tokens
    assert again.usage.input_tokens + (again.usage.cache_read_input_tokens or 0) == whole


def test_events_come_in_order_and_say_what_the_whole_says(serve: Serve) -> None:
    text = f"Hm, yes.\n</think>\n\nLook:{CALL}"
    body = {
        "messages": ASK, "max_tokens": 400, "tools": [WEATHER],
        "thinking": {"type": "enabled", "budget_tokens": 100},
    }  # fmt: skip
    server = serve(text, model=REASONER)
    events = []
    with httpx.stream("POST", f"{server.url}/v1/messages", json={**body, "stream": True}) as got:
        assert got.headers["content-type"].startswith("text/event-stream")
        lines = list(got.iter_lines())
    names = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]
    data = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
    assert names == [event["type"] for event in data]
    assert data.pop(1) == {"type": "ping"}
    events = [EVENTS.validate_python(event) for event in data]
    kinds = [
        f"{e.type} {e.delta.type}" if e.type == "content_block_delta" else e.type for e in events
    ]
    block = ("content_block_start", "content_block_delta {}", "content_block_stop")
    assert [kind for kind, after in pairwise([*kinds, ""]) if kind != after] == [
        "message_start",
        block[0], "content_block_delta thinking_delta", "content_block_delta signature_delta",
        block[2],
        block[0], "content_block_delta text_delta", block[2],
        block[0], "content_block_delta input_json_delta", block[2],
        "message_delta",
        "message_stop",
    ]  # fmt: skip
    assert [e.index for e in events if e.type == "content_block_stop"] == [0, 1, 2]
    assert events[-2].delta.stop_reason == "tool_use"
    whole = Message.model_validate(
        httpx.post(f"{serve(text, model=REASONER).url}/v1/messages", json=body).json()
    )
    with client_of(serve(text, model=REASONER)).messages.stream(model=REASONER, **body) as stream:
        final = stream.get_final_message()
    assert [block.model_dump(exclude={"parsed_output"}) for block in final.content] == [
        block.model_dump() for block in whole.content
    ]
    assert final.usage.output_tokens == whole.usage.output_tokens
    assert final.usage.output_tokens_details is not None
    assert final.usage.output_tokens_details.thinking_tokens > 3
    thought: Any = whole.content[0]
    assert thought.thinking == "Hm, yes."
    assert thought.signature


def test_a_conversation_with_a_call_goes_round(serve: Serve) -> None:
    server = serve(f"Hm.\n</think>\n\n{CALL}", "Fine.\n</think>\n\nIt is warm.", model=REASONER)
    client, thinking = client_of(server), {"type": "adaptive"}
    turns: list[Any] = [{"role": "user", "content": "Rome?"}]
    first = client.messages.create(
        model=REASONER, max_tokens=400, messages=turns, tools=[WEATHER], thinking=thinking
    )  # type: ignore[call-overload]
    assert [block.type for block in first.content] == ["thinking", "tool_use"]
    assert first.stop_reason == "tool_use"
    assert first.content[1].input == {"city": "Rome"}
    result = {
        "type": "tool_result",
        "tool_use_id": first.content[1].id,
        "content": [{"type": "text", "text": "no such place"}],
        "is_error": True,
    }
    turns += [
        {"role": "assistant", "content": first.content},
        {"role": "user", "content": [result, {"type": "text", "text": "So?"}]},
    ]
    second = client.messages.create(
        model=REASONER, max_tokens=400, messages=turns, tools=[WEATHER], thinking=thinking
    )  # type: ignore[call-overload]
    assert second.content[-1].text == "It is warm."
    prompt = prompt_of(server)
    assert '"city": "Rome"' in prompt
    assert "Error: no such place" in prompt
    assert prompt.index("no such place") < prompt.index("So?")
    assert "Hm." not in prompt


@pytest.mark.parametrize(
    ("thinking", "system", "toggle"),
    [
        (None, None, "off"),
        (None, "detailed thinking on", "on"),
        ({"type": "disabled"}, "detailed thinking on", "off"),
        ({"type": "adaptive"}, None, "on"),
        ({"type": "adaptive"}, "detailed thinking off", "off"),
        ({"type": "enabled", "budget_tokens": 50}, None, "on"),
    ],
)
def test_what_switches_thinking_reaches_the_prompt(
    serve: Serve, thinking: Any, system: str | None, toggle: str
) -> None:
    server = serve("ok", model=REASONER)
    body = {"messages": ASK, "max_tokens": 300, "thinking": thinking, "system": system}
    assert httpx.post(f"{server.url}/v1/messages", json=body).status_code == 200
    assert f"system\ndetailed thinking {toggle}" in prompt_of(server)


def test_a_budget_leads_out_of_thinking(serve: Serve) -> None:
    url = serve("One, two, three, four, five, six", model=REASONER).url
    body = {"messages": ASK, "max_tokens": 300}
    given = {"thinking": {"type": "enabled", "budget_tokens": 10}}
    thought, answer = httpx.post(f"{url}/v1/messages", json={**body, **given}).json()["content"]
    assert "answer now" in thought["thinking"]
    assert answer["text"].endswith("six")


@pytest.mark.parametrize(
    ("thinking", "effort", "think", "budget"),
    [
        ({"type": "adaptive"}, "low", None, 1024),
        ({"type": "adaptive"}, "max", None, -1),
        ({"type": "enabled", "budget_tokens": 2000}, "low", "on", 1024),
        ({"type": "enabled", "budget_tokens": 100}, "high", "on", 100),
    ],
)
def test_of_two_limits_the_smaller_one_holds(
    thinking: Any, effort: str, think: str | None, budget: int
) -> None:
    given = {"messages": ASK, "thinking": thinking, "output_config": {"effort": effort}}
    options = messages_ask(CountRequest.model_validate(given)).options
    assert (options.think, options.budget) == (think, budget)


def test_thinking_can_be_left_out(serve: Serve) -> None:
    server = serve("Hm, yes.\n</think>\n\nYes.", model=REASONER)
    body: Any = {"thinking": {"type": "enabled", "budget_tokens": 90, "display": "omitted"}}
    with client_of(server).messages.stream(
        model=REASONER, max_tokens=300, messages=ASK, **body
    ) as stream:
        content: Any = stream.get_final_message().content
    thought, answer = content
    assert (thought.type, thought.thinking) == ("thinking", "")
    assert thought.signature
    assert (answer.type, answer.text) == ("text", "Yes.")


def test_why_it_ended_is_said(serve: Serve) -> None:
    def ask(text: str, **given: Any) -> Any:
        return client_of(serve(text)).messages.create(
            **{"model": "tiny", "max_tokens": 90, "messages": ASK, **given}
        )

    stopped = ask("One, two. END three", stop_sequences=["END", "four"])
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "END")
    assert stopped.content[0].text == "One, two. "
    cut = ask("One, two, three, four", max_tokens=3)
    assert (cut.stop_reason, cut.stop_sequence) == ("max_tokens", None)
    full = ask("One, two, three " * 200, max_tokens=5000)
    assert full.stop_reason == "model_context_window_exceeded"


def test_choices_of_tools_are_held_to(serve: Serve) -> None:
    client = client_of(serve())  # whatever this model would say, it has to be the call
    for choice in ({"type": "any"}, {"type": "tool", "name": "weather"}):
        answer = client.messages.create(
            model="tiny", max_tokens=300, messages=ASK, tools=[WEATHER],
            tool_choice={**choice, "disable_parallel_tool_use": True},
        )  # type: ignore[call-overload]  # fmt: skip
        assert answer.stop_reason == "tool_use"
        assert answer.content[0].input["city"] in ("Paris", "Rome")
    server = serve(CALL)
    plain: Any = client_of(server).messages.create(
        model="tiny", max_tokens=300, messages=ASK, tools=[WEATHER], tool_choice={"type": "none"}
    )
    assert plain.content[0].type == "text"
    assert "weather" not in prompt_of(server).partition("assistant")[0]
    two = client_of(serve(CALL + CALL)).messages.create(
        model="tiny", max_tokens=300, messages=ASK, tools=[WEATHER],
        tool_choice={"type": "auto", "disable_parallel_tool_use": True},
    )  # fmt: skip
    assert [block.type for block in two.content] == ["tool_use"]


def test_a_schema_is_enforced(serve: Serve) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"],
              "additionalProperties": False}  # fmt: skip
    answer: Any = client_of(serve()).messages.create(
        model="tiny", max_tokens=200, messages=ASK,
        output_config={"format": {"type": "json_schema", "schema": schema}},
        extra_body={"temperature": 1.2, "top_k": 50, "seed": 3},
    )  # fmt: skip
    assert set(json.loads(answer.content[0].text)) == {"ok"}


def test_errors_are_the_clients_own(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve("x", keys=("secret",))
    with pytest.raises(anthropic.AuthenticationError):
        client_of(server, api_key="wrong").messages.create(model="tiny", max_tokens=5, messages=ASK)
    client = client_of(server, api_key="secret")
    with pytest.raises(anthropic.NotFoundError, match="only `tiny`"):
        client.messages.create(model="claude-9", max_tokens=5, messages=ASK)
    with pytest.raises(anthropic.BadRequestError, match="temperature") as caught:
        client.messages.create(
            model="tiny", max_tokens=5, messages=ASK, extra_body={"temperature": -1}
        )
    body: Any = caught.value.body
    assert body["type"] == "error"
    assert body["error"]["type"] == "invalid_request_error"
    session: Any = server.engine.session

    def failing(*_: Any) -> Any:
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(session, "decode", failing)
    with (
        pytest.raises(anthropic.APIStatusError) as failed,
        client.messages.stream(model="tiny", max_tokens=5, messages=ASK) as stream,
    ):
        stream.get_final_message()
    told: Any = failed.value.body
    assert told["error"]["type"] == "api_error"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"max_tokens": None}, "`max_tokens`: Field required"),
        ({"mcp_servers": []}, "`mcp_servers` is not supported"),
        ({"container": "x"}, "`container` is not supported"),
        ({"context_management": {}}, "`context_management` is not supported"),
        ({"messages": []}, "`messages`: List should have at least 1"),
        ({"messages": [*ASK, {"role": "assistant", "content": "So"}]}, "ends with an answer"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
            "`messages.0.content.0.type` is not supported: image",
        ),
        ({"messages": [{"role": "robot", "content": "x"}]}, "`messages.0.role`"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "`tools.0.type`"),
        ({"tool_choice": {"type": "any"}}, "`tools` has none"),
        ({"tool_choice": {"type": "tool", "name": "x"}}, "not there: x"),
        ({"thinking": {"type": "enabled"}}, "`thinking.budget_tokens`: Field required"),
        ({"thinking": {"type": "enabled", "budget_tokens": 9}}, "no thinking to switch on"),
        ({"output_config": {"effort": "low"}}, "`output_config.effort` limits thinking"),
        ({"stop_sequences": [""]}, "`stop_sequences` must not hold an empty text"),
        ({"cache_control": {"type": "forever"}}, "`cache_control.type`"),
        ({"messages": [{"role": "user", "content": "y" * 2000}]}, "holds 900"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(serve: Serve, body: dict[str, Any], words: str) -> None:
    answer = httpx.post(
        f"{serve('x').url}/v1/messages", json={"messages": ASK, "max_tokens": 5, **body}
    )
    assert answer.status_code == 400
    assert answer.json()["type"] == "error"
    assert words in answer.json()["error"]["message"]


def test_counting_takes_what_would_not_fit(serve: Serve) -> None:
    long: Any = [{"role": "user", "content": "yz" * 3000}]
    assert (
        client_of(serve("x")).messages.count_tokens(model="tiny", messages=long).input_tokens > 900
    )
