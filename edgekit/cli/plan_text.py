"""How commands print a plan: figures, a bar of the memory, and the table of all choices."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from edgekit.backends import list_backends
from edgekit.footprint import describe_workspace
from edgekit.plan import Plan
from edgekit.profile import find_profile, list_profiles
from edgekit.question import Question
from edgekit.steps import STEP_REMEDIES
from edgekit.units import GIB, format_bytes, format_duration, join_words

_BAR_CELLS = 60
_FILLS = {
    "weights": "█", "KV cache": "▓", "workspace": "▒", "runtime": "░", "loading": "▞", "free": "·",
}  # fmt: skip
_PLAIN_FILLS = {
    "weights": "#", "KV cache": "=", "workspace": "+", "runtime": "-", "loading": "~", "free": ".",
}  # fmt: skip
CONTEXTS = (4096, 8192, 16_384, 32_768, 65_536, 131_072)
"""The columns of the table, as far as the model goes."""


def describe_plan(plan: Plan) -> str:
    """The chosen row: what it is, what it takes, how fast it can be, and what building it takes."""
    lines = [
        f"{plan.model} on {join_words(plan.devices)}: {plan.precision}, "
        f"{plan.kv_precision} KV cache, "
        f"{plan.context_tokens:,} tokens of context, batch {plan.batch}, {plan.backend}"
        f"{'' if plan.speculation == 'none' else f', drafting by {plan.speculation}'}",
        *memory_bar(plan),
    ]
    if plan.backend not in {info.name for info in list_backends()}:
        lines.append(
            f"  backend          {plan.backend}: this version can plan for it, not build yet"
            f"{_which_builds(plan)}"
        )
    if plan.kept_layers:
        lines.append(f"  stays at fp16    {join_words(plan.kept_layers)}")
    lines.append(f"  largest context  {plan.max_context_tokens:,} tokens")
    lines.append(f"  decode bound     {_bound(plan)}")
    if plan.engine_bytes is not None:
        lines.append(
            f"  engine           {format_bytes(plan.engine_bytes)} on disk, for "
            f"{join_words(f'sm_{n}' for n in plan.capabilities)} (extrapolated from measured "
            "layers)"
        )
    for name, step in plan.steps.items():
        verdict = "fits" if step.fits else "DOES NOT FIT"
        remedy = "" if step.fits or name == "run" else f"; {STEP_REMEDIES[name]}"
        time = ""
        if step.seconds is not None:
            time = f", the compiler about {format_duration(step.seconds)}, its twin's check more"
        lines.append(
            f"  {name:<9} peak   {format_bytes(step.peak_bytes)}{time}, {verdict}: "
            f"{step.where}{remedy}"
        )
    return "\n".join([*lines, f"  {plan.reason}"])


def _which_builds(plan: Plan) -> str:
    """The profile's first backend that this version has."""
    known = {info.name for info in list_backends()}
    names = find_profile(plan.profile).backends if plan.profile in list_profiles() else ()
    found = next((name for name in names if name in known), None)
    return "" if found is None else f"; `--backend {found}` plans what a build will make"


def memory_bar(plan: Plan) -> list[str]:
    """What fills the budget, drawn to scale, and the same in numbers.

    A plan that does not fit is drawn over the whole of what it needs, with `|` where the budget
    ends.
    """
    parts = {
        "weights": plan.weights_bytes,
        "KV cache": plan.kv_cache_bytes,
        "workspace": plan.workspace_bytes,
        "runtime": plan.runtime_bytes,
        "loading": plan.total_bytes
        - plan.weights_bytes
        - plan.kv_cache_bytes
        - plan.workspace_bytes
        - plan.runtime_bytes,
        "free": max(0, plan.headroom_bytes),
    }
    fills = _FILLS if (sys.stdout.encoding or "").lower().startswith("utf") else _PLAIN_FILLS
    scale = max(1, sum(parts.values())) / _BAR_CELLS
    bar, reached = "", 0
    for name, size in parts.items():
        reached += size
        bar += fills[name] * (round(reached / scale) - len(bar))
    if not plan.fits:
        end = min(_BAR_CELLS - 1, round(plan.budget_bytes / scale))
        bar = f"{bar[:end]}|{bar[end + 1 :]}"
    shown = [
        f"{fills[name]} {name} {format_bytes(size)}"
        for name, size in parts.items()
        if size or name != "loading"
    ]
    if not plan.fits:
        shown[-1] = f"| budget {format_bytes(plan.budget_bytes)}"
    total = f"{format_bytes(plan.total_bytes)} of {format_bytes(plan.budget_bytes)}"
    return [
        f"  [{bar}] {total}",
        f"  {'   '.join(shown)}",
        f"  budget           {plan.budget_where}",
    ]


