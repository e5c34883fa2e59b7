"""Decide, from numbers alone, whether a model fits a device, at which precision and context.

Nothing here loads a weight or touches the device: a `ModelSpec`, a `Profile` and two budgets go in,
a frozen `Plan` comes out, and every later step works from it. What each part takes is worked out in
`footprint`, what each step of a build takes in `steps`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Literal

from edgekit.errors import BudgetError, InputError
from edgekit.footprint import (
    kept_layers,
    loading_bytes,
    read_bytes,
    weights_by_class,
)
from edgekit.precision import PRECISIONS
from edgekit.question import Question
from edgekit.steps import Step, build_steps
from edgekit.units import format_bytes

SMALLEST_CONTEXT_TOKENS = 512
"""A smaller context is not worth naming as a way out …"""
USEFUL_CONTEXT_TOKENS = 4096
"""… and `auto` does not settle for less than this while another precision has more."""
_NO_WAY_OUT = "no precision of this profile fits; free some memory or use a smaller model"
Context = int | Literal["auto"] | None
"""Tokens; `auto`: the largest that fits; `None`: the profile's default, or what fits of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """What another choice would give, at the same wish for the context."""

    precision: str
    kv_precision: str
    context_tokens: int
    max_context_tokens: int
    fits: bool
    total_bytes: int
    decode_bound_tokens_per_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What will be built, decided before any work. Field names are those of `plan --json`."""

    model: str
    profile: str
    backend: str
    precision: str
    kv_precision: str
    context_tokens: int
    batch: int
    weights: dict[str, int]
    """Bytes of linears, head, embedding, norms and what prompts have for themselves, scales
    included."""
    kept_layers: tuple[str, ...]
    """Names of linear layers that stay at fp16 whatever the precision."""
    weights_bytes: int
    prompt_weights_bytes: int
    """What prompts have for themselves in an engine of one conversation, and in no other."""
    engine_bytes: int | None
    """Size of the compiled engine; `None` where no measurement allows to say."""
    kv_cache_bytes: int
    workspace_bytes: int
    loading_bytes: int
    """What loading holds for a moment beside weights, before cache and workspace are used."""
    runtime_bytes: int
    budget_bytes: int
    budget_where: str
    """Whose memory the budget is, and what was taken off it."""
    max_context_tokens: int
    """The largest context that fits; 0 when the weights alone do not."""
    bytes_per_token_read: int
    """Weights that one decoded token reads at batch 1, without KV cache."""
    decode_bound_tokens_per_s: float | None
    """What the memory bandwidth allows on an empty context; `None` while it is unknown."""
    decode_bound_full_tokens_per_s: float | None
    """The same when the context is full: the whole cache is read for each token."""
    capabilities: tuple[int, ...]
    """Compute capabilities of the GPUs that the engine is for: 89 is sm_89."""
    devices: tuple[str, ...]
    """Their profiles."""
    speculation: str
    """How the engine drafts by itself; "none": not at all."""
    steps: dict[str, Step]
    reason: str
    alternatives: tuple[Alternative, ...]

    @property
    def total_bytes(self) -> int:
        """The peak of an engine: all that it holds while it runs, or while it loads."""
        used = max(self.kv_cache_bytes + self.workspace_bytes, self.loading_bytes)
        return self.weights_bytes + used + self.runtime_bytes

    @property
    def headroom_bytes(self) -> int:
        """What the budget leaves; negative when the plan does not fit."""
        return self.budget_bytes - self.total_bytes

    @property
    def fits(self) -> bool:
        """Whether the engine can run on the device."""
        return self.headroom_bytes >= 0

    def to_dict(self) -> dict[str, Any]:
        """The fixed shape of `edgekit plan --json`; bytes are integers."""
        derived = {
            "total_bytes": self.total_bytes,
            "headroom_bytes": self.headroom_bytes,
            "fits": self.fits,
        }
        # tuples become lists
        data: dict[str, Any] = json.loads(json.dumps({**asdict(self), **derived}))
        return data


def make_plan(question: Question, *, precision: str = "auto", context: Context = None) -> Plan:
    """The plan for one precision, or for the first of the profile's that fits.

    A context that is a number is exact. Raises `InputError` for a precision, cache or context that
    is not possible at all. A plan that does not fit is returned: `require_fit` turns it into an
    error.
    """
    question = question.narrowed()
    profile, spec = question.profile, question.spec
    if isinstance(context, int) and context > spec.max_context_tokens:
        raise InputError(
            f"{question.model} was trained for {spec.max_context_tokens} tokens of context, "
            f"asked for {context}",
            hint=f"use `--context {spec.max_context_tokens}` or less",
        )
    if precision == "auto":
        chosen = _choose([_plan_for(question, name, context) for name in _able(question)], question)
    else:
        name = profile.require_precision(precision)
        profile.require_kv(question.kv_precision, name)
        chosen = _plan_for(question, name, context)
        if name != precision:
            means = f"{precision} on {profile.name} means {name}"
            chosen = replace(chosen, reason=f"{chosen.reason}; {means}")
    question.require_drafts(chosen.precision, chosen.kv_precision)
    return replace(chosen, alternatives=_alternatives(question, chosen, context))


def _choose(plans: Sequence[Plan], question: Question) -> Plan:
    """The first plan, in the profile's order, that fits with a context of use and can be compiled
    where it will run; else the one with the largest context; else the smallest."""
    order = f"{question.profile.name}'s order ({', '.join(plan.precision for plan in plans)})"
    useful = min(question.profile.default_context_tokens, question.spec.max_context_tokens)
    useful = min(useful, USEFUL_CONTEXT_TOKENS)
    on_device = question.footprint.compiles_on_device
    running = [plan for plan in plans if plan.fits]
    long = [plan for plan in running if plan.max_context_tokens >= useful]
    for plan in long:
        if plan.steps["compile"].fits or not on_device:
            said = "and can be compiled on it" if plan is not long[0] else ""
            return _because(plan, f"the first of {order} that fits {said}".rstrip(), len(plans))
    if long:
        return _because(long[0], f"the first of {order} that runs; none compiles there", len(plans))
    if running:
        best = max(running, key=lambda plan: plan.max_context_tokens)
        return _because(best, f"of {order} the one with the largest context", len(plans))
    best = max(plans, key=lambda plan: (plan.max_context_tokens, -plan.total_bytes))
    return _because(best, f"of {order} the nearest to fit", len(plans))


def _because(plan: Plan, why: str, choices: int) -> Plan:
    return plan if choices == 1 else replace(plan, reason=f"{plan.reason}; {why}")


def plan_table(question: Question, contexts: Sequence[int]) -> list[list[Plan]]:
    """Every precision of the profile (rows) at every context (columns)."""
    question = question.narrowed()
    return [[_plan_for(question, name, c) for c in contexts] for name in _able(question)]


def require_fit(plan: Plan) -> None:
    """Raises `BudgetError` when the plan does not fit, saying why and naming what would."""
    if plan.fits:
        return
    ways = list(_ways_out(plan))[:3]
    hint = f"use {', or '.join(ways)}" if ways else _NO_WAY_OUT
    if plan.weights_bytes > plan.budget_bytes:
        what = f"the weights alone are {format_bytes(plan.weights_bytes)}"
    else:
        what = (
            f"the engine needs {format_bytes(plan.total_bytes)} "
            f"with {plan.context_tokens} tokens of context"
        )
    raise BudgetError(
        f"{plan.model} at {plan.precision} does not fit {plan.profile}: {what}, "
        f"there are {format_bytes(plan.budget_bytes)} ({plan.budget_where})",
        hint=hint,
    )


def _ways_out(plan: Plan) -> Iterator[str]:
    """Flags that make a plan which does not fit one that does, the least change first."""
    if plan.max_context_tokens >= SMALLEST_CONTEXT_TOKENS:
        yield f"`--context {plan.max_context_tokens}`"
    same = [a for a in plan.alternatives if a.precision == plan.precision]
    others = [a for a in plan.alternatives if a.precision != plan.precision]
    yield from (f"`--kv {a.kv_precision}`" for a in same if a.fits)
    fitting = [a for a in others if a.fits]
    if fitting:
        yield f"`--precision {fitting[0].precision}`"
        return
    less = plan.kv_cache_bytes - plan.kv_cache_bytes // plan.batch - plan.prompt_weights_bytes
    if plan.batch > 1 and plan.total_bytes - less <= plan.budget_bytes:
        yield "`--batch 1`"
    best = max(others, key=lambda a: a.max_context_tokens, default=None)
    if best is not None and best.max_context_tokens >= SMALLEST_CONTEXT_TOKENS:
        yield f"`--precision {best.precision} --context {best.max_context_tokens}`"


def largest_context(fits: Callable[[int], bool], limit: int, *, step: int) -> int:
    """The largest multiple of `step` (or `limit` itself) that fits; 0 when none does."""
    if fits(limit):
        return limit
    low, high = 0, -(-limit // step)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle * step) else (low, middle)
    return low * step


def _able(question: Question) -> list[str]:
    """Precisions in the profile's order that go with the wish for the cache."""
    kv, rows = question.kv_precision, question.profile.kv
    names = [
        name
        for name in question.profile.precisions
        if kv == "auto" or (kv in rows and name not in rows[kv].not_with)
    ]
    if not names:
        question.profile.require_kv(kv, question.profile.precisions[0])
    return names


