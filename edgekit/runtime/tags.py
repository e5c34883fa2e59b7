"""Find literal tags in text that comes in pieces."""

from __future__ import annotations

import re
from collections.abc import Sequence


def tag_pattern(tags: Sequence[str], *others: str) -> str:
    """A pattern that matches a tag, one of the patterns `others`, or a tag that is cut off.

    The group `tag` is a whole tag, `cut` the beginning of one that reaches to the end of the
    text, so that the next piece may complete it. The leftmost match is the one that counts: no
    tag may contain another one.
    """
    beginnings = {tag[:size] for tag in tags for size in range(1, len(tag))}
    whole, cut = "|".join(map(re.escape, tags)), "|".join(map(re.escape, sorted(beginnings)))
    return "|".join((f"(?P<tag>{whole})", *others, rf"(?P<cut>(?:{cut or '(?!)'})\Z)"))
