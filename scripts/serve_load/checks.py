"""The checks, and what each one must give."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from edgekit.bench.conditions import BUSY_PERCENT, busy_percent
from edgekit.runtime.tokenizer import Tokenizer
from peers.environment import say
from serve_load import speed
from serve_load.client import LostError, Reply, Texts, ask
from serve_load.servers import Server, edgekit_server, llama_cpp_server
from serve_load.soak import Tally, fill, idle_status, soak

_CONTEXT_TOKENS = 2304
_WORDS_2000_TOKENS = 1640
_WORDS_1000_TOKENS = 680
_NEAR_TIE = 0.1
"""Two tokens whose log-probabilities differ by less may change places by rounding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One figure and what it must be."""

    name: str
    measured: str
    wanted: str
    is_met: bool | None
    """None: for information."""
    value: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is run, and how long."""

    engine: Path
    slots: int
    clients: int
    soak_s: float
    rounds: int
    requests: int
    """Of each client, in each round."""
    samples: int
    """Of short prompts, alone and beside a long one."""
    seed: int
    threads: int
    llama: tuple[Path, Path] | None
    """llama.cpp's server and its model."""
    text: str
    """Where prompts come from."""

    def texts(self) -> Texts:
        """Prompts; the same ones each time."""
        return Texts(self.text, self.seed)

    def server(self, *, slots: int, queue: int = 64) -> Any:
        """`edgekit serve` over the engine."""
        return edgekit_server(
            str(self.engine), slots=slots, context_tokens=_CONTEXT_TOKENS, queue=queue
        )


def check_soak(plan: Plan) -> list[Row]:
    """Every request is answered once or refused; nothing is left behind; memory is flat."""
    warm_up_s = plan.soak_s / 6
    queue = plan.clients // 2
    with plan.server(slots=plan.slots, queue=queue) as server:
        asyncio.run(fill(server, plan.texts(), slots=plan.slots, context_words=_WORDS_2000_TOKENS))
        say(f"soak: {plan.clients} clients, {plan.soak_s:g} s")
        tally = asyncio.run(
            soak(server, plan.texts(), clients=plan.clients, seconds=plan.soak_s, seed=plan.seed)
        )
        busy, waiting = asyncio.run(idle_status(server, within_s=20))
        after = asyncio.run(_after(server, plan))
    for problem in tally.problems[:10]:
        say(f"  {problem}")
    return _soak_rows(plan, tally, warm_up_s, (busy, waiting), after)


async def _after(server: Server, plan: Plan) -> int:
    """As many questions at once as there are slots; how many are answered."""
    texts = plan.texts()
    body = {"messages": [{"role": "user", "content": texts.prompt(20)}], "max_tokens": 8}
    found = await asyncio.gather(
        *(ask(server.address, body) for _ in range(plan.slots)), return_exceptions=True
    )
    return sum(isinstance(reply, Reply) and reply.status == 200 for reply in found)


def _soak_rows(
    plan: Plan, tally: Tally, warm_up_s: float, left: tuple[int, int], after: int
) -> list[Row]:
    total, lost = sum(tally.ends.values()), tally.ends["lost"]
    ends = ", ".join(f"{count} {end}" for end, count in sorted(tally.ends.items()))
    growth = tally.growth(warm_up_s)
    peak_mib = max(rss for _, rss in tally.rss_bytes) / 2**20
    name = f"{plan.clients} clients for {plan.soak_s:g} s"
    return [
        Row(name=f"{name}: lost requests", measured=f"{lost} of {total} ({ends})",
            wanted="0", is_met=lost == 0 and tally.ends["answered"] > 0, value=dict(tally.ends)),
        Row(name=f"{name}: answered twice", measured=str(tally.answered_twice), wanted="0",
            is_met=not tally.answered_twice, value=tally.answered_twice),
        Row(name="afterwards: slots busy, requests waiting", measured=f"{left[0]}, {left[1]}",
            wanted="0, 0", is_met=left == (0, 0), value=left),
        Row(name="afterwards: slots that answer", measured=f"{after} of {plan.slots}",
            wanted="all", is_met=after == plan.slots, value=after),
        Row(name=f"resident memory after {warm_up_s:g} s of warm-up",
            measured=f"{growth:+.1%}, {peak_mib:.0f} MiB at most", wanted="<= +5 %",
            is_met=growth <= 0.05, value=tally.rss_bytes),
    ]  # fmt: skip


def check_throughput(plan: Plan) -> list[Row]:
    """Clients together against one alone, and against llama.cpp's server, in turns."""
    ours = speed.endless(sorted(Tokenizer.load(plan.engine / "tokenizer").stop_ids))
    theirs = {"ignore_eos": True}
    rates: dict[str, list[float]] = {}
    with ExitStack() as opened:
        servers = [(opened.enter_context(plan.server(slots=plan.slots)), ours)]
        if plan.llama is not None:
            binary, model = plan.llama
            servers.append((opened.enter_context(
                llama_cpp_server(binary, model, slots=plan.slots, context_tokens=_CONTEXT_TOKENS,
                                 threads=plan.threads)), theirs))  # fmt: skip
        texts = plan.texts()
        for server, fields in servers:  # a first one pays for everything that is made once
            asyncio.run(speed.throughput(server.address, texts, clients=plan.slots, requests=1,
                                         fields=fields))  # fmt: skip
        for number in range(plan.rounds):
            for clients in (1, plan.slots):
                for server, fields in servers[:: 1 if number % 2 == 0 else -1]:
                    _wait_until_quiet()
                    rate = asyncio.run(
                        speed.throughput(server.address, texts, clients=clients,
                                         requests=plan.requests, fields=fields)
                    )  # fmt: skip
                    name = f"{server.name}, {clients} client{'s' * (clients > 1)}"
                    rates.setdefault(name, []).append(rate.tokens_per_s)
                    say(f"round {number + 1}: {name}: {rate.tokens_per_s:.0f} tokens/s")
    return _throughput_rows(plan, rates)


