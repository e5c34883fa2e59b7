"""The steps for one precision. Each takes a job and a rig, and gives lines and facts.

Facts are what a later step is told: they go into its job. To add a step, add a function and a row
of `STEPS`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from edgekit.backends import find_backend
from edgekit.backends.tensorrt_rtx.layout import PLAN_FILE, EngineLayout
from edgekit.bench.measure import synthetic_ids
from edgekit.checkpoint import read_checkpoint
from edgekit.compile import export_graph
from edgekit.engine import WORK, device_cache, read_manifest
from edgekit.errors import storage_errors
from edgekit.keys import quantize_key
from edgekit.pipeline import BuildOptions, build, load_checkpoint
from edgekit.plan import require_fit
from edgekit.planning import Request, request_plan
from edgekit.precision import find_precision
from edgekit.progress import Progress
from edgekit.quality import ON_ENGINE
from edgekit.reference import REFERENCE_FILE, Reference
from edgekit.runtime.tokenizer import Tokenizer
from edgekit.verify import verify_engine
from gpu_check.card import BACKEND
from gpu_check.job import Job, Outcome, Step
from gpu_check.lines import must, told
from gpu_check.memory import Planned, check_memory
from gpu_check.numerics import GREEDY_TOKENS, LONG_TOKENS, check_numerics, limits_of
from gpu_check.rig import Rig
from gpu_check.speed import (
    PROMPT_TOKENS,
    SECOND_TOKEN,
    Bounds,
    check_first_tokens,
    check_speed,
)

_PROMPTS = 4
"""Held-out exchanges of about a hundred tokens: the twin is asked all of their positions."""


def build_step(job: Job, rig: Rig, report: Progress) -> Outcome:
    """Plan, quantize, compile, verify; and the graph once more, for the twin."""
    checkpoint = load_checkpoint(job.model, job.store, report=report)
    request = Request(
        model=job.model,
        profile=job.profile,
        precision=job.precision,
        context=job.context_tokens,
        batch=job.batch,
        backend=BACKEND,
        store=job.store,
    )
    plan, profile = request_plan(request, checkpoint, to_build=True)
    require_fit(plan)
    options = BuildOptions()
    result = build(checkpoint, plan, profile, job.store, options, report=report)
    if result.was_reused:
        quality = verify_engine(result.engine, report=report).to_dict()
    else:
        quality = result.manifest.quality
    key = quantize_key(
        checkpoint.sha256(report), checkpoint, job.precision, profile,
        calibration=options.calibration, calibration_tokens=options.calibration_tokens,
        seed=options.seed,
    )  # fmt: skip
    quantized = read_checkpoint(job.store / WORK / f"quantized-{key[:16]}")
    with storage_errors(job.graph):
        shutil.rmtree(job.graph, ignore_errors=True)
        job.graph.mkdir(parents=True)
    export_graph(quantized, plan, profile, find_backend(BACKEND), job.graph, report=report)
    size = (result.engine / "backend" / PLAN_FILE).stat().st_size
    reused = "was there already" if result.was_reused else ""
    lines = [
        told("engine", size, "bytes", planned=plan.engine_bytes, note=reused),
        told("context", note=f"{plan.context_tokens} tokens x {plan.batch} slots"),
        must(
            "its answers were checked on the card", quality["measured_on"] == ON_ENGINE,
            f"on the {quality['measured_on']}",
        ),
        told("mean KL from the checkpoint, nats", quality["mean_kl"]),
        told("mean KL from ModelOpt's simulation, nats", quality["mean_kl_simulated"]),
        told("perplexity ratio", quality["perplexity_ratio"]),
        told("known answer", note=quality["known_answer"]),
    ]  # fmt: skip
    return Outcome(lines=lines, facts={"engine": str(result.engine)})


def numerics_step(job: Job, rig: Rig, report: Progress) -> Outcome:
    """Card against twin, and against itself."""
    manifest = read_manifest(job.built_engine)
    prompts = Reference.load(job.built_engine / "reference" / REFERENCE_FILE).prompts[:_PROMPTS]
    needed = max(LONG_TOKENS, max(map(len, prompts)) + GREEDY_TOKENS)
    limits = limits_of(find_precision(job.precision).activation_bits)
    card = rig.open_card(job.backend_files, manifest.context_tokens, manifest.batch, _nothing)
    try:
        twin = rig.open_twin(job.graph, min(needed, manifest.context_tokens))
        try:
            lines = check_numerics(card, twin, prompts, limits, report=report)
        finally:
            twin.close()
    finally:
        card.close()
    profiles = 1 + EngineLayout.read(job.backend_files).has_decode_profile
    shapes = "prompts and steps" if profiles > 1 else "both"
    return Outcome(lines=[*lines, told("profiles", profiles, note=f"for {shapes}")])


def memory_step(job: Job, rig: Rig, report: Progress) -> Outcome:
    """Free memory against the plan."""
    manifest = read_manifest(job.built_engine)
    layout, plan = EngineLayout.read(job.backend_files), manifest.plan
    sizes = ("weights_bytes", "kv_cache_bytes", "workspace_bytes", "runtime_bytes", "total_bytes")
    planned = Planned(
        **{name: plan[name] for name in sizes},
        engine_bytes=(job.backend_files / PLAN_FILE).stat().st_size,
        num_buffers=2 * layout.num_layers,
    )
    lines = check_memory(
        lambda note: rig.open_card(
            job.backend_files, manifest.context_tokens, manifest.batch, note
        ),
        rig.free_bytes,
        planned,
        report=report,
    )
    return Outcome(lines=lines)


def first_load_step(job: Job, rig: Rig, report: Progress) -> Outcome:
    """Everything is compiled for the card."""
    cache = device_cache(job.built_engine)
    shutil.rmtree(cache, ignore_errors=True)
    session, lines = check_first_tokens(_open(job, rig), _ids(job, PROMPT_TOKENS), rig.clock)
    session.close()
    kept = sum(path.stat().st_size for path in cache.glob("*"))
    lines.append(must("compiled kernels were kept", kept > 0, f"{kept} bytes in {cache.name}"))
    whole = next(line.value for line in lines if line.name == SECOND_TOKEN)
    return Outcome(lines=lines, facts={"first_s": whole})


def speed_step(job: Job, rig: Rig, report: Progress) -> Outcome:
    """Nothing need be compiled any more; then tokens/s."""
    plan = read_manifest(job.built_engine).plan
    bounds = Bounds(
        empty=plan["decode_bound_tokens_per_s"],
        full=plan["decode_bound_full_tokens_per_s"],
        num_layers=EngineLayout.read(job.backend_files).num_layers,
    )
    ids = _ids(job, None)
    session, lines = check_first_tokens(
        _open(job, rig), ids[: min(PROMPT_TOKENS, len(ids) - 1)], rig.clock, first_s=job.first_s
    )
    try:
        lines += check_speed(session, ids, bounds, repetitions=job.repetitions, report=report)
    finally:
        session.close()
    return Outcome(lines=lines)


STEPS: Mapping[str, Step] = MappingProxyType(
    {
        "build": build_step,
        "numerics": numerics_step,
        "memory": memory_step,
        "first load": first_load_step,
        "speed": speed_step,
    }
)
"""In this order; without `build` there are no others."""


def _open(job: Job, rig: Rig) -> Callable[[], Any]:
    manifest = read_manifest(job.built_engine)
    return lambda: rig.open_card(
        job.backend_files, manifest.context_tokens, manifest.batch, _nothing
    )


def _ids(job: Job, count: int | None) -> list[int]:
    """Synthetic ids, as `edgekit bench` takes them; `None`: as many as the context holds."""
    context = read_manifest(job.built_engine).context_tokens
    tokenizer = Tokenizer.load(job.built_engine / "tokenizer")
    vocab_size = min(EngineLayout.read(job.backend_files).vocab_size, tokenizer.vocab_size)
    special = {i for i in range(vocab_size) if tokenizer.is_special(i)}
    # one step comes after the prompt
    wanted = context if count is None else min(count, context - 1)
    return synthetic_ids(wanted, vocab_size=vocab_size, special_ids=special)


def _nothing(stage: str) -> None:
    pass
