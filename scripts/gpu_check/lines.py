"""What was measured, against what: the lines of a report."""

from __future__ import annotations

import math
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from edgekit.errors import EdgekitError


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One measured value. `passed` is `None` where it is told and not judged."""

    name: str
    value: float | None = None
    unit: str = ""
    """`bytes`, `s`, `tokens/s`; empty: a bare number."""
    planned: float | None = None
    limit: str = ""
    passed: bool | None = None
    samples: tuple[float, ...] = ()
    """Of which `value` is the median."""
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A step: its lines, and how long it took."""

    step: str
    subject: str = ""
    """The precision; empty for the device."""
    seconds: float = 0.0
    lines: tuple[Line, ...] = field(default=())

    @property
    def passed(self) -> bool:
        """Nothing failed."""
        return all(line.passed is not False for line in self.lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; what is no number of JSON is `null`."""
        data = asdict(self)
        for line in data["lines"]:
            line["samples"] = list(line["samples"])
            for key in ("value", "planned"):
                if line[key] is not None and not math.isfinite(line[key]):
                    line[key] = None
        return {**data, "lines": list(data["lines"]), "passed": self.passed}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """What `to_dict` gave."""
        rows = [{**row, "samples": tuple(row["samples"])} for row in data["lines"]]
        return cls(
            step=data["step"],
            subject=data["subject"],
            seconds=data["seconds"],
            lines=tuple(Line(**row) for row in rows),
        )


def told(name: str, value: float | None = None, unit: str = "", **more: Any) -> Line:
    """A line that nothing is expected of."""
    return Line(name=name, value=value, unit=unit, **more)


def at_most(name: str, value: float, limit: float, unit: str = "", **more: Any) -> Line:
    """Passes when `value` is not above `limit`; NaN never passes."""
    # NaN compares false with everything: ask for what must hold
    said = f"≤ {format_value(limit, unit)}"
    return Line(name=name, value=value, unit=unit, limit=said, passed=value <= limit, **more)


def at_least(name: str, value: float, limit: float, unit: str = "", **more: Any) -> Line:
    """Passes when `value` is not below `limit`; NaN never passes."""
    said = f"≥ {format_value(limit, unit)}"
    return Line(name=name, value=value, unit=unit, limit=said, passed=value >= limit, **more)


def must(name: str, passed: bool, note: str = "") -> Line:
    """A line without a number."""
    return Line(name=name, passed=passed, note=note)


def failed(name: str, exc: BaseException) -> Line:
    """The line of a check that did not come to its end."""
    if not isinstance(exc, EdgekitError):
        traceback.print_exception(exc, file=sys.stderr)
    said = str(exc) if isinstance(exc, EdgekitError) else f"{type(exc).__name__}: {exc}"
    hint = getattr(exc, "hint", None)
    return must(name, False, f"{said} ({hint})" if hint else said)


def guarded(name: str, check: Callable[[], Sequence[Line]]) -> Sequence[Line]:
    """The lines of a check; one that raises is a line that failed."""
    try:
        return check()
    except Exception as exc:  # whatever a driver or an engine may do: it belongs in the report
        return [failed(name, exc)]


def format_value(value: float, unit: str) -> str:
    """`0.00312`, `1.50 GiB`, `812 tokens/s`, `0.24 s`."""
    from edgekit.units import format_bytes

    if not math.isfinite(value):
        return str(value)
    if unit == "bytes":
        return format_bytes(round(value))
    if unit == "tokens/s":
        return f"{value:.0f} tokens/s" if value >= 100 else f"{value:.1f} tokens/s"
    if unit == "s":
        return f"{value:.2f} s"
    if unit == "%":
        return f"{value:.0f} %"
    return f"{value:.3g}"
