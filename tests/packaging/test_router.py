"""scripts/router, vLLM's router with our options, before replicas that are real servers."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.packaging.conftest import EDGEKIT, free_port, wait_until
from tests.serve.conftest import Running, Serve

pytestmark = pytest.mark.slow

Route = Callable[..., str]
SCRIPT = Path(__file__).parents[2] / "scripts" / "router"
REASONER = "Llama-3.1-Nemotron-Nano-8B-v1"
KEY = {"Authorization": "Bearer secret"}
ASK: Any = [{"role": "user", "content": "Hello?"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


@pytest.fixture
def route() -> Iterator[Route]:
    """`route(url, …)`: the address of a router before these replicas."""
    routers: list[subprocess.Popen[bytes]] = []

    def start(*replicas: str) -> str:
        port, metrics = str(free_port()), str(free_port())
        words = [str(SCRIPT), *replicas, "--", "--port", port, "--prometheus-port", metrics]
        routers.append(subprocess.Popen(words, stdout=subprocess.DEVNULL))
        url = f"http://127.0.0.1:{port}"
        # the first time it is installed
        wait_until(lambda: httpx.get(f"{url}/health").status_code == 200, seconds=240)
        return url

    yield start
    for router in routers:
        router.terminate()
        router.wait(20)


def client_of(url: str, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)


def stream_of(url: str, **settings: Any) -> tuple[str, str, str, Any]:
    """Thoughts by both names, the answer, and the usage of a stream."""
    chunks = list(
        client_of(url).chat.completions.create(
            model=REASONER, messages=ASK, stream=True, stream_options={"include_usage": True},
            **settings,
        )
    )  # fmt: skip
    deltas: list[Any] = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    texts = [
        "".join(getattr(delta, name, None) or "" for delta in deltas)
        for name in ("reasoning_content", "reasoning", "content")
    ]
    return texts[0], texts[1], texts[2], chunks[-1].usage


def test_thoughts_and_usage_come_through_as_they_are(serve: Serve, route: Route) -> None:
    text = "<think>\nLet me see.\n</think>\n\nGood day."
    server = serve(text, text, model=REASONER)
    body: Any = {"chat_template_kwargs": {"enable_thinking": True}, "thinking_budget": 100}
    alone = stream_of(server.url, extra_body=body)
    routed = stream_of(route(server.url), extra_body=body)
    assert routed[:3] == alone[:3]
    assert routed[0] == routed[1]
    assert "Let me see." in routed[0]
    assert routed[2] == "Good day."
    assert routed[3].completion_tokens_details.reasoning_tokens > 0
    assert routed[3].completion_tokens == alone[3].completion_tokens


def test_tool_calls_come_through(serve: Serve, route: Route) -> None:
    text = '<TOOLCALL>[{"name": "weather", "arguments": {"city": "Paris"}}]</TOOLCALL>'
    server = serve(text, model=REASONER)
    answer = client_of(route(server.url)).chat.completions.create(
        model=REASONER, messages=ASK, tools=[WEATHER], reasoning_effort="none"
    )
    calls: Any = answer.choices[0].message.tool_calls
    assert [call.function.name for call in calls] == ["weather"]
    assert json.loads(calls[0].function.arguments) == {"city": "Paris"}


def test_a_stream_is_not_held_back(serve: Serve, route: Route) -> None:
    server = serve()
    slow_down(server.engine.session)
    url = route(server.url)
    body = {"messages": ASK, "max_tokens": 60, "stream": True}
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=30) as answer:
        lines = (line for line in answer.iter_lines() if line)
        next(lines)
        assert httpx.get(f"{server.url}/v1/status").json()["slots"]["busy"] == 1
        assert list(lines)[-1] == "data: [DONE]"


def test_errors_and_keys_come_through(serve: Serve, route: Route) -> None:
    url = route(serve(keys=("secret",)).url)
    assert httpx.get(f"{url}/v1/models").status_code == 401
    assert httpx.get(f"{url}/v1/models", headers=KEY).status_code == 200
    asked = {"messages": ASK, "max_tokens": 4}
    chat = f"{url}/v1/chat/completions"
    assert httpx.post(chat, json=asked).status_code == 401
    assert httpx.post(chat, json=asked, headers=KEY).status_code == 200
    refused = httpx.post(chat, json={**asked, "nonsense": 1}, headers=KEY)
    assert refused.status_code == 400
    assert "nonsense" in refused.json()["error"]["message"]


def slow_down(session: Any) -> None:
    """A step takes a hundredth of a second."""
    decode = session.decode

    def slow(slots: Any, token_ids: Any) -> Any:
        time.sleep(0.01)
        return decode(slots, token_ids)

    session.decode = slow


def never_ending(server: Any, tokens: int) -> dict[str, Any]:
    """A request for so many tokens: the ids that would end it are forbidden."""
    stop_ids = server.engine.tokenizer.stop_ids
    return {"messages": ASK, "max_tokens": tokens, "stream": True,
            "logit_bias": {str(i): -100 for i in stop_ids}}  # fmt: skip


def answered(url: str) -> int:
    """Chats with status 200 since a replica started."""
    text = httpx.get(f"{url}/metrics", headers=KEY).text
    name = 'edgekit_http_requests_total{path="/v1/chat/completions",status="200"} '
    found = [line for line in text.splitlines() if line.startswith(name)]
    return int(float(found[0].removeprefix(name))) if found else 0


def ask(url: str, messages: Any, tokens: int = 6) -> Any:
    body = {"messages": messages, "max_tokens": tokens}
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=30)
    assert answer.status_code == 200, answer.text
    return answer.json()


def first_and_second(url: str, *servers: Running) -> list[Running]:
    """The replica that an idle router chooses, and the other one."""
    ask(url, ASK)
    return sorted(servers, key=lambda server: -answered(server.url))


def test_a_replica_is_left_alone_before_it_is_full(serve: Serve, route: Route) -> None:
    # each takes four requests, the fifth would be a 429; all six have the same beginning
    servers = [serve(num_slots=1, queue_limit=3) for _ in range(2)]
    for server in servers:
        slow_down(server.engine.session)
    url = route(*(server.url for server in servers))
    ask(url, ASK)
    body = never_ending(servers[0], 100)
    answers: list[httpx.Response] = []

    def post() -> None:
        answers.append(httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60))

    threads = [threading.Thread(target=post) for _ in range(6)]
    for thread in threads:
        thread.start()
        time.sleep(0.05)  # each sees the load of those before
    for thread in threads:
        thread.join()
    assert [answer.status_code for answer in answers] == [200] * 6
    assert all("data: [DONE]" in answer.text for answer in answers)
    assert all(answered(server.url) >= 2 for server in servers)


def test_a_conversation_goes_back_to_where_it_is_cached(serve: Serve, route: Route) -> None:
    servers = [serve(num_slots=2) for _ in range(2)]
    url = route(*(server.url for server in servers))
    first, second = first_and_second(url, *servers)
    slow_down(first.engine.session)
    talk: list[Any] = [{"role": "system", "content": "The sea and its ships. " * 6}, *ASK]
    body = never_ending(first, 700)
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=60) as busy:
        lines = busy.iter_lines()  # kept: its end closes the connection
        next(lines)
        talk.append(ask(url, talk)["choices"][0]["message"])
        assert answered(second.url) == 1
    wait_until(lambda: not httpx.get(f"{first.url}/v1/status").json()["slots"]["busy"])
    time.sleep(0.5)  # the router, too, has seen that the client went away
    before = answered(first.url)
    ask(url, [{"role": "user", "content": "Quite another matter, and a long one at that."}])
    assert answered(first.url) == before + 1  # it is idle, and would be chosen
    for turn in range(2, 5):
        talk.append({"role": "user", "content": "And?"})
        answer = ask(url, talk)
        usage = answer["usage"]
        assert usage["prompt_tokens_details"]["cached_tokens"] > usage["prompt_tokens"] / 2
        assert answered(second.url) == turn
        talk.append(answer["choices"][0]["message"])


def test_the_prompt_can_be_had_without_an_answer(serve: Serve) -> None:
    server = serve()
    body = {"messages": ASK, "max_tokens": 2}
    got = httpx.post(f"{server.url}/v1/chat/completions/render", json=body).json()
    plain = httpx.post(f"{server.url}/tokenize", json={"messages": ASK}).json()
    assert got == {"model": "tiny", "token_ids": plain["tokens"]}
    assert ask(server.url, ASK)["usage"]["prompt_tokens"] == len(got["token_ids"])
    bad = httpx.post(f"{server.url}/v1/chat/completions/render", json={**body, "nonsense": 1})
    assert bad.status_code == 400


class Replica:
    """An `edgekit serve` on a port of its own, which can be killed and started again."""

    def __init__(self, store: Path, keys: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._words = ["serve", "--store", str(store), "--port", str(self.port)]
        self._words += ["--slots", "2", "--threads", "1", "--api-key-file", str(keys)]
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen([*EDGEKIT, *self._words], stderr=subprocess.DEVNULL)
        wait_until(lambda: httpx.get(f"{self.url}/health").status_code == 200)

    def end(self, number: signal.Signals) -> None:
        self.process.send_signal(number)
        self.process.wait(40)

    def busy(self) -> bool:
        status = httpx.get(f"{self.url}/v1/status", headers=KEY).json()
        return bool(status["slots"]["busy"])


@pytest.fixture
def replicas(store: Path, tmp_path: Path) -> Iterator[list[Replica]]:
    (tmp_path / "keys").write_text("secret\n")
    made = [Replica(store, tmp_path / "keys") for _ in range(2)]
    yield made
    for replica in made:
        replica.process.kill()
        replica.process.wait()


class Clients:
    """Three of them, one request after the other until told to end."""

    def __init__(self, url: str) -> None:
        self._url = f"{url}/v1/chat/completions"
        self._is_over = threading.Event()
        self.statuses: list[int] = []
        self._threads = [threading.Thread(target=self._ask, args=[n]) for n in range(3)]
        for thread in self._threads:
            thread.start()

    def _ask(self, who: int) -> None:
        with httpx.Client(headers=KEY, timeout=60) as client:
            while not self._is_over.is_set():
                text = f"{who} asks for the {len(self.statuses)}th time"
                body = {"messages": [{"role": "user", "content": text}], "max_tokens": 8}
                self.statuses.append(client.post(self._url, json=body).status_code)
                time.sleep(0.02)

    def go_on(self, count: int = 20) -> None:
        """Wait for so many more answers."""
        wanted = len(self.statuses) + count
        wait_until(lambda: len(self.statuses) >= wanted)

    def end(self) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()


def test_no_request_is_lost_when_replicas_die_drain_and_come_back(
    replicas: list[Replica], route: Route
) -> None:
    url = route(*(replica.url for replica in replicas))
    clients = Clients(url)
    try:
        clients.go_on()
        replicas[0].end(signal.SIGKILL)
        clients.go_on()
        replicas[0].start()
        wait_until(lambda: answered(replicas[0].url) > 5)  # since it came back
        replicas[1].end(signal.SIGTERM)
        clients.go_on()
        replicas[1].start()
        wait_until(lambda: answered(replicas[1].url) > 5)
    finally:
        clients.end()
    assert set(clients.statuses) == {200}


def test_the_stream_of_a_killed_replica_is_cut_and_not_taken_for_whole(
    replicas: list[Replica], route: Route
) -> None:
    url = route(*(replica.url for replica in replicas))
    body = {"messages": ASK, "max_tokens": 450, "n": 4, "stream": True,
            "logit_bias": {"1": -100, "2": -100}}  # fmt: skip
    lines: list[str] = []
    with (
        pytest.raises(httpx.RemoteProtocolError),
        httpx.stream(
            "POST", f"{url}/v1/chat/completions", json=body, headers=KEY, timeout=60
        ) as answer,
    ):
        for line in answer.iter_lines():
            lines.append(line)
            if len(lines) == 6:
                [busy] = [replica for replica in replicas if replica.busy()]
                busy.end(signal.SIGKILL)
    assert "data: [DONE]" not in lines
