"""A short text that a regular expression is likely to match: a guess, which others check."""

from __future__ import annotations

import re

_FAVOURITES = "a0A -_.!"
_CLASSES = {"d": "0", "w": "a", "s": " ", "D": "a", "W": " ", "S": "a", "p": "a", "P": " "}
_CONTROLS = {"n": "\n", "r": "\r", "t": "\t", "f": "\f", "v": "\v"}
_EDGES = "bBAzZ"
_COUNT = re.compile(r"\{(\d+)(?:,\d*)?\}[?+]?|[*+?][?+]?")
_GROUP = re.compile(r"\(\?(?P<look><?[=!])|\(\?[a-zA-Z-]*:|\(\?P?<\w+>|\(\?[a-zA-Z-]+(?=\))|\(")
_ESCAPE = re.compile(
    r"\\(?:x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|[xu]\{([0-9A-Fa-f]+)\}|[pP]\{\^?\w+\}|(.))",
    re.DOTALL,
)
_LONGEST = 2000


def example_of(pattern: str) -> str:
    """A text for `pattern`, with every repetition as short as it may be; `""` for a broken one."""
    try:
        text, _ = _alternatives(pattern, 0)
    except (IndexError, OverflowError, RecursionError, ValueError):
        return ""
    return text[:_LONGEST]


def _alternatives(pattern: str, place: int) -> tuple[str, int]:
    """The shortest of what `|` divides, and the place of the `)` behind it or of the end."""
    texts: list[str] = []
    while True:
        text, place = _sequence(pattern, place)
        texts.append(text)
        if place == len(pattern) or pattern[place] == ")":
            return min(texts, key=len), place
        place += 1


def _sequence(pattern: str, place: int) -> tuple[str, int]:
    text = ""
    while place < len(pattern) and pattern[place] not in "|)":
        atom, place = _atom(pattern, place)
        if count := _COUNT.match(pattern, place):
            place = count.end()
            least = int(count[1]) if count[1] else int(count[0][0] == "+")
            atom *= min(least, _LONGEST)
        text = (text + atom)[:_LONGEST]
    return text, place


def _atom(pattern: str, place: int) -> tuple[str, int]:
    char = pattern[place]
    if char == "[":
        return _class(pattern, place + 1)
    if char == "\\":
        return _escape(pattern, place)
    if group := _GROUP.match(pattern, place):
        text, end = _alternatives(pattern, group.end())
        return "" if group["look"] else text, end + 1
    return {".": "a", "^": "", "$": ""}.get(char, char), place + 1


def _class(pattern: str, place: int) -> tuple[str, int]:
    """A member of `[...]`, whose inside begins at `place`."""
    is_negated = pattern[place] == "^"
    place += is_negated
    members: list[str] = []
    start = place
    while pattern[place] != "]" or place == start:
        char, place = _member(pattern, place)
        members.append(char)
        if pattern[place] == "-" and pattern[place + 1] != "]":
            last, place = _member(pattern, place + 1)
            members += [c for c in _FAVOURITES if char <= c <= last]
    if is_negated:
        return next((c for c in _FAVOURITES if c not in members), "a"), place + 1
    return next((c for c in _FAVOURITES if c in members), members[0]), place + 1


def _member(pattern: str, place: int) -> tuple[str, int]:
    return _escape(pattern, place) if pattern[place] == "\\" else (pattern[place], place + 1)


def _escape(pattern: str, place: int) -> tuple[str, int]:
    found = _ESCAPE.match(pattern, place)
    if found is None:
        raise ValueError("a backslash at the end")
    if code := found[1] or found[2] or found[3]:
        return chr(int(code, 16)), found.end()
    char = found[4] or found[0][1]
    if char in _EDGES:
        return "", found.end()
    return _CLASSES.get(char) or _CONTROLS.get(char) or char, found.end()
