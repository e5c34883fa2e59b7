"""TOML files that edgekit owns: read into dataclasses, with the line of what is wrong.

Unknown keys are errors, so a typing mistake never silently changes a plan or an engine. A field's
type says what its value must be; the kinds that occur are the rows of `_RULES`.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from edgekit.errors import EdgekitError, ProfileError

_Row = TypeVar("_Row")
_SHOWN = 60
_LARGEST = 2**63
_NAME = r"""(?:"[^"]*"|'[^']*'|[\w-]+)"""
_NAMES = rf"{_NAME}(?:\s*\.\s*{_NAME})*"
_HEADER = re.compile(rf"\s*(\[\[?)\s*({_NAMES})\s*\]\]?\s*(?:#.*)?$")
_KEY = re.compile(rf"\s*({_NAMES})\s*=")


class FieldError(ValueError):
    """A value that its type allows and its meaning does not; raised when a row is constructed."""

    def __init__(self, key: str, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.key = key
        """The field; `table.key` for one in a table of its own."""
        self.hint = hint


def require_positive(row: Any, *names: str) -> None:
    """Raises `FieldError` for a field of `row` that is there and not positive."""
    for name in names:
        value = getattr(row, name)
        if value is not None and value < 1:
            raise FieldError(name, f"`{name}` must be 1 or more: {value}")


class TomlFile:
    """One file: its data, and its text to find a key's line in."""

    def __init__(self, path: Path, *, error: type[EdgekitError] = ProfileError) -> None:
        """Raises `error` when it cannot be read, or is not TOML: that message has a line too."""
        self.path = path
        self.error = error
        try:
            self.text = path.read_text(encoding="utf-8")
            self.data: dict[str, Any] = tomllib.loads(self.text)
        except OSError as exc:
            hint = "check the name, or list what is there with `edgekit profiles`"
            raise error(f"cannot read {path}: {exc.strerror or exc}", hint=hint) from exc
        except (ValueError, RecursionError) as exc:  # not UTF-8, not TOML, a number without end
            raise error(f"{path} is not TOML: {exc}", hint="see https://toml.io") from exc
        self._lines = _find_lines(self.text)

    def row(self, kind: type[_Row], data: Mapping[str, Any], *, table: str = "") -> _Row:
        """`data`, which is table `table` of this file, as a `kind`. Raises the file's error."""
        where = f"[{table}]" if table else "the top level"
        known = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]  # only dataclasses
        for key, value in data.items():
            if key not in known:
                raise self.error(
                    f"{self.at(table, key)}: unknown key in {where}: {key}",
                    hint=f"known keys are {', '.join(sorted(known))}",
                )
            is_right, said = _RULES.get(str(known[key].type), (lambda _: True, ""))
            if not is_right(value):
                shown = repr(value) if len(repr(value)) <= _SHOWN else type(value).__name__
                raise self.error(f"{self.at(table, key)}: `{key}` must be {said}: {shown}")
        for name, f in known.items():
            is_needed = f.default is MISSING and f.default_factory is MISSING
            if is_needed and name not in data:
                raise self.error(f"{self.at(table)}: {where} lacks `{name}`")
        try:
            return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in data.items()})
        except FieldError as exc:
            inner, _, key = exc.key.rpartition(".")
            place = self.at(".".join(part for part in (table, inner) if part), key)
            raise self.error(f"{place}: {exc}", hint=exc.hint) from exc

    def at(self, table: str, key: str = "") -> str:
        """`file:line` of a key in a table, or of the table; the file alone where neither is found.

        A table of an array is named with its place: `modes.1` is the second `[[modes]]`. A key of
        an inline table is found at the line of that table.
        """
        path = tuple(name for name in (*table.split("."), key) if name)
        while path and path not in self._lines:
            path = path[:-1]
        return f"{self.path}:{self._lines[path]}" if path else str(self.path)


def _find_lines(text: str) -> dict[tuple[str, ...], int]:
    """Names from the top down -> the line of that table or key.

    Made for what people write: headers and keys at the start of a line. Whatever else it takes for
    one can only make a message name the wrong line.
    """
    lines: dict[tuple[str, ...], int] = {}
    table: tuple[str, ...] = ()
    for number, line in enumerate(text.split("\n"), 1):
        if header := _HEADER.match(line):
            table = path = _split(header[2])
            if header[1] == "[[":
                place = sum(known[:-1] == table for known in lines if known[-1].isdecimal())
                table = path = (*table, str(place))
        elif key := _KEY.match(line):
            path = (*table, *_split(key[1]))
        else:
            continue
        for length in range(1, len(path) + 1):
            lines.setdefault(path[:length], number)
    return lines


def _split(names: str) -> tuple[str, ...]:
    return tuple(name.strip("\"'") for name in re.findall(_NAME, names))


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _LARGEST


def _is_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(v, str) for v in value.values())


_RULES: Mapping[str, tuple[Callable[[Any], bool], str]] = MappingProxyType(
    {
        "str": (lambda value: isinstance(value, str), "text"),
        "str | None": (lambda value: isinstance(value, str), "text"),
        "bool": (lambda value: isinstance(value, bool), "true or false"),
        "int": (_is_whole, "a whole number >= 0"),
        "int | None": (_is_whole, "a whole number >= 0"),
        "tuple[str, ...]": (
            lambda value: isinstance(value, list) and all(isinstance(item, str) for item in value),
            "a list of names",
        ),
        "Mapping[str, str]": (_is_texts, "a table of texts"),
    }
)
"""A field's type -> what its value in a file must be, and how to say so."""
