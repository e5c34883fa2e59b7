"""What fills the context, as a bar of blocks and as words."""

from __future__ import annotations

from edgekit.chat.contract import ContextUse

_GLYPHS = "█▓▒▚▞▤"
_FREE = "░"
_BAR_CELLS = 60


def describe_context(use: ContextUse, *, width: int) -> str:
    """A bar of at most `width` cells, and below it the tokens of each part."""
    used = sum(tokens for _, tokens in use.parts)
    free = max(use.total_tokens - used, 0)
    present = [(name, tokens) for name, tokens in use.parts if tokens]
    parts = [(_GLYPHS[at % len(_GLYPHS)], *part) for at, part in enumerate(present)]
    cells = shares([tokens for *_, tokens in parts] + [free], max(min(width, _BAR_CELLS), 1))
    glyphs = [glyph for glyph, *_ in parts] + [_FREE]
    bar = "".join(glyph * count for glyph, count in zip(glyphs, cells, strict=True))
    legend = [f"{glyph} {name} {tokens:,}" for glyph, name, tokens in parts]
    reserve = min(use.reserve_tokens, free)
    kept = f", {reserve:,} of them for the answer" if reserve else ""
    legend.append(f"{_FREE} free {free:,}{kept}")
    return f"{bar}\n{'  '.join(legend)}\n{used:,} of {use.total_tokens:,} tokens"


def small_bar(used_tokens: int, total_tokens: int, cells: int = 8) -> str:
    """`███░░░░░`."""
    full = shares([used_tokens, max(total_tokens - used_tokens, 0)], cells)[0]
    return "█" * full + _FREE * (cells - full)


def shares(amounts: list[int], cells: int) -> list[int]:
    """`cells` shared in proportion, by largest remainder; what is not 0 gets a cell if it can."""
    total = sum(amounts)
    if not total:
        return [0] * (len(amounts) - 1) + [cells]
    exact = [amount * cells / total for amount in amounts]
    counts = [max(int(e), 1 if e else 0) for e in exact]
    while (excess := sum(counts) - cells) > 0:
        largest = max(range(len(counts)), key=counts.__getitem__)
        counts[largest] -= min(excess, max(counts[largest] - 1, 1))
    by_remainder = sorted(range(len(counts)), key=lambda i: counts[i] - exact[i])
    for at in range(cells - sum(counts)):
        counts[by_remainder[at % len(counts)]] += 1
    return counts
