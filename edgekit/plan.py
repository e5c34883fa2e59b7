"""Decide, from numbers alone, whether a model fits a device, at which precision and context.

Nothing here loads a weight or touches the device: a `ModelSpec`, a `Profile` and two byte counts
go in, a frozen `Plan` comes out, and every later step works from it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from edgekit.errors import BudgetError, InputError
from edgekit.model import ModelSpec
from edgekit.precision import PRECISIONS, find_precision
from edgekit.profile import Profile, Storage
from edgekit.units import MIB, format_bytes

RUNTIME_BYTES = 110 * MIB
"""Interpreter, numpy, ONNX Runtime, tokenizer: 89 MiB resident with SmolLM2's tokenizer and no
session; the rest is an allowance for the session's own structures, not a measurement."""
_PREFILL_CHUNK_TOKENS = 256
_SMALLEST_CONTEXT_TOKENS = 512
_CONTEXT_STEP_TOKENS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """The memory peak of one step of a build."""

    peak_bytes: int
    fits: bool
    where: str
    """Which memory the peak is in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """What another precision would give."""

    precision: str
    context_tokens: int
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
    weights_bytes: int
    kv_cache_bytes: int
    workspace_bytes: int
    runtime_bytes: int
    budget_bytes: int
    max_context_tokens: int
    """The largest context that fits; 0 when the weights alone do not."""
    bytes_per_token_read: int
    """Weights that one decoded token reads at batch 1, without KV cache."""
    decode_bound_tokens_per_s: float | None
    """What the memory bandwidth allows; `None` while the bandwidth is unknown."""
    steps: dict[str, Step]
    reason: str
    alternatives: tuple[Alternative, ...]

    @property
    def total_bytes(self) -> int:
        """Everything the running engine holds."""
        return self.weights_bytes + self.kv_cache_bytes + self.workspace_bytes + self.runtime_bytes

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

    def describe(self) -> str:
        """A table for people."""
        rows = [
            ("weights", format_bytes(self.weights_bytes)),
            (f"KV cache ({self.kv_precision})", format_bytes(self.kv_cache_bytes)),
            ("workspace", format_bytes(self.workspace_bytes)),
            ("runtime", format_bytes(self.runtime_bytes)),
            ("total", format_bytes(self.total_bytes)),
            ("budget", format_bytes(self.budget_bytes)),
            ("headroom", format_bytes(self.headroom_bytes)),
        ]
        title = (
            f"{self.model} on {self.profile}: {self.precision}, {self.context_tokens} tokens of "
            f"context, batch {self.batch}, {self.backend}"
        )
        lines = [title, *(f"  {name:<16} {value:>12}" for name, value in rows)]
        lines.append(f"  largest context  {self.max_context_tokens:>12,} tokens")
        if self.decode_bound_tokens_per_s is not None:
            lines.append(f"  decode bound     {self.decode_bound_tokens_per_s:>12.1f} tokens/s")
        for name, step in self.steps.items():
            verdict = "fits" if step.fits else "DOES NOT FIT"
            lines.append(f"  {name:<9} peak   {format_bytes(step.peak_bytes):>12}  {verdict}")
        return "\n".join([*lines, f"  {self.reason}"])


def table_bytes(count: int, bits: int, group_size: int | None, scale_bits: int) -> int:
    """Bytes of `count` values of `bits` in groups that share a scale, rounded up."""
    scales = count * scale_bits / group_size if group_size and bits < 16 else 0
    return -int(-(count * bits + scales) // 8)


def weights_bytes(spec: ModelSpec, storage: Storage) -> int:
    """Weights as they lie in memory while the engine runs: layers, head, embedding, norms."""
    return read_bytes(spec, storage) + _vocab_bytes(
        spec, storage, storage.embedding_bits, storage.head_group_size
    )


def read_bytes(spec: ModelSpec, storage: Storage) -> int:
    """Weights that one token reads: all but the embedding, of which it reads one row."""
    group = storage.group_size
    linears = table_bytes(spec.linear_params, storage.linear_bits, group, storage.scale_bits)
    if group is None and storage.linear_bits < 16:
        outputs = spec.num_layers * (
            spec.q_size + 2 * spec.kv_size + 2 * spec.hidden_size + 2 * spec.intermediate_size
        )
        linears += outputs * storage.scale_bits // 8
    head_group = group if storage.is_head_calibrated else storage.head_group_size
    head = _vocab_bytes(spec, storage, storage.head_bits, head_group)
    return linears + head + spec.small_params * 4


def _vocab_bytes(spec: ModelSpec, storage: Storage, bits: int, group: int | None) -> int:
    """Embedding or head, `[V, H]`; without groups, one scale per row."""
    scales = spec.vocab_size * storage.scale_bits // 8 if group is None and bits < 16 else 0
    return table_bytes(spec.embedding_params, bits, group, storage.scale_bits) + scales


def kv_cache_bytes(
    spec: ModelSpec, *, context_tokens: int, batch: int = 1, kv_bits: int = 16
) -> int:
    """Memory of a full KV cache, in bytes.

    K and V are each `[L, B, Hkv, S, D]`. Only KV heads are cached, so grouped-query attention
    shrinks this by Hq / Hkv (Ainslie et al. 2023, arXiv:2305.13245).
    """
    values = 2 * spec.num_layers * batch * spec.num_kv_heads * context_tokens * spec.head_dim
    return values * kv_bits // 8


def workspace_bytes(spec: ModelSpec, *, context_tokens: int, batch: int = 1) -> int:
    """Activations of one prefill chunk, fp32: the widest layer's input and output, the attention
    scores of every head, and a row of logits per slot."""
    chunk = min(_PREFILL_CHUNK_TOKENS, context_tokens)
    widest = 3 * spec.intermediate_size + 4 * spec.hidden_size + spec.q_size + 2 * spec.kv_size
    scores = chunk * context_tokens * spec.num_query_heads
    return 4 * (chunk * widest + scores + batch * spec.vocab_size)


def make_plan(
    model: str,
    spec: ModelSpec,
    profile: Profile,
    *,
    available_bytes: int,
    precision: str = "auto",
    context_tokens: int | None = None,
    batch: int = 1,
    backend: str | None = None,
    bandwidth_bytes_per_s: float | None = None,
) -> Plan:
    """The plan for one precision, or for the first of the profile's that fits.

    `available_bytes` is what the device can give; the profile's reserve is taken off it.
    `context_tokens` is exact when given; otherwise the profile's default, or what fits if that is
    less. Raises `InputError` for a precision or context that is not possible at all. A plan that
    does not fit is returned: `require_fit` turns it into an error.
    """
    if precision != "auto" and find_precision(precision).name not in profile.precisions:
        raise InputError(
            f"the profile `{profile.name}` has no {precision}",
            hint=f"it has {', '.join(profile.precisions)}",
        )
    if context_tokens is not None and context_tokens > spec.max_context_tokens:
        raise InputError(
            f"{model} was trained for {spec.max_context_tokens} tokens of context, "
            f"asked for {context_tokens}",
            hint=f"use `--context {spec.max_context_tokens}` or less",
        )
    budget = max(0, available_bytes - profile.reserved_bytes)
    bandwidth = profile.bandwidth_bytes_per_s or bandwidth_bytes_per_s
    names = profile.precisions if precision == "auto" else (precision,)

    def one(name: str) -> Plan:
        return _plan_for(
            model,
            spec,
            profile,
            name,
            budget=budget,
            wanted=context_tokens,
            batch=batch,
            backend=backend or profile.backends[0],
            bandwidth=bandwidth,
        )

    plans = [one(name) for name in names]
    chosen = next((plan for plan in plans if plan.fits), plans[0])
    others = tuple(
        Alternative(
            precision=plan.precision,
            context_tokens=plan.context_tokens,
            fits=plan.fits,
            total_bytes=plan.total_bytes,
            decode_bound_tokens_per_s=plan.decode_bound_tokens_per_s,
        )
        for plan in map(one, profile.precisions)
        if plan.precision != chosen.precision
    )
    return replace(chosen, alternatives=others)


def require_fit(plan: Plan) -> None:
    """Raises `BudgetError` when the plan does not fit, naming what would."""
    if plan.fits:
        return
    better = next((a.precision for a in plan.alternatives if a.fits), None)
    if plan.max_context_tokens >= _SMALLEST_CONTEXT_TOKENS:
        hint = f"use `--context {plan.max_context_tokens}`"
        hint += f", or `--precision {better}`" if better else ""
    elif better:
        hint = f"use `--precision {better}`"
    else:
        hint = "no precision of this profile fits; free some memory or use a smaller model"
    raise BudgetError(
        f"the engine needs {format_bytes(plan.total_bytes)}, "
        f"{plan.profile} has {format_bytes(plan.budget_bytes)} for it",
        hint=hint,
    )


def largest_context(
    fits: Callable[[int], bool], limit: int, *, step: int = _CONTEXT_STEP_TOKENS
) -> int:
    """The largest multiple of `step` (or `limit` itself) that fits; 0 when none does."""
    if fits(limit):
        return limit
    low, high = 0, -(-limit // step)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle * step) else (low, middle)
    return low * step


def _plan_for(
    model: str,
    spec: ModelSpec,
    profile: Profile,
    precision: str,
    *,
    budget: int,
    wanted: int | None,
    batch: int,
    backend: str,
    bandwidth: float | None,
) -> Plan:
    storage = profile.storage_for(precision, spec.num_params)
    weights = weights_bytes(spec, storage)

    def needed(context: int) -> int:
        kv = kv_cache_bytes(spec, context_tokens=context, batch=batch, kv_bits=profile.kv_bits)
        work = workspace_bytes(spec, context_tokens=context, batch=batch)
        return weights + kv + work + RUNTIME_BYTES

    largest = largest_context(lambda c: needed(c) <= budget, spec.max_context_tokens)
    preferred = min(profile.default_context_tokens, spec.max_context_tokens)
    context = wanted or (min(preferred, largest) if largest else preferred)
    read = read_bytes(spec, storage)
    total = needed(context)
    return Plan(
        model=model,
        profile=profile.name,
        backend=backend,
        precision=precision,
        kv_precision=f"fp{profile.kv_bits}",
        context_tokens=context,
        batch=batch,
        weights_bytes=weights,
        kv_cache_bytes=kv_cache_bytes(
            spec, context_tokens=context, batch=batch, kv_bits=profile.kv_bits
        ),
        workspace_bytes=workspace_bytes(spec, context_tokens=context, batch=batch),
        runtime_bytes=RUNTIME_BYTES,
        budget_bytes=budget,
        max_context_tokens=largest,
        bytes_per_token_read=read,
        decode_bound_tokens_per_s=bandwidth / read if bandwidth else None,
        steps=_steps(spec, precision, total=total, budget=budget),
        reason=_reason(precision, context, preferred, total=total, budget=budget, wanted=wanted),
        alternatives=(),
    )


def _steps(spec: ModelSpec, precision: str, *, total: int, budget: int) -> dict[str, Step]:
    largest_tensor = max(spec.embedding_params, 2 * spec.intermediate_size * spec.hidden_size)
    # torch holds the model in fp32, or in bf16 where that is all that fits; plus its libraries
    libraries = 900 * MIB
    quantize = spec.num_params * 4 * 13 // 10 + libraries
    if quantize > budget:
        quantize = spec.num_params * 2 * 11 // 10 + libraries
    peaks = {
        "quantize": quantize,
        # codes, scales and packed bytes of the largest layer, and the interpreter
        "compile": 512 * MIB + 6 * largest_tensor + total,
        "run": total,
    }
    return {
        name: Step(peak_bytes=peak, fits=peak <= budget, where="this machine's memory")
        for name, peak in peaks.items()
    }


def _reason(
    precision: str, context: int, preferred: int, *, total: int, budget: int, wanted: int | None
) -> str:
    what = PRECISIONS[precision].summary
    if total > budget:
        return f"{what}: {format_bytes(total - budget)} more than there is"
    if wanted is None and context < preferred:
        return f"{what}: fits with the context cut from {preferred} to {context} tokens"
    return f"{what}: fits with {format_bytes(budget - total)} to spare"