def choice_table(rows: Sequence[Sequence[Plan]]) -> str:
    """Precision x context: what each takes in GiB; `-` where it does not fit."""
    head = ["precision", "weights", *(_short(p.context_tokens) for p in rows[0]), "largest context"]
    head.append("decode bound, tokens/s")
    body = [head]
    for row in rows:
        cells = [f"{p.total_bytes / GIB:.2f}" if p.fits else "-" for p in row]
        first = row[0]
        largest = f"{first.max_context_tokens:,}" if first.max_context_tokens else "does not fit"
        weights = f"{first.weights_bytes / GIB:.2f}"
        body.append([first.precision, weights, *cells, largest, _short_bound(first)])
    widths = [max(len(line[i]) for line in body) for i in range(len(head))]
    lines = []
    for line in body:
        cells = [line[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        lines.append("  " + "  ".join(cells).rstrip())
    return "\n".join(["GiB at each context:", *lines])


def explain_step(plan: Plan, name: str, question: Question) -> str:
    """One step of the build in its parts."""
    step = plan.steps[name]
    lines = [
        f"{name}: {format_bytes(step.peak_bytes)}, {'fits' if step.fits else 'DOES NOT FIT'}",
        f"  where  {step.where}",
        f"  how    {step.how}",
    ]
    if step.seconds is not None:
        lines.append(
            f"  time   about {format_duration(step.seconds)} on the machine named above; "
            "extrapolated from measured layers"
        )
    if name == "run":
        classes = [f"{kind} {format_bytes(size)}" for kind, size in plan.weights.items() if size]
        lines += [
            f"  weights    {format_bytes(plan.weights_bytes)}: {', '.join(classes)}",
            f"  KV cache   {format_bytes(plan.kv_cache_bytes)}: {plan.context_tokens:,} tokens, "
            f"batch {plan.batch}, {plan.kv_precision}",
            f"  workspace  {format_bytes(plan.workspace_bytes)}: {_workspace(plan, question)}",
            f"  runtime    {format_bytes(plan.runtime_bytes)}: process, libraries, context",
            f"  source     {question.footprint.source}",
        ]
        if plan.loading_bytes:
            lines.append(
                f"  loading    {format_bytes(plan.loading_bytes)} instead of cache and workspace, "
                "for a moment: the largest matrix at 16 and at 32 bits"
            )
    return "\n".join(lines)


def _workspace(plan: Plan, question: Question) -> str:
    footprint = question.footprint
    is_whole = (plan.precision, plan.kv_precision) in footprint.whole_prompts
    return describe_workspace(
        question.spec, footprint, whole_prompt_tokens=plan.context_tokens if is_whole else None
    )


def _bound(plan: Plan) -> str:
    if plan.decode_bound_tokens_per_s is None:
        return "unknown, for the memory bandwidth is; on a processor `edgekit bench` measures it"
    return (
        f"{plan.decode_bound_tokens_per_s:.1f} tokens/s on an empty context, "
        f"{plan.decode_bound_full_tokens_per_s:.1f} when it is full (memory bandwidth)"
    )


def _short_bound(plan: Plan) -> str:
    bound = plan.decode_bound_tokens_per_s
    return "unknown" if bound is None else f"{bound:.1f}"


def _short(tokens: int) -> str:
    return f"{tokens // 1024}k" if tokens % 1024 == 0 else f"{tokens}"
