"""What is printed: a Markdown table of medians, and edgekit's ratios to its peers."""

from __future__ import annotations

from collections.abc import Sequence

from edgekit.bench.tables import markdown_table
from edgekit.units import format_bytes
from peers.rounds import Outcome


def speed_table(outcomes: Sequence[Outcome], prompt_tokens: int, new_tokens: int) -> str:
    """Medians in tokens/s, then how many times as fast edgekit's engines are, round by round."""
    head = [
        "engine", f"prefill {prompt_tokens}", f"decode {new_tokens}",
        f"decode {new_tokens} @ {prompt_tokens}", "load s", "peak RSS", "note",
    ]  # fmt: skip
    rows = [
        [
            outcome.engine.title,
            *(_number(outcome.median(metric)) for metric in ("pp", "tg", "tg_deep")),
            _number(outcome.median("load_s"), digits=2),
            format_bytes(int(outcome.median("peak_rss_bytes") or 0)) if outcome.turns else "-",
            outcome.error or "",
        ]
        for outcome in outcomes
    ]
    parts = [markdown_table(head, rows, text_columns=1)]
    for ours in (o for o in outcomes if o.engine.is_ours and o.turns):
        ratios = [
            [peer.engine.title, *(_ratio(ours, peer, metric) for metric in ("pp", "tg", "tg_deep"))]
            for peer in outcomes
            if not peer.engine.is_ours and peer.turns
        ]
        if ratios:
            parts.append(
                markdown_table([f"{ours.engine.title} /", *head[1:4]], ratios, text_columns=1)
            )
    return "\n\n".join(parts)


def _number(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _ratio(ours: Outcome, peer: Outcome, metric: str) -> str:
    value = ours.ratio(peer, metric)
    return "-" if value is None else f"{value:.2f}"
