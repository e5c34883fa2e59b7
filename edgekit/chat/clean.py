"""Text that others wrote, made fit for a terminal: nothing in it may move the cursor or lie."""

from __future__ import annotations

import re

_UNFIT = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 without tab and newline, DEL, C1: escape sequences begin so
    "\u202a-\u202e\u2066-\u2069]"  # bidirectional overrides, embeddings and isolates
)
_SURROGATES = re.compile("[\ud800-\udfff]")


def clean_text(text: str) -> str:
    """Drop control characters and direction overrides; unpaired surrogates become U+FFFD."""
    text = text.replace("\u2028", "\n").replace("\u2029", "\n\n")
    return _SURROGATES.sub("\ufffd", _UNFIT.sub("", text))


def clean_line(text: str) -> str:
    """The same on one line: runs of white space become one space."""
    return " ".join(clean_text(text).split())
