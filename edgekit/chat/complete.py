"""What may be completed in the input line: commands, their arguments, and paths after `@`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from edgekit.chat.attach import complete_path
from edgekit.chat.commands import COMMANDS

_MENTION = re.compile(r"""(?:^|[\s(\[{,;:])@(?:"([^"\n]*)|'([^'\n]*)|([^\s"']*))$""")


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A text that would stand in place of the last `num_replaced` characters."""

    text: str
    num_replaced: int
    note: str = ""


def completes(text: str) -> bool:
    """Whether the text before the cursor is of a kind that is completed while it is typed."""
    return text.startswith("/") or _MENTION.search(text) is not None


def complete(text: str) -> Iterator[Candidate]:
    """Candidates for the text before the cursor."""
    if text.startswith("/") and "\n" not in text:
        name, blank, rest = text.partition(" ")
        yield from _arguments(name, rest) if blank else _names(name)
    elif match := _MENTION.search(text):
        start = next(group for group in match.groups() if group is not None)
        is_quoted = match[3] is None
        for path in complete_path(start):
            needs_quotes = not is_quoted and re.search(r"[\s'\"()]", path)
            text = f'"{path}' + '"' * (not path.endswith("/")) if needs_quotes else path
            yield Candidate(text=text, num_replaced=len(start))


def _names(start: str) -> Iterator[Candidate]:
    for command in COMMANDS.values():
        if command.name.startswith(start):
            yield Candidate(text=command.name, num_replaced=len(start), note=command.help)


def _arguments(name: str, start: str) -> Iterator[Candidate]:
    command = COMMANDS.get(name)
    if command is None:
        return
    for choice in command.choices:
        if choice.startswith(start):
            yield Candidate(text=choice, num_replaced=len(start))
    if command.takes_path:
        for path in complete_path(start.lstrip("'\"")):
            yield Candidate(text=path, num_replaced=len(start.lstrip("'\"")))
