"""One request to a worker, and the lines that answer it."""

from __future__ import annotations

import json
import queue
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any

from edgekit.errors import EdgekitError

_MAX_LINE_BYTES = 1 << 20
LAST_TYPES = frozenset({"done", "scores", "error"})
"""A request's last message is one of these."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long a worker may take. None of them bounds an answer that comes."""

    start_s: float = 900
    """Until it is loaded; an 8B engine from a slow disk takes minutes."""
    ping_every_s: float = 10
    ping_s: float = 60
    """Without an answer to a ping."""
    silence_s: float = 600
    """Without a token for any open request: longer than the longest prefill."""
    close_s: float = 5
    """For each of: ending by itself, and after SIGTERM."""


def parse_line(line: bytes) -> dict[str, Any] | None:
    """The message in a line of the protocol; None when it is none."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):  # a UnicodeDecodeError is a ValueError
        return None
    is_message = isinstance(message, dict) and isinstance(message.get("type"), str)
    if not is_message or type(message.get("id", 0)) is not int:
        return None
    return message if type(message.get("token_ids", [])) is list else None


def read_lines(stream: IO[bytes]) -> Iterator[bytes]:
    """Lines until `stream` ends; of one that is too long for a message only its beginning."""
    while line := stream.readline(_MAX_LINE_BYTES):
        yield line
        while not line.endswith(b"\n") and (line := stream.readline(_MAX_LINE_BYTES)):
            pass


class Request:
    """One open request. Iterate it for its messages: the last one is `done` or `scores`."""

    def __init__(self, number: int, cancel: Callable[[int], None]) -> None:
        self.number = number
        self._cancel = cancel
        self._answers: queue.SimpleQueue[dict[str, Any] | EdgekitError] = queue.SimpleQueue()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Raises what `Worker.ask` says."""
        while True:
            answer = self._answers.get()
            if isinstance(answer, EdgekitError):
                raise answer
            yield answer
            if answer["type"] in LAST_TYPES:
                return

    def cancel(self) -> None:
        """Have no more of it. Does nothing when it has ended."""
        self._cancel(self.number)

    def put(self, answer: dict[str, Any] | EdgekitError) -> None:
        """Give it to whoever iterates."""
        self._answers.put(answer)
