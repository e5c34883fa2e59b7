"""The report: Markdown for an issue, JSON for programs."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgekit.units import format_duration
from gpu_check.lines import Line, Part, format_value

_TITLES = {
    "device": "Device",
    "build": "build",
    "numerics": "numbers, card against processor",
    "memory": "memory of the card",
    "first load": "first load, no kernels kept",
    "speed": "second load, and speed",
    "verify": "answers, engine against checkpoint",
    "chat": "what a session has to do",
    "bench": "load, and speed",
}
_RESULTS = {True: "PASS", False: "**FAIL**", None: ""}


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All parts, and how to get them again."""

    command: Sequence[str]
    versions: Mapping[str, str]
    model: str
    parts: Sequence[Part]
    is_interrupted: bool = False

    @property
    def passed(self) -> bool:
        """Every line that is judged passed, there is one, and nothing was cut off."""
        judged = [line for part in self.parts for line in part.lines if line.passed is not None]
        return bool(judged) and all(line.passed for line in judged) and not self.is_interrupted

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "command": list(self.command),
            "versions": dict(self.versions),
            "model": self.model,
            "passed": self.passed,
            "is_interrupted": self.is_interrupted,
            "parts": [part.to_dict() for part in self.parts],
        }


def to_markdown(report: Report) -> str:
    """Verdict and versions on top, then a table for each part."""
    judged = [line for part in report.parts for line in part.lines if line.passed is not None]
    good = sum(line.passed is True for line in judged)
    verdict = "PASS" if report.passed else "FAIL"
    cut = ", interrupted" if report.is_interrupted else ""
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    head = [
        f"# gpu-check: {verdict}, {good} of {len(judged)} checks passed{cut}",
        "",
        f"`{shlex.join(report.command)}`  ",
        f"{report.model}; {versions}",
    ]
    return "\n".join([*head, *(_section(part) for part in report.parts)])


def _section(part: Part) -> str:
    title = _TITLES.get(part.step, part.step)
    title = f"{part.subject}: {title}" if part.subject else title
    return f"\n## {title} ({format_duration(part.seconds)})\n\n{_table(part.lines)}"


def _table(lines: Sequence[Line]) -> str:
    """Columns that are empty in every line are left out."""
    head = ["check", "measured", "planned", "ratio", "limit", "result", "note"]
    rows = [_cells(line) for line in lines]
    kept = [i for i in range(len(head)) if i == 0 or any(row[i] for row in rows)]
    table = [
        [head[i] for i in kept],
        ["---"] * len(kept),
        *([row[i] for i in kept] for row in rows),
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in table)


def _cells(line: Line) -> list[str]:
    measured = "" if line.value is None else format_value(line.value, line.unit)
    if len(line.samples) > 1:
        low, high = (_bare(f(line.samples), line.unit) for f in (min, max))
        measured += f" ({low} to {high})"
    planned = ratio = ""
    if line.planned is not None:
        planned = format_value(line.planned, line.unit)
        if line.value is not None and line.planned:
            ratio = f"{line.value / line.planned:.2f}"
    cells = [line.name, measured, planned, ratio, line.limit, _RESULTS[line.passed], line.note]
    return [" ".join(cell.replace("|", "/").split()) for cell in cells]


def _bare(value: float, unit: str) -> str:
    return format_value(value, unit).removesuffix(f" {unit}") if unit else format_value(value, unit)
