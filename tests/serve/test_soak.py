"""What `scripts/serve-load` does for minutes, for a moment: and that it sees what goes wrong."""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from serve_load.client import Address, LostError, Reply, Texts, ask
from serve_load.servers import Server
from serve_load.soak import Tally, idle_status, soak
from serve_load.speed import throughput
from tests.serve.conftest import Running, Serve

WORDS = "the quick brown fox jumps over the lazy dog " * 40


def as_process(server: Running) -> Server:
    """A server within this process, as if it had one of its own."""
    process = cast("subprocess.Popen[bytes]", SimpleNamespace(pid=os.getpid()))
    address = Address(host="127.0.0.1", port=server.port)
    return Server(name="edgekit", address=address, process=process, log=Path(os.devnull))


def test_clients_of_every_kind_are_answered_or_refused(serve: Serve) -> None:
    server = as_process(serve(num_slots=3, queue_limit=8))
    tally = asyncio.run(soak(server, Texts(WORDS, 0), clients=24, seconds=3, seed=0))
    assert not tally.problems
    assert tally.ends["lost"] == 0
    assert tally.ends["answered"] > 20
    assert tally.ends["refused 429"] > 0
    assert tally.answered_twice == 0
    assert asyncio.run(idle_status(server, within_s=10)) == (0, 0)


def test_tokens_of_streams_are_counted_by_the_server(serve: Serve) -> None:
    server = serve(num_slots=3)
    never = {str(i): -100 for i in server.engine.tokenizer.stop_ids}
    rate = asyncio.run(
        throughput(
            as_process(server).address, Texts(WORDS, 0), clients=3, requests=2,
            fields={"logit_bias": never},
        )
    )  # fmt: skip
    assert rate.new_tokens == 3 * 2 * 128


WHOLE = (
    b'HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n'
)  # fmt: skip


def chunk(text: str) -> bytes:
    data = f"data: {text}\n\n".encode()
    return b"%x\r\n%b\r\n" % (len(data), data)


def say(word: str, finish: str = "null") -> bytes:
    choice = f'{{"delta": {{"content": "{word}"}}, "finish_reason": {finish}}}'
    return chunk(f'{{"id": "a", "choices": [{choice}]}}')


USAGE = chunk('{"id": "a", "choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}')
DONE = chunk("[DONE]")
END = b"0\r\n\r\n"


async def ask_one_that_says(data: bytes) -> Reply:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(data)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        host, port = server.sockets[0].getsockname()[:2]
        body: dict[str, Any] = {"messages": [], "stream": True}
        return await ask(Address(host=host, port=port), body)


def test_a_whole_stream_is_read() -> None:
    data = WHOLE + say("one ") + say("two") + say("", '"stop"') + USAGE + DONE + END
    reply = asyncio.run(ask_one_that_says(data))
    assert (reply.status, reply.text, reply.prompt_tokens, reply.new_tokens) == (
        200,
        "one two",
        3,
        2,
    )
    assert 0 < reply.ttft_s <= reply.total_s


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "within the head"),
        (b"HTTP/1.1 200 OK\r\n", "within the head"),
        (WHOLE + say("one"), "between two chunks"),
        (WHOLE + say("one")[:-4], "within a chunk"),
        (WHOLE + say("one", '"stop"') + USAGE + END, r"without \[DONE\]"),
        (WHOLE + say("one") + USAGE + DONE + END, "0 ends"),
        (WHOLE + say("one", '"stop"') * 2 + USAGE + DONE + END, "2 ends"),
        (WHOLE + chunk('{"error": "no"}') + DONE + END, "ended with no"),
        (b"HTTP/1.1 500 Oh\r\ncontent-length: 4\r\n\r\noops", "not JSON"),
    ],
)
def test_an_answer_that_is_not_whole_is_lost(data: bytes, words: str) -> None:
    with pytest.raises(LostError, match=words):
        asyncio.run(ask_one_that_says(data))


def test_growth_is_what_comes_after_the_warm_up() -> None:
    tally = Tally(rss_bytes=[(0.0, 50), (1.0, 100), (2.0, 90), (3.0, 110)])
    assert tally.growth(1.0) == pytest.approx(0.1)
    assert tally.growth(9.0) == 0
