"""What single fields of /v1/chat/completions do, and what /v1/models says of a model."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from edgekit.serve.ask import EFFORT_BUDGETS
from edgekit.serve.fields import BUDGET_NAMES
from tests.serve.conftest import Running, Serve

REASONER = "Llama-3.1-Nemotron-Nano-8B-v1"
ASK: Any = [{"role": "user", "content": "Hello?"}]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": PARAMETERS}}
    for name in ("weather", "time")
]


def ask(server: Running, **body: Any) -> Any:
    """The only choice of the answer, and its usage."""
    url = f"{server.url}/v1/chat/completions"
    answer = httpx.post(url, json={"messages": ASK, **body}, timeout=30)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]


def prompt_of(server: Running) -> str:
    session: Any = server.engine.session
    return server.engine.tokenizer.decode(session.held[0], skip_special=False)


@pytest.mark.parametrize("stop", ["END", ["four", "END"]])
def test_a_stop_string_ends_the_answer_but_not_the_thinking(serve: Serve, stop: Any) -> None:
    choice = ask(serve("One END, two. END three"), stop=stop)
    assert (choice["message"]["content"], choice["finish_reason"]) == ("One ", "stop")
    server = serve("A END b.\n</think>\n\nYes END no", model=REASONER)
    choice = ask(server, stop=stop)
    assert choice["message"]["content"] == "Yes "
    assert choice["message"]["reasoning"] == "A END b."


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_a_limit_of_tokens_is_held(serve: Serve, name: str) -> None:
    choice = ask(serve("One, two, three, four"), **{name: 3}, logprobs=True)
    assert choice["finish_reason"] == "length"
    assert len(choice["logprobs"]["content"]) == 3


def test_a_bias_decides_what_is_said(serve: Serve) -> None:
    server = serve()
    token_id = server.engine.tokenizer.encode("q", add_special=False)[0]
    choice = ask(server, logit_bias={str(token_id): 100}, max_tokens=5)
    assert choice["message"]["content"] == "qqqqq"


def test_logprobs_in_a_stream_are_those_of_the_whole(serve: Serve) -> None:
    server = serve()
    body = {"messages": ASK, "seed": 7, "temperature": 1, "max_tokens": 6, "logprobs": True,
            "top_logprobs": 1}  # fmt: skip
    whole = ask(server, **body)["logprobs"]["content"]
    url = f"{server.url}/v1/chat/completions"
    text = httpx.post(url, json={**body, "stream": True}).text
    parts = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    streamed = [
        token
        for part in parts
        for choice in part["choices"]
        for token in (choice["logprobs"] or {"content": []})["content"]
    ]
    assert [t["token"] for t in streamed] == [t["token"] for t in whole]
    assert [t["logprob"] for t in streamed] == pytest.approx([t["logprob"] for t in whole])


def test_several_answers_come_in_one_stream(serve: Serve) -> None:
    server = serve()
    body = {"messages": ASK, "n": 3, "seed": 5, "temperature": 1, "max_tokens": 8}
    url = f"{server.url}/v1/chat/completions"
    whole = httpx.post(url, json=body).json()["choices"]
    text = httpx.post(url, json={**body, "stream": True}).text
    parts = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    said = {0: "", 1: "", 2: ""}
    for choice in [choice for part in parts for choice in part["choices"]]:
        said[choice["index"]] += choice["delta"].get("content", "")
    assert said == {choice["index"]: choice["message"]["content"] for choice in whole}
    assert text.endswith("data: [DONE]\n\n")


def test_any_json_object_can_be_asked_for(serve: Serve) -> None:
    form = {"type": "json_object"}
    choice = ask(serve(), response_format=form, max_tokens=60, temperature=1, seed=2)
    assert isinstance(json.loads(choice["message"]["content"]), dict)


def test_a_tool_can_be_named_and_forbidden(serve: Serve) -> None:
    named = {"type": "function", "function": {"name": "time"}}
    choice = ask(serve(), tools=TOOLS, tool_choice=named, max_tokens=300)
    (call,) = choice["message"]["tool_calls"]
    assert call["function"]["name"] == "time"
    assert json.loads(call["function"]["arguments"])["city"] in ("Paris", "Rome")
    server = serve(CALL)
    choice = ask(server, tools=TOOLS, tool_choice="none")
    assert "tool_calls" not in choice["message"]
    assert "weather" not in prompt_of(server).partition("assistant")[0]


FORM = {
    "type": "object",
    "properties": {"sky": {"$ref": "#/$defs/Sky"}},
    "required": ["sky"],
    "additionalProperties": False,
    "$defs": {"Sky": {"enum": ["blue", "grey"]}},
}


def test_beside_tools_an_answer_is_of_its_form_or_a_call(serve: Serve) -> None:
    named = {"type": "json_schema", "json_schema": {"name": "sky", "schema": FORM}}
    seen = set()
    server = serve()
    for seed in range(12):
        choice = ask(server, response_format=named, tools=TOOLS, seed=seed, temperature=1.5,
                     max_tokens=300)  # fmt: skip
        message = choice["message"]
        seen.add(choice["finish_reason"])
        if choice["finish_reason"] == "tool_calls":
            (call,) = message["tool_calls"]
            assert message["content"] is None
            assert json.loads(call["function"]["arguments"])["city"] in ("Paris", "Rome")
        else:
            assert json.loads(message["content"])["sky"] in ("blue", "grey")
    assert seen == {"stop", "tool_calls"}


@pytest.mark.parametrize(
    ("form", "says", "content"),
    [
        ("json_schema", '{"sky": "blue"}', '{"sky": "blue"}'),
        ("json_schema", '{"name": "weather", "arguments": {"city": "Rome"}}', None),
        ("json_object", '{"a": 1}', '{"a": 1}'),
        ("json_object", '{"name": "weather", "arguments": {"city": "Rome"}}', None),
    ],
)
def test_beside_tools_a_model_may_choose(
    serve: Serve, form: str, says: str, content: str | None
) -> None:
    wanted: dict[str, Any] = {"type": form}
    if form == "json_schema":
        wanted["json_schema"] = {"name": "sky", "schema": FORM}
    choice = ask(serve(says), response_format=wanted, tools=TOOLS)
    assert choice["message"]["content"] == content
    assert ("tool_calls" in choice["message"]) == (content is None)
    must = ask(serve(), response_format=wanted, tools=TOOLS, tool_choice="required", max_tokens=300)
    assert must["finish_reason"] == "tool_calls"
    never = ask(serve(says), response_format=wanted, tools=TOOLS, tool_choice="none",
                max_tokens=300)  # fmt: skip
    assert "tool_calls" not in never["message"]


def test_calls_can_come_one_at_a_time(serve: Serve) -> None:
    for is_parallel, count in ((True, 2), (False, 1)):
        choice = ask(serve(CALL + CALL), tools=TOOLS, parallel_tool_calls=is_parallel)
        assert len(choice["message"]["tool_calls"]) == count
        assert choice["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("name", [*BUDGET_NAMES, "reasoning.max_tokens"])
def test_a_budget_has_many_names(serve: Serve, name: str) -> None:
    def given(budget: int) -> dict[str, Any]:
        return {"reasoning": {"max_tokens": budget}} if "." in name else {name: budget}

    server = serve("Yes.", model=REASONER)
    ask(server, **given(0))
    assert "system\ndetailed thinking off" in prompt_of(server)
    message = ask(serve("One, two, three, four, five", model=REASONER), **given(8))["message"]
    assert "answer now" in message["reasoning"]
    assert message["content"].endswith("five")


@pytest.mark.parametrize(
    "extra",
    [
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"chat_template_kwargs": {"thinking": False}},
        {"enable_thinking": False},
        {"reasoning": {"enabled": False}},
        {"reasoning": {"effort": "none"}},
        {"reasoning_effort": "none"},
        {"messages": [{"role": "system", "content": "Be kind. detailed thinking off"}, *ASK]},
        {"messages": [{"role": "developer", "content": "detailed thinking off\nBe kind."}, *ASK]},
    ],
)
def test_thinking_is_switched_off_in_many_ways(serve: Serve, extra: dict[str, Any]) -> None:
    server = serve("Yes.", model=REASONER)
    message = ask(server, **extra)["message"]
    assert message == {"role": "assistant", "content": "Yes."}
    prompt = prompt_of(server)
    assert prompt.count("detailed thinking") == 1
    assert "system\ndetailed thinking off" in prompt
    assert ("Be kind." in prompt) == ("messages" in extra)


def test_a_field_comes_before_the_words_of_the_system_message(serve: Serve) -> None:
    server = serve("Hm.\n</think>\n\nYes.", model=REASONER)
    messages = [{"role": "system", "content": "detailed thinking off"}, *ASK]
    message = ask(server, messages=messages, reasoning_effort="medium")["message"]
    assert (message["reasoning"], message["content"]) == ("Hm.", "Yes.")
    assert "system\ndetailed thinking on" in prompt_of(server)


def test_fields_that_contradict_each_other_are_refused(serve: Serve) -> None:
    url = f"{serve('x', model=REASONER).url}/v1/chat/completions"
    for body, name in (
        ({"reasoning_effort": "none", "enable_thinking": True}, "enable_thinking"),
        ({"thinking_budget": 0, "enable_thinking": True}, "enable_thinking"),
        ({"thinking_budget": 5, "reasoning_budget": 6}, "reasoning_budget"),
        ({"reasoning_effort": "low", "reasoning": {"effort": "high"}}, "reasoning.effort"),
    ):
        answer = httpx.post(url, json={"messages": ASK, **body})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, name)


@pytest.mark.parametrize("model", ["tiny", REASONER, "DeepSeek-R1-Distill-Llama-8B"])
def test_a_model_is_described(serve: Serve, model: str) -> None:
    server = serve("x", model=model, max_new_tokens=100)
    told = httpx.get(f"{server.url}/v1/models/{model}").json()
    assert httpx.get(f"{server.url}/v1/models").json() == {"object": "list", "data": [told]}
    assert told["id"] == model
    assert told["context_length"] == told["max_model_len"] == 900
    assert told["max_new_tokens"] == 100
    assert (told["precision"], told["kv_precision"]) == ("fp16", "fp16")
    assert (told["profile"], told["backend"]) == ("cpu", "onnxruntime")
    if model == "tiny":
        assert told["reasoning"] is None
        return
    reasoning = told["reasoning"]
    assert reasoning["default"] in reasoning["allowed_options"] == ["on", "off"]
    assert reasoning["effort_budgets"] == EFFORT_BUDGETS
    for option in reasoning["allowed_options"]:
        ask(server, enable_thinking=option == "on")
        is_open = prompt_of(server).rstrip().endswith("<think>\nx")
        assert is_open == (option == "on")
