"""A `BenchReport` for people: a Markdown table like llama-bench's, and CSV for spreadsheets."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from edgekit.bench.energy import Energy
from edgekit.bench.measure import TestResult
from edgekit.bench.metrics import Summary
from edgekit.bench.report import BenchReport, Bound
from edgekit.units import format_bytes


def to_markdown(report: BenchReport) -> str:
    """Throughput, latency, memory, the bound, and how to repeat it."""
    identity = [
        report.model,
        format_bytes(report.engine_bytes),
        report.precision,
        report.backend,
        str(report.conditions.threads),
    ]
    throughput = [
        [*identity, r.test.name, f"{r.tokens_per_s.mean:.2f} ± {r.tokens_per_s.stddev:.2f}"]
        for r in report.tests
    ]
    latency = [
        [
            r.test.name,
            *_places(r.ttft_ms, 50, 95),
            *_places(r.itl_ms, 50, 95, 99),
            _share(report, r),
        ]
        for r in report.tests
    ]
    head = ["model", "size", "precision", "backend", "threads", "test", "tokens/s"]
    latency_head = ["test", "TTFT p50 ms", "TTFT p95", "ITL p50 ms", "ITL p95", "ITL p99"]
    parts = [
        markdown_table(head, throughput, text_columns=4),
        markdown_table([*latency_head, "% of bandwidth"], latency, text_columns=1),
        "\n".join(_facts(report)),
    ]
    return "\n\n".join(parts)


def _facts(report: BenchReport) -> list[str]:
    memory = f"peak RSS {format_bytes(report.peak_rss_bytes)}"
    if report.peak_device_bytes is not None:
        memory += f", peak device memory {format_bytes(report.peak_device_bytes)}"
    lines = [
        f"{report.device.get('name', 'unknown device')}; mean ± standard deviation of "
        f"{report.repetitions} runs after a warm-up; load {report.load_ms:.0f} ms; {memory}."
    ]
    known = report.conditions
    if details := [
        text
        for value, text in (
            (known.power_mode, f"power mode {known.power_mode}"),
            (known.clocks, _words(known.clocks)),
            (known.temperature_c, f"temperature in °C: {_words(known.temperature_c)}"),
            (known.throttling, f"throttling: {', '.join(known.throttling or []) or 'none'}"),
        )
        if value is not None
    ]:
        lines.append("; ".join(details) + ".")
    if report.bound is not None:
        lines.append(
            f"Bandwidth: {format_bytes(report.bound.bandwidth_bytes_per_s)}/s "
            f"({_source(report.bound)}); weights read per token: "
            f"{format_bytes(report.bound.weight_bytes_per_token)}, plus the KV cache so far."
        )
    lines.append(_energy(report.energy))
    lines += [f"Note: {note}." for note in report.notes]
    return [*lines, "", f"Repeat with: `{report.command}`"]


def _source(bound: Bound) -> str:
    if bound.lowest_bytes_per_s is None or bound.highest_bytes_per_s is None:
        return bound.source
    return (
        f"{bound.source} beside each run of decode: {format_bytes(bound.lowest_bytes_per_s)} to "
        f"{format_bytes(bound.highest_bytes_per_s)}"
    )


def _energy(energy: Energy | str) -> str:
    if isinstance(energy, str):
        return f"Energy: N/A, {energy}."
    tests = ", ".join(
        f"{name} {test.tokens_per_joule:.2f} tokens/J ({test.joules:.1f} J)"
        for name, test in energy.tests.items()
    )
    return f"Energy: {tests}; source: {energy.source}."


def _tokens_per_joule(report: BenchReport, result: TestResult) -> str:
    known = report.energy.tests if isinstance(report.energy, Energy) else {}
    test = known.get(result.test.name)
    return "" if test is None else f"{test.tokens_per_joule:.3f}"


def _words(values: dict[str, float] | dict[str, object] | None) -> str:
    return ", ".join(f"{key} {value}" for key, value in (values or {}).items())


def _share(report: BenchReport, result: TestResult) -> str:
    if report.bound is None or not result.test.new_tokens:
        return ""
    return f"{report.bound.percent(result):.0f}"


def _places(summary: Summary | None, *percents: int) -> list[str]:
    if summary is None:
        return [""] * len(percents)
    return [f"{getattr(summary, f'p{percent}'):.2f}" for percent in percents]


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]], *, text_columns: int) -> str:
    """A table with aligned columns: the first `text_columns` to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    rule = [
        "-" * width if place < text_columns else "-" * (width - 1) + ":"
        for place, width in enumerate(widths)
    ]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if place < text_columns else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "| " + " | ".join(padded) + " |"

    return "\n".join(line(cells) for cells in [head, rule, *rows])


_CSV_HEAD = (
    "model", "engine_bytes", "precision", "backend", "threads", "test", "prompt_tokens",
    "new_tokens", "depth", "n", "tokens_per_s_mean", "tokens_per_s_stddev", "tokens_per_s_p50",
    "ttft_ms_p50", "ttft_ms_p95", "itl_ms_p50", "itl_ms_p95", "itl_ms_p99", "bandwidth_percent",
    "load_ms", "peak_rss_bytes", "manifest_sha256", "tokens_per_joule",
)  # fmt: skip


def to_csv(report: BenchReport) -> str:
    """One line per test; a value that does not apply is empty."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_CSV_HEAD)
    for r in report.tests:
        speeds = r.tokens_per_s
        writer.writerow(
            [
                report.model, report.engine_bytes, report.precision, report.backend,
                report.conditions.threads, r.test.name, r.test.prompt_tokens, r.test.new_tokens,
                r.test.depth, report.repetitions,
                *(f"{x:.3f}" for x in (speeds.mean, speeds.stddev, speeds.p50)),
                *_places(r.ttft_ms, 50, 95), *_places(r.itl_ms, 50, 95, 99), _share(report, r),
                f"{report.load_ms:.1f}", report.peak_rss_bytes, report.manifest_sha256,
                _tokens_per_joule(report, r),
            ]
        )  # fmt: skip
    return out.getvalue().rstrip("\n")