def _alternatives(question: Question, chosen: Plan, context: Context) -> tuple[Alternative, ...]:
    """Other precisions, and other caches for the chosen one: those that fit first, and of those
    the nearest in size."""
    others = [
        _plan_for(question, name, context) for name in _able(question) if name != chosen.precision
    ]
    for kv, row in question.profile.kv.items():
        if kv != chosen.kv_precision and chosen.precision not in row.not_with:
            other = replace(question, kv_precision=kv)
            others.append(_plan_for(other, chosen.precision, context))
    others.sort(key=lambda plan: (not plan.fits, abs(plan.total_bytes - chosen.total_bytes)))
    return tuple(
        Alternative(
            precision=plan.precision,
            kv_precision=plan.kv_precision,
            context_tokens=plan.context_tokens,
            max_context_tokens=plan.max_context_tokens,
            fits=plan.fits,
            total_bytes=plan.total_bytes,
            decode_bound_tokens_per_s=plan.decode_bound_tokens_per_s,
        )
        for plan in others
    )


def _plan_for(question: Question, precision: str, wanted: Context) -> Plan:
    profile, spec, footprint = question.profile, question.spec, question.footprint
    storage, alone = question.storage(precision), replace(question, batch=1).storage(precision)
    weights = weights_by_class(spec, storage, shares_tied_tables=footprint.shares_tied_tables)
    kv = profile.require_kv(question.kv_precision, precision)
    budget = question.budget.bytes
    cache_of = partial(question.cache_bytes, kv)
    work_of = partial(question.work_bytes, precision, kv)
    loading = loading_bytes(spec, storage)
    constant = sum(weights.values()) + footprint.runtime_bytes

    def total(context: int) -> int:
        used = cache_of(context) + work_of(context)
        return constant + max(used, loading)

    limit = spec.max_context_tokens
    largest = largest_context(lambda c: total(c) <= budget, limit, step=footprint.page_tokens)
    preferred = min(profile.default_context_tokens, limit)
    context = wanted if isinstance(wanted, int) else min(preferred, largest) or preferred
    if wanted == "auto" and largest:
        context = largest
    read, cache, bandwidth = read_bytes(spec, storage), cache_of(context), _bandwidth(question)
    return Plan(
        model=question.model,
        profile=profile.name,
        backend=question.backend,
        precision=precision,
        kv_precision=kv,
        context_tokens=context,
        batch=question.batch,
        weights=weights,
        kept_layers=kept_layers(spec, storage),
        weights_bytes=sum(weights.values()),
        prompt_weights_bytes=weights_by_class(spec, alone)["prompts"],
        engine_bytes=question.engine_bytes(precision, context),
        kv_cache_bytes=cache,
        workspace_bytes=work_of(context),
        loading_bytes=loading,
        runtime_bytes=footprint.runtime_bytes,
        budget_bytes=budget,
        budget_where=question.budget.detail or question.budget.where,
        max_context_tokens=largest,
        bytes_per_token_read=read,
        decode_bound_tokens_per_s=bandwidth / read if bandwidth else None,
        decode_bound_full_tokens_per_s=(
            bandwidth / (read + cache / question.batch) if bandwidth else None
        ),
        capabilities=question.capabilities,
        devices=tuple(p.name for p in (profile, *question.targets)),
        speculation=question.speculation,
        steps=build_steps(
            spec,
            footprint,
            precision=precision,
            storage=storage,
            weights_bytes=sum(weights.values()),
            run_bytes=total(context),
            device=question.budget,
            host=question.host,
        ),
        reason=_reason(precision, context, preferred, total(context), budget, wanted),
        alternatives=(),
    )


def _bandwidth(question: Question) -> float | None:
    return question.profile.bandwidth_bytes_per_s or question.bandwidth_bytes_per_s


def _reason(
    precision: str, context: int, preferred: int, total: int, budget: int, wanted: Context
) -> str:
    what = PRECISIONS[precision].summary
    if total > budget:
        return f"{what}: {format_bytes(total - budget)} more than there is"
    if wanted is None and context < preferred:
        return f"{what}: fits with the context cut from {preferred} to {context} tokens"
    return f"{what}: fits with {format_bytes(budget - total)} to spare"
