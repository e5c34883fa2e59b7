"""Many clients of every kind for minutes: is every request answered once or refused, and nothing
left behind?

    whole        reads the answer          leaves       closes before it
    stream       reads the stream          tears        resets the connection within the stream
    slow         reads a few bytes a time  mutters      sends its request in pieces, slowly

A request whose client stays is *answered* (200, whole, under an id that no other answer has) or
*refused* (429, 503 or 504, with a reason). Whatever else comes is *lost*, and there must be none.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from serve_load.client import Address, Exchange, LostError, Reply, Texts, ask
from serve_load.servers import Server

_REFUSALS = (429, 503, 504)
_KINDS = ("whole", "stream", "slow", "leaves", "tears", "mutters")
_WEIGHTS = (30, 30, 10, 12, 12, 6)
_LONGEST_WORDS = 700
_NUM_SAMPLES = 200


@dataclass(slots=True)
class Tally:
    """What became of the requests."""

    ends: Counter[str] = field(default_factory=Counter)
    """answered, refused, left (by their client) and lost."""
    kinds: Counter[str] = field(default_factory=Counter)
    ids: Counter[str] = field(default_factory=Counter)
    new_tokens: int = 0
    problems: list[str] = field(default_factory=list)
    rss_bytes: list[tuple[float, int]] = field(default_factory=list)
    """(seconds since the start, resident bytes of the server)"""

    @property
    def answered_twice(self) -> int:
        """Ids of answers that came more than once."""
        return sum(count > 1 for count in self.ids.values())

    def growth(self, warm_up_s: float) -> float:
        """The most memory after the warm-up over the most within it, less 1."""
        early = [rss for when, rss in self.rss_bytes if when <= warm_up_s]
        late = [rss for when, rss in self.rss_bytes if when > warm_up_s]
        return max(late) / max(early) - 1 if early and late else 0.0


async def soak(server: Server, texts: Texts, *, clients: int, seconds: float, seed: int) -> Tally:
    """`clients` at once, each with one request after the other, of any kind, for `seconds`."""
    tally = Tally()
    began = monotonic()
    until = began + seconds
    watching = asyncio.ensure_future(_watch(server, tally, began))

    async def client(number: int) -> None:
        draw = random.Random(seed * 1000 + number)
        while monotonic() < until:
            kind = draw.choices(_KINDS, _WEIGHTS)[0]
            tally.kinds[kind] += 1
            await _one(server.address, texts, draw, kind, tally)

    await asyncio.gather(*(client(number) for number in range(clients)))
    watching.cancel()
    return tally


async def fill(server: Server, texts: Texts, *, slots: int, context_words: int) -> None:
    """Write every KV slot to its end, so that what memory the cache takes is taken."""
    bodies = [
        {"messages": [{"role": "user", "content": texts.prompt(context_words)}], "max_tokens": 8}
        for _ in range(slots)
    ]
    await asyncio.gather(*(ask(server.address, body) for body in bodies))


async def idle_status(server: Server, *, within_s: float) -> tuple[int, int]:
    """Slots in work and requests waiting, as soon as both are 0 or the time is over."""
    until = monotonic() + within_s
    while True:
        status = await asyncio.to_thread(server.get, "/v1/status")
        found = status["slots"]["busy"], status["queue"]["waiting"]
        if found == (0, 0) or monotonic() > until:
            return found
        await asyncio.sleep(0.1)


async def _watch(server: Server, tally: Tally, began: float) -> None:
    while True:
        tally.rss_bytes.append((monotonic() - began, server.rss_bytes()))
        await asyncio.sleep(0.5)


async def _one(
    address: Address, texts: Texts, draw: random.Random, kind: str, tally: Tally
) -> None:
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": texts.prompt(_length(draw))}],
        "max_tokens": draw.choice((1, 8, 16, 32, 64, 128)),
        "temperature": draw.choice((0, 0, 0.7, 1.0)),
        "stream": kind in ("stream", "slow", "tears"),
    }
    if draw.random() < 0.5:
        body["seed"] = draw.randrange(2**32)
    if draw.random() < 0.2:
        body["user"] = f"robot-{draw.randrange(5)}"
    try:
        reply = await _WAYS[kind](address, body, draw)
    except LostError as exc:
        tally.ends["lost"] += 1
        tally.problems.append(f"{kind}: {exc}")
        return
    except OSError as exc:
        tally.ends["lost"] += 1
        tally.problems.append(f"{kind}: {exc!r}")
        return
    await _count(reply, draw, tally)


def _length(draw: random.Random) -> int:
    """Words of a prompt: mostly few, sometimes hundreds."""
    return min(_LONGEST_WORDS, int(draw.lognormvariate(3.5, 1.0)) + 1)


async def _count(reply: Reply | None, draw: random.Random, tally: Tally) -> None:
    if reply is None:
        tally.ends["left"] += 1
    elif reply.status == 200:
        tally.ends["answered"] += 1
        tally.ids[reply.answer_id] += 1
        tally.new_tokens += reply.new_tokens
    elif reply.status in _REFUSALS and (reply.status == 504 or "retry-after" in reply.headers):
        tally.ends[f"refused {reply.status}"] += 1
        await asyncio.sleep(draw.uniform(0.5, 2))  # a real client would wait for longer
    else:
        tally.ends["lost"] += 1
        tally.problems.append(f"status {reply.status}")


async def _stay(address: Address, body: dict[str, Any], draw: random.Random) -> Reply | None:
    return await ask(address, body)


async def _slow(address: Address, body: dict[str, Any], draw: random.Random) -> Reply | None:
    async with Exchange(address, body, buffer_bytes=512) as exchange:
        while await exchange.some():
            await asyncio.sleep(draw.random() * 0.1)
        return await exchange.rest()


async def _leaves(address: Address, body: dict[str, Any], draw: random.Random) -> Reply | None:
    async with Exchange(address, body):
        await asyncio.sleep(draw.random() ** 2 * 3)
    return None


async def _tears(address: Address, body: dict[str, Any], draw: random.Random) -> Reply | None:
    async with Exchange(address, body) as exchange:
        for _ in range(draw.randrange(1, 20)):
            if not await exchange.some():
                break
        sock = exchange.writer.get_extra_info("socket")
        # closing now sends a reset
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return None


async def _mutters(address: Address, body: dict[str, Any], draw: random.Random) -> Reply | None:
    async with Exchange(address, body, num_parts=5) as exchange:
        return await exchange.rest()


_Way = Callable[[Address, dict[str, Any], random.Random], Coroutine[Any, Any, Reply | None]]
_WAYS: dict[str, _Way] = {
    "whole": _stay,
    "stream": _stay,
    "slow": _slow,
    "leaves": _leaves,
    "tears": _tears,
    "mutters": _mutters,
}
