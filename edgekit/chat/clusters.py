"""Emoji of several characters, whose width every terminal sees in its own way.

A family of three is 2 cells wide where its characters are joined, and 6 where they are not; a
thumb with a skin tone 2 or 4. Lines are wrapped for the widest reading, so that none of them is
too long for any terminal: while a text is laid out, placeholders of that width stand for them.
"""

from __future__ import annotations

import re

from rich.cells import cell_len

_SYMBOL = "[\u2000-\u3300\U0001f000-\U0001faff]"
_CLUSTER = re.compile(
    f"(?:{_SYMBOL}|[0-9#*](?=\ufe0f))(?:[\ufe0f\u20e3\U0001f3fb-\U0001f3ff]|\u200d{_SYMBOL})+"
    "|[\U0001f1e6-\U0001f1ff]{2}"
)
_WIDE = re.compile("[\U0001f1e6-\U0001f1ff\U0001f3fb-\U0001f3ff]")
"""Letters of flags and skin tones, where they stand by themselves."""
_OPEN_END = re.compile("\u200d(?!\\S)")
"""A joiner that joins nothing yet; tmux takes the next character written anywhere for its other."""
_FIRST = 0x100000
_REST = "\U0010fffd"
"""Private use; a text that has such characters itself loses them."""
_PRIVATE = re.compile("[\U00100000-\U0010fffd]")


class Placeholders:
    """Stand-ins for the clusters of a text, one cell each."""

    def __init__(self) -> None:
        self._codes: dict[str, int] = {}
        self._clusters: dict[int, str | None] = {ord(_REST): None}

    def put(self, text: str) -> str:
        """The text with as many cells for each cluster as it takes at most."""
        if text.isascii():
            return text
        text = _PRIVATE.sub("\ufffd", _OPEN_END.sub("", text))
        return _CLUSTER.sub(self._stand_in, text)

    def take(self, text: str) -> str:
        """The clusters back in their places."""
        return text if text.isascii() else text.translate(self._clusters)

    def _stand_in(self, match: re.Match[str]) -> str:
        cluster = match[0]
        code = self._codes.setdefault(cluster, _FIRST + len(self._codes) % 0xFF00)
        self._clusters[code] = cluster
        return chr(code) + _REST * (_most_cells(cluster) - 1)


def _most_cells(cluster: str) -> int:
    """Every character by itself; a variation selector may make its own a wide one."""
    narrow = {"\ufe0f": 1, "\u20e3": 1, "\u200d": 0}
    return sum(2 if _WIDE.match(char) else narrow.get(char, cell_len(char)) for char in cluster)
