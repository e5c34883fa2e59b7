"""A client that costs little: one connection for each request, read as bytes and understood later.

Server and clients share the processor, so an event of a stream costs here one `read`, whose time is
noted; what it says is parsed when the answer is over. Any server of OpenAI's interface will do.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any

_PATH = "/v1/chat/completions"
_PAUSE_SECONDS = 0.05


class LostError(Exception):
    """A request that got no answer and no refusal, or only a part of one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where a server listens."""

    host: str
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A whole answer or a refusal."""

    status: int
    headers: Mapping[str, str]
    ttft_s: float
    """Until the first token was here; without a stream, until all was."""
    total_s: float
    text: str = ""
    answer_id: str = ""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    new_tokens: int = 0
    logprobs: tuple[dict[str, Any], ...] = ()


class Exchange:
    """One request on a connection of its own; a context manager that closes it."""

    def __init__(
        self,
        address: Address,
        body: Mapping[str, Any],
        *,
        buffer_bytes: int = 2**16,
        num_parts: int = 1,
    ) -> None:
        """Reads `buffer_bytes` at a time; the request goes out in `num_parts`, with pauses."""
        self._address = address
        self._body = json.dumps({**_USAGE, **body} if body.get("stream") else body).encode()
        self._is_stream = bool(body.get("stream"))
        self._buffer_bytes = buffer_bytes
        self._num_parts = num_parts
        self._read: list[tuple[float, bytes]] = []
        self._began = 0.0
        self._reader: asyncio.StreamReader
        self.writer: asyncio.StreamWriter

    async def __aenter__(self) -> Exchange:
        """Connect and send."""
        self._began = perf_counter()
        self._reader, self.writer = await asyncio.open_connection(
            self._address.host, self._address.port, limit=self._buffer_bytes
        )
        head = (
            f"POST {_PATH} HTTP/1.1\r\nHost: {self._address.host}:{self._address.port}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(self._body)}\r\n"
            "Connection: close\r\n\r\n"
        )
        request = head.encode() + self._body
        size = -(-len(request) // self._num_parts)
        for start in range(0, len(request), size):
            if start:
                await asyncio.sleep(_PAUSE_SECONDS)
            self.writer.write(request[start : start + size])
            await self.writer.drain()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close, whatever has been read."""
        self.writer.close()

    async def some(self) -> bytes:
        """The next bytes; none at the end."""
        part = await self._reader.read(self._buffer_bytes)
        self._read.append((perf_counter(), part))
        return part

    async def rest(self) -> Reply:
        """Read to the end. Raises `LostError` for what is neither an answer nor a refusal."""
        try:
            while await self.some():
                pass
        except OSError as exc:
            raise LostError(f"the connection broke: {exc}") from exc
        return _reply(self._read, self._began, is_stream=self._is_stream)


_USAGE: Mapping[str, Any] = {"stream_options": {"include_usage": True}}


async def ask(address: Address, body: Mapping[str, Any]) -> Reply:
    """One request, to its end. Raises `LostError`."""
    try:
        async with Exchange(address, body) as exchange:
            return await exchange.rest()
    except OSError as exc:
        raise LostError(f"no connection: {exc}") from exc


def _reply(read: list[tuple[float, bytes]], began: float, *, is_stream: bool) -> Reply:
    raw = b"".join(part for _, part in read)
    head, found, _ = raw.partition(b"\r\n\r\n")
    if not found:
        raise LostError(f"the connection ended after {len(raw)} bytes, within the head")
    first, *lines = head.decode("latin-1").split("\r\n")
    status = int(first.split()[1])
    headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
    parts = list(_parts(read, len(head) + 4, headers))
    total_s = read[-1][0] - began
    if status != 200 or not is_stream:
        return _whole(status, headers, b"".join(part for _, part in parts), total_s)
    return _streamed(parts, headers, began, total_s)


def _parts(
    read: list[tuple[float, bytes]], start: int, headers: Mapping[str, str]
) -> Iterator[tuple[float, bytes]]:
    """The body in its HTTP chunks, each with the time at which its end was here."""
    raw = b"".join(part for _, part in read)
    if headers.get("transfer-encoding") != "chunked":
        yield read[-1][0], raw[start:]
        return
    ends, at = iter(read), 0
    when = 0.0
    while True:
        line_end = raw.find(b"\r\n", start)
        if line_end < 0:
            raise LostError("the body ended between two chunks")
        size = int(raw[start:line_end], 16)
        if size == 0:
            return
        start = line_end + 2 + size + 2
        if start > len(raw):
            raise LostError("the body ended within a chunk")
        while at < start:
            when, part = next(ends)
            at += len(part)
        yield when, raw[line_end + 2 : start - 2]


def _whole(status: int, headers: Mapping[str, str], body: bytes, total_s: float) -> Reply:
    try:
        data = json.loads(body)
    except ValueError as exc:
        raise LostError(f"{status} with a body that is not JSON: {body[:80]!r}") from exc
    if status != 200:
        if "error" not in data:
            raise LostError(f"{status} without a reason: {body[:80]!r}")
        return Reply(status=status, headers=headers, ttft_s=total_s, total_s=total_s)
    choice = data["choices"][0]
    if len(data["choices"]) != 1 or not choice["finish_reason"]:
        raise LostError(f"not one whole answer: {body[:80]!r}")
    return Reply(
        status=status, headers=headers, ttft_s=total_s, total_s=total_s, answer_id=data["id"],
        text=choice["message"]["content"] or "", **_usage(data["usage"]),
        logprobs=tuple((choice.get("logprobs") or {}).get("content") or ()),
    )  # fmt: skip


def _streamed(
    parts: list[tuple[float, bytes]], headers: Mapping[str, str], began: float, total_s: float
) -> Reply:
    events = list(_events(parts))
    if not events or events[-1][1] != b"[DONE]":
        raise LostError("the stream ended without [DONE]")
    said: list[str] = []
    logprobs: list[dict[str, Any]] = []
    ends, first, ids, usage = 0, None, set[str](), None
    for when, text in events[:-1]:
        data = json.loads(text)
        if "error" in data:
            raise LostError(f"the stream ended with {data['error']}")
        ids.add(data["id"])
        usage = data.get("usage") or usage
        for choice in data["choices"]:
            if word := choice["delta"].get("content"):
                first = when if first is None else first
                said.append(word)
            ends += choice["finish_reason"] is not None
            logprobs += (choice.get("logprobs") or {}).get("content") or []
    if ends != 1 or len(ids) != 1 or usage is None:
        raise LostError(f"a stream of {len(ids)} answers with {ends} ends")
    return Reply(
        status=200, headers=headers, ttft_s=(first or parts[-1][0]) - began, total_s=total_s,
        text="".join(said), answer_id=ids.pop(), logprobs=tuple(logprobs), **_usage(usage),
    )  # fmt: skip


def _events(parts: list[tuple[float, bytes]]) -> Iterator[tuple[float, bytes]]:
    held = b""
    for when, part in parts:
        held += part
        *events, held = held.split(b"\n\n")
        for event in events:
            if event.startswith(b"data: "):
                yield when, event[6:]
    if held:
        raise LostError("the stream ended within an event")


def _usage(usage: Mapping[str, Any]) -> dict[str, int]:
    details = usage.get("prompt_tokens_details") or {}
    return {
        "prompt_tokens": usage["prompt_tokens"],
        "new_tokens": usage["completion_tokens"],
        "cached_tokens": details.get("cached_tokens") or 0,
    }


_QUESTIONS = (
    "Explain to a beginner what {0} has to do with {1}, and give an example of {2}.",
    "Write a short story about a robot that finds {0} and {1} on its way to {2}.",
    "What are the advantages and disadvantages of {0} compared with {1}? Mention {2}, too.",
    "I have to give a talk about {0} tomorrow. Which points about {1} and {2} should it make?",
    "Why do people care about {0}? Answer for somebody who knows {1} but has never seen {2}.",
)


class Texts:
    """Prompts of a wanted length out of a long text, never twice the same."""

    def __init__(self, source: str, seed: int) -> None:
        self._words = source.split()
        self._random = random.Random(seed)

    def prompt(self, num_words: int) -> str:
        """Consecutive words from anywhere, after a number, so that nothing is cached."""
        start = self._random.randrange(len(self._words))
        words = [self._words[(start + i) % len(self._words)] for i in range(num_words)]
        return f"{self._random.randrange(10**6)}: {' '.join(words)}"

    def question(self) -> str:
        """What a person might ask; answers cannot be copied from it, as they can from a text."""
        form = self._random.choice(_QUESTIONS)
        topics = self._random.choices([word for word in self._words if word.isalpha()], k=3)
        return f"{form.format(*topics)} (I have asked {self._random.randrange(10**6)} times.)"
