"""What a server tells Prometheus: names as in vLLM's and llama.cpp's, with `edgekit_` before."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate

import psutil
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from edgekit.serve.job import Ended, Event, Failed, Made
from edgekit.serve.scheduler import Status

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_STEPS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28)


class Metrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()

        def counter(name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(f"edgekit_{name}", text, labels, registry=self._registry)

        self.requests = counter("http_requests", "HTTP requests", ("path", "status"))
        self.refused = counter("jobs_refused", "Answers refused because the queue was full")
        self._jobs = counter("jobs", "Answers that ended", ("reason",))
        self._prompt_tokens = counter("prompt_tokens", "Tokens of prompts")
        self._cached_tokens = counter("cached_tokens", "Tokens of prompts that were in a KV slot")
        self._new_tokens = counter("new_tokens", "Tokens made")
        self._thinking_tokens = counter("thinking_tokens", "Tokens made that were thoughts")
        self._queued = self._histogram("queue_seconds", "From request to slot", _SECONDS)
        self._ttft = self._histogram("time_to_first_token_seconds", "TTFT", _SECONDS)
        self._tpot = self._histogram(
            "time_per_output_token_seconds", "TPOT: mean of the gaps of an answer", _STEPS
        )
        self._itl = _Gaps()
        self._registry.register(self._itl)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"edgekit_{name}", text, buckets=buckets, registry=self._registry)

    def watch(self, status: Callable[[], Status]) -> None:
        """Read slots, queue and memory of this scheduler whenever somebody asks."""
        self._registry.register(_Gauges(status))

    def count(self, event: Event) -> None:
        """Note how an answer ended."""
        if isinstance(event, Made):
            return
        if isinstance(event, Failed):
            self._jobs.labels("failed").inc()
            return
        self._jobs.labels(event.reason).inc()
        self._count_tokens(event)

    def _count_tokens(self, event: Ended) -> None:
        self._prompt_tokens.inc(event.prompt_tokens)
        self._cached_tokens.inc(event.cached_tokens)
        self._new_tokens.inc(event.new_tokens)
        self._thinking_tokens.inc(event.thinking_tokens)
        self._queued.observe(event.queued_ms / 1e3)
        if event.ttft_ms is not None:
            self._ttft.observe(event.ttft_ms / 1e3)
        if event.decode_tokens_per_s:
            self._tpot.observe(1 / event.decode_tokens_per_s)
        self._itl.add(event.itl_ms)

    def text(self) -> bytes:
        """Everything, in Prometheus' text format."""
        return generate_latest(self._registry)


class _Gaps(Collector):
    """Gaps between tokens. A `Histogram` takes one at a time, and an answer has thousands."""

    def __init__(self) -> None:
        self._counts = [0] * (len(_STEPS) + 1)
        self._sum_s = 0.0

    def add(self, itl_ms: Sequence[float]) -> None:
        for gap in itl_ms:
            self._counts[bisect_left(_STEPS, gap / 1e3)] += 1
        self._sum_s += sum(itl_ms) / 1e3

    def collect(self) -> Iterator[Metric]:
        edges = [*map(str, _STEPS), "+Inf"]
        rows = list(zip(edges, accumulate(self._counts), strict=True))
        yield HistogramMetricFamily(
            "edgekit_inter_token_latency_seconds", "ITL: every gap between two tokens of an answer",
            buckets=rows, sum_value=self._sum_s,
        )  # fmt: skip


class _Gauges(Collector):
    def __init__(self, status: Callable[[], Status]) -> None:
        self._status = status
        self._process = psutil.Process()

    def collect(self) -> Iterator[Metric]:
        status = self._status()
        rows = (
            ("slots", "KV slots", status.slots),
            ("slots_busy", "KV slots with an answer in work", status.busy),
            ("queue_length", "Answers waiting for a slot", status.waiting),
            ("queue_limit", "Answers that may wait", status.queue_limit),
            ("new_tokens_per_second", "All answers, last ten seconds", status.tokens_per_s),
            ("resident_memory_bytes", "Of this process", self._process.memory_info().rss),
            ("ready", "1: answers requests", int(status.state == "running")),
        )
        for name, text, value in rows:
            yield GaugeMetricFamily(f"edgekit_{name}", text, value=float(value))
