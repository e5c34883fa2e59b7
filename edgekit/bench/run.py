"""Benchmark one engine directory from loading it to the report."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter_ns
from typing import Any

from edgekit.backends import find_backend
from edgekit.backends.base import ChoosesGpu, Streams, TakesText
from edgekit.bench import conditions as system
from edgekit.bench.bandwidth import Bandwidth, BandwidthMeter
from edgekit.bench.measure import check_context, make_tests, run_tests, synthetic_ids
from edgekit.bench.report import BenchReport, Bound
from edgekit.bench.stream import TIMING, run_stream_tests, stream_notes
from edgekit.bench.watch import Sensors, Watch
from edgekit.device import Device, read_device, run_tool
from edgekit.engine import Manifest, read_manifest
from edgekit.errors import InputError, ProfileError
from edgekit.profile import find_profile
from edgekit.progress import Progress, no_progress
from edgekit.runtime.load import LoadedEngine, load_engine
from edgekit.runtime.tokenizer import Tokenizer
from edgekit.units import format_bytes

_TWO_WORDS = re.compile(r" ([A-Za-z]{2,}) \1")
MEASURED = "measured"
"""The source of a bandwidth that was measured here and now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    """What to measure; the defaults are llama-bench's."""

    prompt_tokens: Sequence[int] = (512,)
    new_tokens: Sequence[int] = (128,)
    depths: Sequence[int] = (0,)
    repetitions: int = 5
    threads: int | None = None
    """None: the backend's choice, one per physical core."""

    def command(self, engine: Path) -> str:
        """The command line that measures the same again."""
        words = ["edgekit", "bench", str(engine)]
        for flag, values in (("-p", self.prompt_tokens), ("-n", self.new_tokens)):
            words += [word for value in values for word in (flag, str(value))]
        words += [word for value in self.depths for word in ("-d", str(value))]
        words += ["-r", str(self.repetitions)]
        words += [] if self.threads is None else ["--threads", str(self.threads)]
        return shlex.join(words)


def bench_engine(
    directory: Path,
    options: BenchOptions,
    *,
    report: Progress = no_progress,
    notify: Callable[[str], None] = lambda text: None,
) -> BenchReport:
    """Load the engine, run every test, measure the machine. Raises what `load_engine` does.

    `notify` is told what disturbs the measurement before it begins.
    """
    tests = make_tests(options.prompt_tokens, options.new_tokens, options.depths)
    manifest = read_manifest(directory)
    backend = find_backend(manifest.backend["name"])
    is_stream = isinstance(backend, Streams)
    check_context(tests, manifest.context_tokens, more=int(is_stream))
    if is_stream and options.threads is not None:
        raise InputError(
            f"{manifest.backend['name']} runs on the GPU alone: it has no number of threads",
            hint="leave `--threads` out",
        )
    if (busy := system.busy_percent()) > system.BUSY_PERCENT:
        notify(f"warning: other programs use {busy:.0f} % of the processor; numbers will be low")
    device = read_device(run=run_tool)
    temperature_c = system.hottest_c(is_jetson=device.jetson is not None)
    slow = _slow_settings(manifest, device)
    for each in slow:
        notify(f"warning: {each}")
    uuid = backend.gpu_uuid(directory / "backend") if isinstance(backend, ChoosesGpu) else None
    sensors = Sensors.find(device, uses_gpu=_uses_gpu(manifest), uuid=uuid)
    known_bandwidth = _known_bandwidth(manifest)
    has_meter = (
        manifest.ran_on_processor
        and known_bandwidth is None
        and any(test.new_tokens for test in tests)
    )
    report("load", 0, 1)
    began_ns = perf_counter_ns()
    with (
        Watch(sensors) as watch,
        load_engine(directory, threads=options.threads, is_endless=True) as loaded,
    ):
        load_ms = (perf_counter_ns() - began_ns) / 1e6
        token_ids = _token_ids(loaded, max(test.needed_tokens for test in tests))
        shared: dict[str, Any] = {
            "token_ids": token_ids,
            "repetitions": options.repetitions,
            "report": report,
        }
        if loaded.stream is not None:
            results = run_stream_tests(loaded.stream, tests, **shared)
            peak_rss_bytes, measured = system.peak_rss_bytes(), None
        elif has_meter:
            peak_rss_bytes = system.peak_rss_bytes()
            free = read_device().available_bytes  # beside the engine
            with BandwidthMeter(threads=device.cores, available_bytes=free) as meter:
                results = run_tests(loaded.session, tests, read_bandwidth=meter.read, **shared)
                # the meter's own arrays are there all the while
                later_bytes = system.peak_rss_bytes() - meter.read_bytes
                peak_rss_bytes = max(peak_rss_bytes, later_bytes)
                measured = meter.result()
        else:
            results = run_tests(loaded.session, tests, **shared)
            peak_rss_bytes, measured = system.peak_rss_bytes(), None
    known = system.read_conditions(
        threads=options.threads or device.cores,
        temperature_start_c=temperature_c,
        jetson=device.jetson,
        throttling=watch.throttling(),
    )
    if measured is not None and not measured.exceeds_cache:
        notify(
            f"warning: {format_bytes(measured.read_bytes)} of memory were read for the bandwidth, "
            f"less than four times the cache; it may be too high"
        )
    manifest = loaded.manifest
    return BenchReport(
        manifest_sha256=_digest(directory),
        model=manifest.model,
        precision=manifest.precision,
        backend=manifest.backend["name"],
        engine_bytes=sum(
            size for name, size in manifest.file_bytes.items() if name.startswith("backend/")
        ),
        device={"name": device.cpu, "profile": manifest.profile, **manifest.device},
        conditions=known,
        tests=tuple(results),
        repetitions=options.repetitions,
        load_ms=load_ms,
        peak_rss_bytes=peak_rss_bytes,
        peak_device_bytes=watch.peak_device_bytes,
        energy=watch.energy(results),
        slow_settings=tuple(slow),
        bound=_bound(manifest, known_bandwidth, measured)
        if any(test.new_tokens for test in tests)
        else None,
        command=options.command(directory),
        timing=TIMING if is_stream else "calls",
        notes=stream_notes(manifest.plan.get("speculation", "none")) if is_stream else (),
    )


