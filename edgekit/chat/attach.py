"""Text files that go with a message: named in it as `@path`, or given to `/attach`."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from edgekit.errors import InputError
from edgekit.units import format_bytes

LIMIT_BYTES = 256 * 1024
"""Of all files of one message together: some 60,000 tokens, more than most engines hold."""

_MENTION = re.compile(
    r"""(?<![^\s(\[{,;:])      # at the start of a word: no e-mail address, nothing in backticks
        @ (?: "([^"\n]+)" | '([^'\n]+)' | ([\w.~/+%=,:@-]+) )
        (?! [(\w`] )           # a call of a decorator is no path""",
    re.VERBOSE,
)
_CODE = re.compile(r"(?ms)^ {0,3}(```+|~~~+).*?(?:^ {0,3}\1[`~]*\s*$|\Z)|`[^`\n]+`")
_SUFFIXES = frozenset(
    """bash bib c cc cfg conf cpp cs css csv cu cuh diff docx go h hpp html ini ipynb java jpg js
    json jsonl kt log lua md patch pdf php png proto ps1 py r rb rs rst scala sh sql svg swift
    tex toml ts tsv tsx txt xml yaml yml zig""".split()  # noqa: SIM905  # so it fits in three lines
)
"""A missing `@name.suffix` with one of these was meant to be a file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """A file as it goes into a message."""

    name: str
    """As the user wrote it."""
    text: str
    size_bytes: int

    def describe(self) -> str:
        """`notes.txt (1.20 KiB)`."""
        return f"{self.name} ({format_bytes(self.size_bytes)})"


def read_attachment(name: str, *, hint: str | None = None) -> Attachment:
    """The file at a path, `~` allowed. Raises `InputError` when it is no text, or too large."""
    path = _expanded(name)
    try:
        if not path.is_file():
            problem = "not a file" if path.exists() else "there is no such file"
            raise InputError(f"{problem}: {name}", hint=hint)
        if (size := path.stat().st_size) > LIMIT_BYTES:
            raise _too_large(name, size)
        data = path.read_bytes()
    except (OSError, ValueError) as exc:
        raise InputError(f"cannot read {name}: {getattr(exc, 'strerror', None) or exc}") from exc
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise InputError(f"not UTF-8 text: {name}") from exc
    if "\0" in text:
        raise InputError(f"not a text file, for it holds NUL characters: {name}")
    return Attachment(name=name, text=text.replace("\r\n", "\n"), size_bytes=len(data))


def mentioned(text: str) -> list[Attachment]:
    """The files named as `@path` in a message, each once, in order; nothing inside code counts.

    Raises `InputError` for a path that leads nowhere; an e-mail address or a name is left alone.
    """
    found: dict[str, Attachment] = {}
    for match in _MENTION.finditer(_CODE.sub(lambda code: "`" * len(code[0]), text)):
        quoted = match[1] or match[2]
        name = quoted or _existing(match[3])
        if name not in found and (quoted or _is_path(name)):
            found[name] = read_attachment(name, hint="to say it as it is, put it in `backticks`")
    return list(found.values())


def attach(text: str, files: Sequence[Attachment]) -> str:
    """The message with the files below it, each in a fence that its text cannot close."""
    total = sum(file.size_bytes for file in files)
    if total > LIMIT_BYTES:
        raise _too_large("the attached files", total)
    return "\n\n".join([part for part in (text,) if part] + [_fenced(file) for file in files])


def typed_part(message: str) -> str:
    """A message as it was typed, without the files that `attach` put below it for its `@path`s."""
    for match in _MENTION.finditer(message):
        bare = (match[1] or match[2] or match[3]).rstrip(".,:")
        start, found, _ = message.partition(f"\n\n{bare}:\n```")
        if found:
            return start
    return message


def split_paths(text: str) -> list[str]:
    """What was typed, pasted or dragged after `/attach`: quoted, escaped, or `file://` URLs."""
    if _is_file(text):
        return [text]
    try:
        words = shlex.split(text)
    except ValueError:
        words = [text.strip("'\"")]
    return [unquote(urlsplit(w).path) if w.startswith("file://") else w for w in words]


def complete_path(start: str) -> Iterator[str]:
    """At most 200 paths that begin with `start`, directories with a slash; hidden ones if asked."""
    folder, _, name = start.rpartition("/")
    folder = f"{folder}/" if "/" in start else ""
    try:
        with os.scandir(_expanded(folder)) as entries:
            names = [
                entry.name + ("/" if entry.is_dir() else "")
                for entry in entries
                if entry.name.startswith(name) and (name or not entry.name.startswith("."))
            ]
    except OSError:
        return
    yield from (folder + found for found in sorted(names)[:200])


def _expanded(name: str) -> Path:
    try:
        return Path(name).expanduser()
    except RuntimeError:  # the home of nobody
        return Path(name)


def _existing(name: str) -> str:
    """The path without the punctuation of the sentence it stands in, if that is what exists."""
    bare = name.rstrip(".,:")
    return name if bare == name or _is_file(name) else bare


def _is_path(name: str) -> bool:
    suffix = Path(name).suffix[1:].lower()
    return _is_file(name) or "/" in name or name.startswith("~") or suffix in _SUFFIXES


def _is_file(name: str) -> bool:
    try:
        return _expanded(name).is_file()
    except OSError:  # longer than any path
        return False


def _fenced(file: Attachment) -> str:
    longest = max((len(run) for run in re.findall("`{3,}", file.text)), default=2)
    fence = "`" * (longest + 1)
    newline = "" if file.text.endswith("\n") or not file.text else "\n"
    return f"{file.name}:\n{fence}{Path(file.name).suffix[1:]}\n{file.text}{newline}{fence}"


def _too_large(what: str, size: int) -> InputError:
    return InputError(
        f"{what}: {format_bytes(size)}, a message takes {format_bytes(LIMIT_BYTES)} of files",
        hint="attach the part that matters",
    )
