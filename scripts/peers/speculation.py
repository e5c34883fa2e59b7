"""What prompt lookup gains: answers to prompts of several kinds, with drafts and without."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgekit.bench.conditions import BUSY_PERCENT, busy_percent
from edgekit.bench.tables import markdown_table
from edgekit.device import read_device
from edgekit.runtime.draft_policy import marginal_cost, measure_marginal_cost
from edgekit.runtime.load import load_engine
from peers.environment import CACHE, say
from peers.speculation_runs import Asker, PromptResult, middle

_PROMPTS = Path(__file__).with_name("speculation.toml")
_FEW_LOOPS = 0.1
"""Share of an answer that repeats itself, up to which its ratio says something of other models."""
_PREFIX_TOKENS = 256
"""Tokens in the KV cache while the marginal cost is measured."""


def compare_speculation(
    engines: Sequence[Path],
    *,
    new_tokens: int,
    rounds: int,
    threads: int,
    cost: float | None,
    out: Path | None,
) -> int:
    """Print one table for each engine and write everything as JSON.

    `cost` of a drafted token is what the drafter counts on; None: as `edgekit chat` does.
    """
    prompts: dict[str, list[str]] = tomllib.loads(_PROMPTS.read_text(encoding="utf-8"))
    results = []
    for path in engines:
        busy = busy_percent()
        with load_engine(path, threads=threads) as engine:
            assumed = marginal_cost(engine.manifest.precision) if cost is None else cost
            asker = Asker(engine, new_tokens=new_tokens, marginal_cost=assumed)
            asker.warm_up()
            engine.session.truncate(0, 0)
            engine.session.prefill(0, [7] * _PREFIX_TOKENS)
            measured = measure_marginal_cost(engine.session)
            found = [
                _compared(asker, kind, number, text, rounds)
                for kind, texts in prompts.items()
                for number, text in enumerate(texts, 1)
            ]
        title = f"{engine.manifest.model} {engine.manifest.precision}"
        results.append(
            {
                "engine": title,
                "marginal_cost": assumed,
                "measured_marginal_cost": measured,
                "busy_percent": busy,
                "kinds": {kind: _summary(_of(found, kind), measured) for kind in prompts},
                "prompts": [result.to_dict() for result in found],
            }
        )
        print(f"\n{title}, {read_device().cpu}, {threads} threads, {rounds} rounds\n")
        print(_table(found, list(prompts), measured))
        print("\n" + _facts(found, assumed, measured, busy))
    out = out or CACHE / "speculation.json"
    out.write_text(json.dumps(results, indent=2), encoding="utf-8")
    say(f"\nwritten to {out}")
    return 0


def _compared(asker: Asker, kind: str, number: int, text: str, rounds: int) -> PromptResult:
    result = asker.compare(kind, number, text, rounds=rounds)
    ratio = _ratio([result])
    say(
        f"{kind} {number}: {len(result.drafted_ids)} tokens in {result.num_passes} passes, "
        f"{_number(ratio)} times as fast" + _difference(result)
    )
    return result


def _difference(result: PromptResult) -> str:
    if result.differs_at is None:
        return ""
    return f", differs at {result.differs_at}, margin {result.margin:.3g} ({result.rounding:.2g})"


def _of(results: Sequence[PromptResult], kind: str) -> list[PromptResult]:
    return [result for result in results if result.kind == kind]


def _ratio(results: Sequence[PromptResult]) -> float | None:
    """Time per token without drafts over that with them, weighted by tokens."""
    plain, drafted = _ms(results, "plain_ms"), _ms(results, "drafted_ms")
    return plain / drafted if plain and drafted else None


def _ratio_by_counts(results: Sequence[PromptResult], cost: float) -> float | None:
    """The same by the cost model; a difference in length is nobody's gain."""
    said = [r for r in results if r.plain_ids]
    plain = sum(r.plain_passes / len(r.plain_ids) * len(r.drafted_ids) for r in said)
    drafted = sum(r.num_passes + cost * r.drafted_tokens for r in said)
    return plain / drafted if drafted else None