def _uses_gpu(manifest: Manifest) -> bool:
    if "execution_provider" in manifest.device:
        return not manifest.ran_on_processor
    try:
        return find_profile(manifest.profile).sm is not None
    except ProfileError:
        return True


def _slow_settings(manifest: Manifest, device: Device) -> list[str]:
    try:
        return system.slow_settings(find_profile(manifest.profile), device.jetson)
    except ProfileError:  # built with a profile that is not on this machine
        return []


def _token_ids(loaded: LoadedEngine, count: int) -> list[int]:
    vocab_size = min(loaded.session.vocab_size, loaded.tokenizer.vocab_size)
    left_out = {i for i in range(vocab_size) if loaded.tokenizer.is_special(i)}
    if isinstance(loaded.stream, TakesText):
        words = whole_words(loaded.tokenizer, vocab_size)
        if not words:
            raise InputError(
                "the engine's runtime takes text, and this tokenizer has no words that stay apart "
                "in one: how many tokens it would read is not known"
            )
        left_out |= set(range(vocab_size)) - words
    return synthetic_ids(count, vocab_size=vocab_size, special_ids=left_out)


def whole_words(tokenizer: Tokenizer, vocab_size: int) -> set[int]:
    """Tokens of a space and a word: a row of them is cut into the same tokens again."""
    texts = {i: tokenizer.decode([i, i]) for i in range(vocab_size) if not tokenizer.is_special(i)}
    return {
        i
        for i, text in texts.items()
        if _TWO_WORDS.fullmatch(text) and tokenizer.encode(text, add_special=False) == [i, i]
    }


def _known_bandwidth(manifest: Manifest) -> int | None:
    """The data sheet's, for a device that is known."""
    try:
        return find_profile(manifest.profile).bandwidth_bytes_per_s
    except ProfileError:  # built with a profile that is not on this machine
        return None


def _bound(
    manifest: Manifest, known_bandwidth: int | None, measured: Bandwidth | None
) -> Bound | None:
    weight_bytes = manifest.plan.get("bytes_per_token_read")
    if not weight_bytes:
        return None
    tokens = manifest.context_tokens * manifest.batch
    of_a_token = {
        "weight_bytes_per_token": weight_bytes,
        "kv_bytes_per_token": manifest.plan.get("kv_cache_bytes", 0) // tokens,
    }
    if known_bandwidth is not None:
        return Bound(
            bandwidth_bytes_per_s=known_bandwidth,
            source=f"profile {manifest.profile}",
            **of_a_token,
        )
    if measured is None:
        return None
    return Bound(
        bandwidth_bytes_per_s=measured.bytes_per_s,
        source=MEASURED,
        lowest_bytes_per_s=measured.lowest_bytes_per_s,
        highest_bytes_per_s=measured.highest_bytes_per_s,
        **of_a_token,
    )


def _digest(directory: Path) -> str:
    """The manifest's digest of itself; `load_engine` has checked it."""
    data = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))
    return str(data["manifest_sha256"])
