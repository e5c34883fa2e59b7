"""How fast: many clients against one or another server, beside a long prompt, in a second turn."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np

from serve_load.client import Address, LostError, Reply, Texts, ask

NEW_TOKENS = 128
"""Of every answer that is timed: no token ends it earlier."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """What some clients got together."""

    new_tokens: int
    seconds: float

    @property
    def tokens_per_s(self) -> float:
        """New tokens of all answers, per second of the whole run, prefill included."""
        return self.new_tokens / self.seconds


def endless(stop_ids: Sequence[int]) -> dict[str, Any]:
    """Fields for an answer that ends at its limit only."""
    return {"logit_bias": {str(i): -100 for i in stop_ids}}


async def throughput(
    address: Address, texts: Texts, *, clients: int, requests: int, fields: Mapping[str, Any]
) -> Rate:
    """`clients` at once, each asking `requests` questions one after the other. As a chat does:
    streamed, sampled, a question of two sentences."""

    async def one(number: int) -> list[Reply]:
        replies = []
        for turn in range(requests):
            body = {
                "messages": [{"role": "user", "content": texts.question()}],
                "max_tokens": NEW_TOKENS, "temperature": 0.7, "top_p": 0.95,
                "seed": 100 * number + turn, "stream": True, **fields,
            }  # fmt: skip
            replies.append(_answered(await ask(address, body)))
        return replies

    began = perf_counter()
    found = await asyncio.gather(*(one(number) for number in range(clients)))
    seconds = perf_counter() - began
    return Rate(new_tokens=sum(r.new_tokens for replies in found for r in replies), seconds=seconds)


def _answered(reply: Reply) -> Reply:
    if reply.status != 200:
        raise LostError(f"refused with {reply.status}, though there was room")
    return reply


async def short_ttfts(address: Address, texts: Texts, *, count: int) -> list[float]:
    """Seconds until the first token of short prompts, one after the other."""
    return [await _short(address, texts) for _ in range(count)]


async def _short(address: Address, texts: Texts) -> float:
    body = {
        "messages": [{"role": "user", "content": texts.prompt(6)}],
        "max_tokens": 4, "temperature": 0, "stream": True,
    }  # fmt: skip
    return _answered(await ask(address, body)).ttft_s


async def ttfts_beside_prefill(
    address: Address, texts: Texts, *, count: int, prompt_words: int
) -> tuple[list[float], int]:
    """The same while one long prompt goes through; and how many tokens that has.

    Only what was sent and had its first token within the long prefill counts.
    """
    found: list[float] = []
    size = 0
    while len(found) < count:
        body = {
            "messages": [{"role": "user", "content": texts.prompt(prompt_words)}],
            "max_tokens": 1, "temperature": 0,
        }  # fmt: skip
        long = asyncio.ensure_future(ask(address, body))
        await asyncio.sleep(0.05)
        while not long.done():
            ttft_s = await _short(address, texts)
            if not long.done():
                found.append(ttft_s)
            await asyncio.sleep(0.013)  # not in step with the chunks
        size = _answered(long.result()).prompt_tokens
    return found, size


@dataclass(frozen=True, slots=True, kw_only=True)
class Turns:
    """A conversation's first turn and its second one."""

    first: Reply
    second: Reply
    question: list[dict[str, str]]
    """The messages of the second turn."""


async def two_turns(address: Address, texts: Texts, *, prompt_words: int) -> Turns:
    """A conversation whose first prompt has `prompt_words`; greedy."""
    messages = [{"role": "user", "content": texts.prompt(prompt_words)}]
    first = _answered(await ask(address, turn(messages)))
    messages += [
        {"role": "assistant", "content": first.text},
        {"role": "user", "content": "And what does that mean for me?"},
    ]
    second = _answered(await ask(address, turn(messages)))
    return Turns(first=first, second=second, question=messages)


def turn(messages: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """The request of one turn."""
    return {
        "messages": list(messages), "max_tokens": 48, "temperature": 0, "stream": True,
        "logprobs": True, "top_logprobs": 2,
    }  # fmt: skip


def percentile(values: Sequence[float], percent: float) -> float:
    """Of some seconds, in milliseconds."""
    return float(np.percentile(values, percent)) * 1e3
