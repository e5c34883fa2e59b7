"""The official client against a server, over real sockets."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest

from tests.serve.conftest import Running, Serve

REASONER = "Llama-3.1-Nemotron-Nano-8B-v1"
ASK: Any = [{"role": "user", "content": "Hello?"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"$ref": "#/$defs/City"}},
            "required": ["city"],
            "additionalProperties": False,
            "$defs": {"City": {"enum": ["Paris", "Rome"]}},
        },
    },
}


def test_an_answer_with_its_usage(serve: Serve) -> None:
    server = serve("Good day.")
    client, size = (
        server.client(),
        len(server.engine.tokenizer.encode("Good day.", add_special=False)),
    )
    answer = client.chat.completions.create(model="tiny", messages=ASK)
    assert answer.choices[0].message.content == "Good day."
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == size
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + size


def test_a_stream_says_the_same_piece_by_piece(serve: Serve) -> None:
    client = serve("Good day.").client()
    options: Any = {"include_usage": True}
    stream = client.chat.completions.create(
        model="tiny", messages=ASK, stream=True, stream_options=options
    )
    chunks = list(stream)
    text = [c.choices[0].delta.content or "" for c in chunks if c.choices]
    assert "".join(text) == "Good day."
    assert all("usage" in c.model_fields_set and c.usage is None for c in chunks[:-1])
    assert len([part for part in text if part]) > 3
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens >= len(text) - 2


def test_every_event_is_one_line_whatever_ends_lines(serve: Serve) -> None:
    text = "a\x85b\u2028c\u2029d\r\ne"
    body = {"messages": ASK, "stream": True}
    answer = httpx.post(f"{serve(text).url}/v1/chat/completions", json=body)
    events = [line for line in answer.text.splitlines() if line]
    assert all(event.startswith("data: ") for event in events)
    parts = [json.loads(event.removeprefix("data: ")) for event in events[:-1]]
    said = [choice["delta"].get("content", "") for part in parts for choice in part["choices"]]
    assert "".join(said) == text


@pytest.mark.parametrize("is_stream", [False, True])
def test_thinking_has_fields_of_its_own(serve: Serve, is_stream: bool) -> None:
    client = serve("Hm, yes.\n</think>\n\nYes.", model=REASONER).client()
    extra = {"chat_template_kwargs": {"enable_thinking": True}}
    if is_stream:
        stream = client.chat.completions.create(
            model=REASONER, messages=ASK, extra_body=extra, stream=True
        )
        deltas = [c.choices[0].delta.model_dump() for c in stream if c.choices]
        said = {k: "".join(d.get(k) or "" for d in deltas) for k in ("content", "reasoning")}
        said["reasoning_content"] = "".join(d.get("reasoning_content") or "" for d in deltas)
        said = {key: text.strip() for key, text in said.items()}
    else:
        answer = client.chat.completions.create(model=REASONER, messages=ASK, extra_body=extra)
        said = answer.choices[0].message.model_dump()
        assert answer.usage is not None
        assert answer.usage.completion_tokens_details is not None
        reasoning_tokens = answer.usage.completion_tokens_details.reasoning_tokens
        assert reasoning_tokens is not None
        assert 8 <= reasoning_tokens < answer.usage.completion_tokens
    assert said["content"] == "Yes."
    assert said["reasoning_content"] == said["reasoning"] == "Hm, yes."


@pytest.mark.parametrize(
    ("extra", "system", "toggle"),
    [
        ({}, None, "detailed thinking on"),
        ({"chat_template_kwargs": {"enable_thinking": False}}, None, "detailed thinking off"),
        ({"reasoning_effort": "none"}, None, "detailed thinking off"),
        ({"reasoning_effort": "low"}, "detailed thinking off", "detailed thinking on"),
        ({"thinking_budget": 0}, None, "detailed thinking off"),
        ({"reasoning": {"max_tokens": 99}}, None, "detailed thinking on"),
        ({}, "detailed thinking off", "detailed thinking off"),
    ],
)
def test_what_switches_thinking_reaches_the_prompt(
    serve: Serve, extra: dict[str, Any], system: str | None, toggle: str
) -> None:
    server = serve("ok", model=REASONER)
    messages = [{"role": "system", "content": system}, *ASK] if system else ASK
    server.client().chat.completions.create(
        model=REASONER, messages=messages, extra_body=extra, max_tokens=400
    )
    session: Any = server.engine.session
    prompt = server.engine.tokenizer.decode(session.held[0], skip_special=False)
    assert f"system\n{toggle}" in prompt
    assert prompt.count("detailed thinking") == 1


def test_a_budget_leads_out_of_thinking(serve: Serve) -> None:
    client = serve("One, two, three, four, five, six", model=REASONER).client()
    answer = client.chat.completions.create(
        model=REASONER, messages=ASK, extra_body={"thinking_budget": 10}, max_tokens=300
    )
    message = answer.choices[0].message.model_dump()
    assert message["reasoning_content"].startswith("One, two,")
    assert "answer now" in message["reasoning_content"]
    assert message["content"].endswith("four, five, six")


def test_a_required_call_fits_its_schema(serve: Serve) -> None:
    client = serve().client()  # whatever this model would say, it has to be the call
    answer = client.chat.completions.create(
        model="tiny", messages=ASK, tools=[WEATHER], tool_choice="required", max_tokens=300
    )
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.tool_calls is not None
    call: Any = choice.message.tool_calls[0]
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments)["city"] in ("Paris", "Rome")


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_call_the_model_makes_is_a_call(serve: Serve, is_stream: bool) -> None:
    text = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
    client = serve(text).client()
    found: Any
    if is_stream:
        stream = client.chat.completions.create(
            model="tiny", messages=ASK, tools=[WEATHER], stream=True
        )
        chunks = [c.choices[0] for c in stream if c.choices]
        calls = [call for c in chunks for call in c.delta.tool_calls or ()]
        assert len(calls) == 1
        found = calls[0].function
        assert chunks[-1].finish_reason == "tool_calls"
    else:
        answer = client.chat.completions.create(model="tiny", messages=ASK, tools=[WEATHER])
        assert answer.choices[0].message.tool_calls is not None
        first: Any = answer.choices[0].message.tool_calls[0]
        found = first.function
    assert found.name == "weather"
    assert json.loads(found.arguments) == {"city": "Rome"}


def test_a_schema_is_enforced(serve: Serve) -> None:
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}, "n": {"enum": [1, 2, 3]}},
        "required": ["ok", "n"],
        "additionalProperties": False,
    }
    form: Any = {"type": "json_schema", "json_schema": {"name": "it", "schema": schema}}
    answer = (
        serve()
        .client()
        .chat.completions.create(
            model="tiny",
            messages=ASK,
            response_format=form,
            temperature=1.5,
            seed=3,
            max_tokens=200,
        )
    )
    assert answer.choices[0].message.content is not None
    data = json.loads(answer.choices[0].message.content)
    assert set(data) == {"ok", "n"}
    assert data["n"] in (1, 2, 3)


def test_several_answers_with_logprobs_are_the_same_again_with_a_seed(serve: Serve) -> None:
    client = serve().client()

    def ask() -> Any:
        return client.chat.completions.create(
            model="tiny", messages=ASK, n=3, seed=5, temperature=1, max_tokens=8,
            logprobs=True, top_logprobs=2,
        ).choices  # fmt: skip

    first, again = ask(), ask()
    assert [c.message.content for c in first] == [c.message.content for c in again]
    assert len({c.message.content for c in first}) == 3
    for choice in first:
        for token in choice.logprobs.content:
            assert len(token.top_logprobs) == 2
            assert token.logprob <= token.top_logprobs[0].logprob <= 0


def test_a_text_is_continued(serve: Serve) -> None:
    client = serve(" and then.", " and then.").client()
    whole = client.completions.create(model="tiny", prompt="First this,", max_tokens=50)
    assert whole.choices[0].text == " and then."
    parts = client.completions.create(
        model="tiny", prompt="First this,", max_tokens=50, stream=True
    )
    assert "".join(c.choices[0].text for c in parts if c.choices) == " and then."


@pytest.mark.parametrize("as_ids", [False, True])
def test_every_prompt_counts_once(serve: Serve, as_ids: bool) -> None:
    server = serve(num_slots=4)
    encode = server.engine.tokenizer.encode
    prompts = ["Hello", "A longer one than that"]
    if as_ids:
        prompts_sent: Any = [encode(prompt, add_special=True) for prompt in prompts]
    else:
        prompts_sent = prompts
    body: dict[str, Any] = {"prompt": prompts_sent, "n": 2, "max_tokens": 3, "seed": 1}
    url = f"{server.url}/v1/completions"
    whole = httpx.post(url, json=body).json()["usage"]
    streaming = {**body, "stream": True, "stream_options": {"include_usage": True}}
    lines = httpx.post(url, json=streaming).text.split("\n\n")
    parts = [json.loads(line.removeprefix("data: ")) for line in lines if "{" in line]
    for usage in (whole, parts[-1]["usage"]):
        assert usage["prompt_tokens"] == sum(len(encode(p, add_special=True)) for p in prompts)
        assert 4 <= usage["completion_tokens"] <= 12
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert all(part["usage"] is None for part in parts[:-1])


def test_a_second_turn_is_not_computed_again(serve: Serve) -> None:
    client = serve().client()
    messages: list[Any] = [{"role": "user", "content": "x" * 300}]
    first = client.chat.completions.create(model="tiny", messages=messages, max_tokens=5)
    messages += [
        {"role": "assistant", "content": first.choices[0].message.content},
        {"role": "user", "content": "More?"},
    ]
    again = client.chat.completions.create(model="tiny", messages=messages, max_tokens=5)
    assert first.usage is not None
    assert again.usage is not None
    assert again.usage.prompt_tokens_details is not None
    assert (again.usage.prompt_tokens_details.cached_tokens or 0) >= 300


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"audio": {}}, "audio", "not supported"),
        ({"temperature": -1}, "temperature", "greater than or equal to 0"),
        ({"n": 0}, "n", "greater than or equal to 1"),
        ({"frequency_penalty": 0.5}, "frequency_penalty", "only 0 is supported"),
        ({"tool_choice": "required"}, "tool_choice", "has none"),
        ({"reasoning_effort": "high"}, "reasoning_effort", "no thinking to switch on"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_completion_tokens", "give one"),
        ({"stop": [""]}, "stop", "empty"),
        ({"stop": [str(i) for i in range(65)]}, "stop", "65 texts, 64 may be"),
        ({"stop": "y" * 1025}, "stop", "1025 characters, 1024 may be"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "needs `stream`"),
        ({"logit_bias": {"999999": 1}}, "logit_bias", "token id 999999"),
        ({"tools": [{"type": "custom", "custom": {}}]}, "tools.0.type", "function"),
        (
            {"tools": [{"type": "function", "function": {"name": "x", "cached": True}}]},
            "tools.0.function.cached", "not supported",
        ),
        ({"logit_bias": {"x": 1}}, "logit_bias", "no token id"),
        ({"store": True}, "store", "False"),
        ({"messages": [{"role": "user", "content": "y" * 2000}]}, "messages", "holds 900"),
        ({"messages": []}, "messages", "at least 1"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages", "text",
        ),
        (
            {"response_format": {"type": "json_schema",
                                 "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}},
            "response_format", "nonsense",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {
                "name": "x", "schema": {"enum": ["y" * 1000] * 140}}}},
            "response_format", "the limit is 131072",
        ),
        ({"messages": [1] * 200_000}, "messages.0", "valid dictionary"),
        ({str(i): 1 for i in range(1001)}, None, "1001 values"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(
    serve: Serve, body: dict[str, Any], param: str | None, words: str
) -> None:
    answer = httpx.post(
        f"{serve('x').url}/v1/chat/completions", json={"messages": ASK, **body}, timeout=20
    )
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] is None if param is None else error["param"].startswith(param)
    assert words in error["message"]


def test_more_answers_than_there_is_room_for_are_never_asked_for_again(serve: Serve) -> None:
    url = f"{serve(num_slots=2, queue_limit=1).url}/v1/chat/completions"
    for n, status in ((3, 200), (4, 400)):
        answer = httpx.post(url, json={"messages": ASK, "max_tokens": 2, "n": n})
        assert answer.status_code == status
    assert answer.json()["error"]["param"] == "n"
    assert "room for 3" in answer.json()["error"]["message"]


def test_an_answer_can_be_sent_back_as_it_came(serve: Serve) -> None:
    client = serve("Good day.", "Yes.").client()
    first = client.chat.completions.create(model="tiny", messages=ASK).choices[0].message
    more = {"role": "user", "content": "More?"}
    messages: Any = [*ASK, {**first.model_dump(), "annotations": [], "parsed": {"a": 1}}, more]
    again = client.chat.completions.create(model="tiny", messages=messages)
    assert again.choices[0].message.content == "Yes."


def test_a_call_can_be_sent_back_as_the_official_client_parsed_it(serve: Serve) -> None:
    server = serve()
    tools: Any = [{**WEATHER, "function": {**WEATHER["function"], "strict": True}}]
    parsed = server.client().chat.completions.parse(
        model="tiny", messages=ASK, tools=tools, tool_choice="required", max_tokens=300
    )
    message = parsed.choices[0].message.model_dump()
    called = message["tool_calls"][0]
    assert called["function"]["parsed_arguments"]["city"] in ("Paris", "Rome")
    result = {"role": "tool", "tool_call_id": called["id"], "content": "Fine."}
    url = f"{server.url}/v1/chat/completions/render"
    answer = httpx.post(url, json={"messages": [*ASK, message, result]})
    assert answer.status_code == 200, answer.text
    prompt = server.engine.tokenizer.decode(answer.json()["token_ids"], skip_special=False)
    assert "parsed_arguments" not in prompt


def test_errors_are_the_clients_own(serve: Serve) -> None:
    server = serve("x", keys=("secret", "other"))
    for key in ("secret", "other"):
        assert server.client(api_key=key).models.list().data[0].id == "tiny"
    with pytest.raises(openai.AuthenticationError):
        server.client(api_key="wrong").models.list()
    with pytest.raises(openai.NotFoundError, match="only `tiny`"):
        server.client(api_key="secret").chat.completions.create(model="gpt-9", messages=ASK)
    assert httpx.get(f"{server.url}/health").status_code == 200
    assert httpx.get(f"{server.url}/metrics").status_code == 401


def test_other_names_types_and_sizes_are_refused(serve: Serve) -> None:
    url = f"{serve('x', max_body_bytes=1024).url}/v1/chat/completions"
    rebound = httpx.post(url, json={"messages": ASK}, headers={"Host": "evil.example"})
    assert rebound.status_code == 403
    assert httpx.post(url, content=b"{}", headers={"Content-Type": "text/plain"}).status_code == 415
    assert httpx.post(url, json={"messages": "y" * 2000}).status_code == 413
    kind = {"Content-Type": "application/json"}
    zipped = httpx.post(url, content=b"{}", headers={**kind, "Content-Encoding": "gzip"})
    assert zipped.status_code == 415
    for body in (b"\xff\xfe{", b"[" * 900, b"[]", b"{", b'{"seed": 1e999}'):
        assert httpx.post(url, content=body, headers=kind).status_code == 400


@pytest.mark.parametrize("is_stream", [False, True])
def test_who_goes_away_frees_the_slot(
    serve: Serve, is_stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(num_slots=1)
    session: Any = server.engine.session
    decode = session.decode

    def slow(*args: Any) -> Any:
        time.sleep(0.02)  # 800 tokens take 16 s: nobody waits for the end of that
        return decode(*args)

    monkeypatch.setattr(session, "decode", slow)
    never = {str(i): -100 for i in server.engine.tokenizer.stop_ids}
    body = {"messages": ASK, "max_tokens": 800, "stream": is_stream, "logit_bias": never}
    url = f"{server.url}/v1/chat/completions"
    if is_stream:
        with httpx.stream("POST", url, json=body) as answer:
            next(answer.iter_raw())
    else:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(url, json=body, timeout=0.5)
    wait_until(lambda: server.service.scheduler.status().busy == 0)
    text = httpx.get(f"{server.url}/metrics").text
    assert 'edgekit_jobs_total{reason="cancelled"} 1.0' in text


def wait_until(is_true: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.01)


def test_a_full_queue_says_when_to_come_again(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    server: Running = serve(num_slots=1, queue_limit=0)
    session: Any = server.engine.session
    decode = session.decode

    def slow(*args: Any) -> Any:
        time.sleep(0.02)
        return decode(*args)

    monkeypatch.setattr(session, "decode", slow)
    never = dict.fromkeys(server.engine.tokenizer.stop_ids, -100)
    bias: Any = {str(i): value for i, value in never.items()}
    client = server.client()
    stream = client.chat.completions.create(
        model="tiny", messages=ASK, stream=True, max_tokens=800, logit_bias=bias
    )
    next(iter(stream))
    with pytest.raises(openai.RateLimitError) as caught:
        client.chat.completions.create(model="tiny", messages=ASK)
    assert int(caught.value.response.headers["retry-after"]) >= 1
    stream.close()
    wait_until(lambda: server.service.scheduler.status().busy == 0)
    client.chat.completions.create(model="tiny", messages=ASK, max_tokens=2)


def test_health_models_tokens_and_status(serve: Serve) -> None:
    server = serve("x", model=REASONER)
    assert httpx.get(f"{server.url}/health").json() == {"status": "ok"}
    model = httpx.get(f"{server.url}/v1/models").json()["data"][0]
    assert model["context_length"] == 900
    assert model["reasoning"]["allowed_options"] == ["on", "off"]
    told = httpx.post(
        f"{server.url}/tokenize", json={"content": "abc", "add_special_tokens": False}
    ).json()
    assert told["count"] == len(told["tokens"]) > 0
    assert server.engine.tokenizer.decode(told["tokens"]) == "abc"
    body = {"messages": ASK, "add_special_tokens": True}
    assert httpx.post(f"{server.url}/tokenize", json=body).status_code == 400
    status = httpx.get(f"{server.url}/v1/status").json()
    assert status["slots"] == {"total": 1, "busy": 0}
    assert status["memory"]["rss_bytes"] > 0