def _wait_until_quiet() -> None:
    if busy_percent(0.5) > BUSY_PERCENT:
        say("note: something else uses the processor")


def _throughput_rows(plan: Plan, rates: dict[str, list[float]]) -> list[Row]:
    middle = {name: median(values) for name, values in rates.items()}
    rows = [
        Row(name=f"{name}, {speed.NEW_TOKENS} new tokens each", wanted="", is_met=None,
            measured=f"{value:.0f} tokens/s", value=rates[name])
        for name, value in middle.items()
    ]  # fmt: skip
    many = f"{{}}, {plan.slots} clients"
    gain = _middle_ratio(rates, many.format("edgekit"), "edgekit, 1 client")
    rows.append(
        Row(name=f"{plan.slots} clients against one", measured=f"{gain:.2f} x", wanted=">= 2.0 x",
            is_met=gain >= 2.0, value=gain)
    )  # fmt: skip
    if plan.llama is not None:
        ratio = _middle_ratio(rates, many.format("edgekit"), many.format("llama.cpp"))
        rows.append(
            Row(name=f"{plan.slots} clients against llama.cpp's {plan.slots}",
                measured=f"{ratio:.2f} x", wanted=">= 1.0 x", is_met=ratio >= 1.0, value=ratio)
        )  # fmt: skip
    return rows


def _middle_ratio(rates: dict[str, list[float]], ours: str, other: str) -> float:
    """The median over rounds of the ratio within a round: a machine's speed drifts between them."""
    return median(a / b for a, b in zip(rates[ours], rates[other], strict=True))


def check_prefill(plan: Plan) -> list[Row]:
    """Short prompts are not kept waiting by a long one."""
    with plan.server(slots=plan.slots) as server:
        texts = plan.texts()
        asyncio.run(speed.short_ttfts(server.address, texts, count=5))
        alone = asyncio.run(speed.short_ttfts(server.address, texts, count=plan.samples))
        beside, size = asyncio.run(
            speed.ttfts_beside_prefill(
                server.address, texts, count=plan.samples, prompt_words=_WORDS_2000_TOKENS
            )
        )
    p95 = [speed.percentile(values, 95) for values in (alone, beside)]
    p50 = [speed.percentile(values, 50) for values in (alone, beside)]
    ratio = p95[1] / p95[0]
    return [
        Row(name="TTFT of short prompts alone", measured=f"p50 {p50[0]:.0f}, p95 {p95[0]:.0f} ms",
            wanted="", is_met=None, value=alone),
        Row(name=f"beside a prefill of {size} tokens",
            measured=f"p50 {p50[1]:.0f}, p95 {p95[1]:.0f} ms", wanted="", is_met=None,
            value=beside),
        Row(name="p95 beside against alone", measured=f"{ratio:.2f} x", wanted="<= 4.0 x",
            is_met=ratio <= 4.0, value=ratio),
    ]  # fmt: skip


def check_turns(plan: Plan) -> list[Row]:
    """A second turn computes only what is new, and says the same."""
    ratios, same = [], []
    sizes: list[tuple[Reply, Reply]] = []
    for number in range(plan.rounds):
        texts = Texts(plan.text, plan.seed + number)
        with plan.server(slots=2) as server:
            asyncio.run(speed.short_ttfts(server.address, texts, count=3))
            turns = asyncio.run(
                speed.two_turns(server.address, texts, prompt_words=_WORDS_1000_TOKENS)
            )
        with plan.server(slots=2) as server:  # whose slots hold nothing
            cold = asyncio.run(ask(server.address, speed.turn(turns.question)))
        if cold.cached_tokens > turns.first.prompt_tokens // 2:
            raise LostError("a new server says that it had the prompt")
        sizes.append((turns.first, turns.second))
        ratios.append(turns.second.ttft_s / turns.first.ttft_s)
        same.append(_agreement(turns.second, cold))
    first, second = sizes[-1]
    ratio = max(ratios)
    return [
        Row(name=f"TTFT of a second turn ({second.cached_tokens} of {second.prompt_tokens} "
                 "prompt tokens cached) against the first",
            measured=f"{ratio:.2f} x ({second.ttft_s * 1e3:.0f} of {first.ttft_s * 1e3:.0f} ms)",
            wanted="<= 0.3 x", is_met=ratio <= 0.3, value=ratios),
        Row(name="its text with and without reuse", measured="; ".join(words for words, _ in same),
            wanted="the same up to a near-tie", is_met=all(good for _, good in same),
            value=[words for words, _ in same]),
    ]  # fmt: skip


def _agreement(one: Reply, other: Reply) -> tuple[str, bool]:
    """Whether two greedy answers are the same, and if not, how near a tie they parted at."""
    pairs = zip(one.logprobs, other.logprobs, strict=False)
    for place, (mine, yours) in enumerate(pairs):
        if mine["token"] != yours["token"]:
            gap = min(_gap(mine), _gap(yours))
            return f"the same for {place} tokens, then a gap of {gap:.3f}", gap < _NEAR_TIE
    return "the same", one.text == other.text


def _gap(token: dict[str, Any]) -> float:
    best: Sequence[dict[str, Any]] = token["top_logprobs"]
    return float(best[0]["logprob"] - best[1]["logprob"])


CHECKS = {
    "soak": check_soak,
    "throughput": check_throughput,
    "prefill": check_prefill,
    "turns": check_turns,
}