def _ms(results: Sequence[PromptResult], name: str) -> float | None:
    """Milliseconds per token over several answers, each by its median."""
    rows = [(middle(getattr(r, name)), r.new_tokens) for r in results]
    known = [(ms, tokens) for ms, tokens in rows if ms is not None]
    total = sum(tokens for _, tokens in known)
    return sum(ms * tokens for ms, tokens in known) / total if total else None


def _summary(results: Sequence[PromptResult], cost: float) -> dict[str, Any]:
    """The columns of the table, unrounded."""
    tokens = sum(r.new_tokens for r in results)
    passes = sum(r.num_passes for r in results)
    drafted = sum(r.drafted_tokens for r in results)
    plain, fast = _ms(results, "plain_ms"), _ms(results, "drafted_ms")
    ratios = [ratio for r in results if (ratio := _ratio([r])) is not None]
    count = len(results) or 1
    return {
        "tokens_per_pass": tokens / passes if passes else None,
        "acceptance": sum(r.accepted_tokens for r in results) / drafted if drafted else None,
        "plain_tokens_per_s": 1e3 / plain if plain else None,
        "drafted_tokens_per_s": 1e3 / fast if fast else None,
        "ratio": _ratio(results),
        "ratio_few_loops": _ratio([r for r in results if r.looped <= _FEW_LOOPS]),
        "lowest_ratio": min(ratios, default=None),
        "ratio_by_counts": _ratio_by_counts(results, cost),
        "same_texts": sum(r.differs_at is None for r in results),
        "texts": len(results),
        "copied": sum(r.copied for r in results) / count,
        "looped": sum(r.looped for r in results) / count,
    }


def _table(results: Sequence[PromptResult], kinds: Sequence[str], cost: float) -> str:
    head = [
        "kind", "tokens per pass", "taken", "tokens/s plain", "with drafts", "ratio", "few loops",
        "lowest", "by counts", "same", "copied", "loops",
    ]  # fmt: skip
    rows = []
    for kind in kinds:
        row = _summary(_of(results, kind), cost)
        numbers = ("ratio", "ratio_few_loops", "lowest_ratio", "ratio_by_counts")
        speeds = ("plain_tokens_per_s", "drafted_tokens_per_s")
        rows.append(
            [
                kind, _number(row["tokens_per_pass"]), _percent(row["acceptance"]),
                *(_number(row[name], 1) for name in speeds),
                *(_number(row[name]) for name in numbers),
                f"{row['same_texts']} of {row['texts']}",
                _percent(row["copied"]), _percent(row["looped"]),
            ]
        )  # fmt: skip
    return markdown_table(head, rows, text_columns=1)


def _facts(results: Sequence[PromptResult], assumed: float, measured: float, busy: float) -> str:
    apart = [r for r in results if r.differs_at is not None]
    ties = sum(r.is_near_tie for r in apart)
    margins = [r.margin for r in apart if r.margin is not None]
    typical = [r.typical_margin for r in results if r.typical_margin is not None]
    rounding = max((r.rounding for r in results if r.rounding is not None), default=0.0)
    lines = [
        f"A drafted token costs {measured:.2f} of a pass; drafts were made for {assumed:g}.",
        "by counts: passes without drafts over those with them, each drafted token counted at that "
        "cost. copied, loops: share of the answer in runs of eight tokens that stand in the "
        f"prompt, or earlier in the answer; few loops: the ratio of answers with at most "
        f"{100 * _FEW_LOOPS:.0f} % of them.",
        f"Logits of passes of one and of several tokens differ by up to {rounding:.2g}. "
        f"{len(apart)} of {len(results)} texts differ; at the first difference the margin of the "
        f"best token is below twice the difference of that text's logits in {ties}. Those margins: "
        f"{_number(middle(margins))} (median) to {_number(max(margins, default=None))}; of all "
        f"tokens: {_number(middle(typical))}.",
    ]
    if busy > BUSY_PERCENT:
        lines.append(f"Not quiet: others used {busy:.0f} % of the processor; trust no ratio.")
    return "\n".join(lines)


def _number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"
