"""Set a benchmark beside an earlier one of the same shape."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgekit.bench.report import BenchReport
from edgekit.bench.tables import markdown_table
from edgekit.errors import InputError

_MUST_AGREE = ("threads", "power_mode")
"""Conditions that change a speed by themselves; clocks and temperatures always differ a little."""


def read_earlier(path: Path) -> dict[str, Any]:
    """What `edgekit bench --json` wrote. Raises `InputError`."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        speeds = {t["name"]: float(t["tokens_per_s"]["p50"]) for t in data["tests"]}
        conditions = dict(data["conditions"])
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise InputError(
            f"cannot read the benchmark {path}: {exc}",
            hint="write one with `edgekit bench --json > FILE`",
        ) from exc
    return {**data, "speeds": speeds, "conditions": conditions}


def compare(report: BenchReport, earlier: Mapping[str, Any]) -> str:
    """A Markdown table of medians and their ratio, then what makes the comparison unfair."""
    speeds = earlier["speeds"]
    rows = []
    for result in report.tests:
        name, now = result.test.name, result.tokens_per_s.p50
        if before := speeds.get(name):
            rows.append([name, f"{before:.2f}", f"{now:.2f}", f"{now / before:.3f}"])
    if not rows:
        return f"No test in common: the earlier run has {', '.join(speeds) or 'none'}."
    head = ["test", "tokens/s before", "now", "ratio"]
    table = markdown_table(head, rows, text_columns=1)
    return "\n\n".join([table, *(f"Note: {note}." for note in _differences(report, earlier))])


def _differences(report: BenchReport, earlier: Mapping[str, Any]) -> list[str]:
    now = report.to_dict()
    pairs = [("device", earlier.get("device"), now["device"])]
    pairs.append(("timing", earlier.get("timing", "calls"), now["timing"]))
    pairs += [(k, earlier["conditions"].get(k), now["conditions"][k]) for k in _MUST_AGREE]
    notes = [
        f"{name} differs: {json.dumps(before)} before, {json.dumps(after)} now"
        for name, before, after in pairs
        if before != after
    ]
    if earlier.get("manifest_sha256") != report.manifest_sha256:
        notes.append("the engines differ")
    return notes
