"""The steps for TensorRT-LLM, whose engines sample by themselves and run in a process of their own.

What the engine computes is compared by `edgekit verify`, with the checkpoint's recorded answers;
the rest is what a session has to do whatever it says: stream, be cancelled, use all of its context
and all of its slots, within the planned memory and as fast as the memory allows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict
from types import MappingProxyType

from edgekit.backends.base import StreamingSession
from edgekit.bench.measure import synthetic_ids
from edgekit.bench.stream import run_stream_tests
from edgekit.engine import read_manifest
from edgekit.errors import EdgekitError
from edgekit.pipeline import BuildOptions, build, load_checkpoint
from edgekit.plan import require_fit
from edgekit.planning import Request, request_plan
from edgekit.progress import Progress
from edgekit.quality import ON_ENGINE
from edgekit.reference import REFERENCE_FILE, Reference
from edgekit.runtime.load import LoadedEngine, load_engine
from edgekit.runtime.sampling import Sampling
from edgekit.verify import verify_engine
from gpu_check.job import Job, Outcome, Step
from gpu_check.lines import Line, at_least, at_most, must, told
from gpu_check.memory import PAGE_BYTES, SLACK
from gpu_check.rig import Rig
from gpu_check.speed import Bounds, bench_tests, speed_lines

BACKENDS = ("tensorrt-llm", "tensorrt-llm-pytorch")
_NEW_TOKENS = 24
_LEADING_TOKENS = 4
"""In a batch other kernels run, and a near-tie may fall the other way; garbage is wrong at once."""
_GREEDY = asdict(Sampling())


def build_step(job: Job, rig: Rig, report: Progress) -> Outcome:
    """Plan, quantize, prove the checkpoint, compile, verify."""
    checkpoint = load_checkpoint(job.model, job.store, report=report)
    request = Request(
        model=job.model,
        profile=job.profile,
        precision=job.precision,
        context=job.context_tokens,
        batch=job.batch,
        backend=job.backend,
        store=job.store,
    )
    plan, profile = request_plan(request, checkpoint, to_build=True)
    require_fit(plan)
    began = rig.clock()
    result = build(checkpoint, plan, profile, job.store, BuildOptions(), report=report)
    files = (result.engine / "backend").iterdir()
    size = sum(path.stat().st_size for path in files if path.suffix != ".json")
    device, reused = result.manifest.device, result.was_reused
    names = {"tensorrt_llm": "TensorRT-LLM", "tensorrt": "TensorRT", "cuda": "CUDA"}
    built_with = ", ".join(
        f"{label} {device[key]}" for key, label in names.items() if device.get(key)
    )
    lines = [
        at_most(
            "engine", size, SLACK * plan.weights_bytes + PAGE_BYTES, "bytes",
            planned=plan.weights_bytes, note="limit: the planned weights",
        ),
        told("context", note=f"{plan.context_tokens} tokens x {plan.batch} slots"),
        told("built with", note=built_with),
        told("all steps", rig.clock() - began, "s", note="was there already" if reused else ""),
    ]  # fmt: skip
    return Outcome(lines=lines, facts={"engine": str(result.engine)})


def verify_step(job: Job, rig: Rig, report: Progress) -> Outcome:
    """The engine's log-probabilities and its known answer, against the checkpoint's."""
    before = read_manifest(job.built_engine).quality
    quality = verify_engine(job.built_engine, report=report)
    is_same = quality.known_answer_ids == tuple(before["known_answer_ids"])
    lines = [
        must(
            "its log-probabilities were compared on the card", quality.measured_on == ON_ENGINE,
            f"{quality.positions} positions; on the {quality.measured_on}",
        ),
        told("mean KL from the checkpoint, nats", quality.mean_kl),
        told("mean KL from ModelOpt's simulation, nats", quality.mean_kl_simulated),
        told("perplexity ratio", quality.perplexity_ratio),
        must("known answer as it was built", is_same, quality.known_answer),
    ]  # fmt: skip
    return Outcome(lines=lines)


def chat_step(job: Job, rig: Rig, report: Progress) -> Outcome:
    """What a session has to do."""
    with load_engine(job.built_engine, num_slots=job.batch, is_endless=True) as loaded:
        session = _stream(loaded)
        prompt = _known_prompt(job)
        first = _answer(session, prompt)
        lines = [
            must("the same greedy answer twice", _answer(session, prompt) == first),
            must("an answer after a cancelled one", _after_cancelled(session, prompt) == first),
            *_full_context(session, _ids(loaded, session.context_tokens)),
        ]
        if job.batch > 1:
            with ThreadPoolExecutor(job.batch) as pool:
                jobs = [pool.submit(_answer, session, prompt) for _ in range(job.batch)]
                together = [each.result() for each in jobs]
            is_same = all(each[:_LEADING_TOKENS] == first[:_LEADING_TOKENS] for each in together)
            note = f"{job.batch} at once, the first {_LEADING_TOKENS} tokens"
            lines.append(must("several slots = a single one", is_same, note))
        text = loaded.tokenizer.decode(first)
    return Outcome(lines=[*lines, told("answer", note=text)])


def memory_step(job: Job, rig: Rig, report: Progress) -> Outcome:
    """Free memory of the card against the plan."""
    plan, before = read_manifest(job.built_engine).plan, rig.free_bytes()
    with load_engine(job.built_engine, num_slots=job.batch) as loaded:
        session = _stream(loaded)
        full = after_load = rig.free_bytes()
        ids = _ids(loaded, session.context_tokens)
        for _ in session.stream(ids[:-1], sampling=_GREEDY, max_new_tokens=1):
            full = min(full, rig.free_bytes())
    kept = before - rig.free_bytes()
    return Outcome(
        lines=[
            told("free before", before, "bytes"),
            told("loaded, with its cache", before - after_load, "bytes"),
            at_most(
                "all, after a full context", before - full, SLACK * plan["total_bytes"], "bytes",
                planned=plan["total_bytes"], note="what `edgekit plan` promises",
            ),
            at_most("kept after closing", kept, PAGE_BYTES, "bytes", note="its process is gone"),
        ]
    )  # fmt: skip


def bench_step(job: Job, rig: Rig, report: Progress) -> Outcome:
    """Load time and tokens/s, against the bandwidth."""
    plan = read_manifest(job.built_engine).plan
    began = rig.clock()
    with load_engine(job.built_engine, num_slots=1, is_endless=True) as loaded:
        load = told("load", rig.clock() - began, "s")
        session = _stream(loaded)
        # a stream needs a place for one token more
        tests = bench_tests(session.context_tokens - 1)
        results = run_stream_tests(
            session, tests, token_ids=_ids(loaded, session.context_tokens),
            repetitions=job.repetitions, report=report,
        )  # fmt: skip
    bounds = Bounds(
        empty=plan["decode_bound_tokens_per_s"],
        full=plan["decode_bound_full_tokens_per_s"],
        num_layers=_num_layers(job),
    )
    return Outcome(lines=[load, *speed_lines(results, bounds)])


STEPS: Mapping[str, Step] = MappingProxyType(
    {
        "build": build_step,
        "verify": verify_step,
        "chat": chat_step,
        "memory": memory_step,
        "bench": bench_step,
    }
)
"""In this order; without `build` there are no others."""


def _stream(loaded: LoadedEngine) -> StreamingSession:
    if loaded.stream is None:
        raise EdgekitError("this engine does not stream")
    return loaded.stream


def _answer(session: StreamingSession, prompt: Sequence[int]) -> list[int]:
    return list(session.stream(prompt, sampling=_GREEDY, max_new_tokens=_NEW_TOKENS))


def _after_cancelled(session: StreamingSession, prompt: Sequence[int]) -> list[int]:
    with closing(session.stream(prompt, sampling=_GREEDY, max_new_tokens=_NEW_TOKENS)) as stream:
        next(stream)
    return _answer(session, prompt)


def _full_context(session: StreamingSession, ids: Sequence[int]) -> list[Line]:
    """The longest prompt, and an answer that ends with the context."""

    def count(new: int) -> int:
        prompt = ids[: len(ids) - new]
        return len(list(session.stream(prompt, sampling=_GREEDY, max_new_tokens=new)))

    new = min(_NEW_TOKENS, len(ids) // 2)
    return [
        at_least("tokens after the longest prompt", count(1), 1, note=f"{len(ids) - 1} tokens"),
        at_least("tokens until the context ends", count(new), new),
    ]


def _known_prompt(job: Job) -> tuple[int, ...]:
    return Reference.load(job.built_engine / "reference" / REFERENCE_FILE).known_prompt


def _ids(loaded: LoadedEngine, count: int) -> list[int]:
    """Synthetic ids, as `edgekit bench` takes them."""
    size = loaded.tokenizer.vocab_size
    special = {i for i in range(size) if loaded.tokenizer.is_special(i)}
    return synthetic_ids(count, vocab_size=size, special_ids=special)


def _num_layers(job: Job) -> int:
    """From TensorRT-LLM's own file; a checkpoint's is Hugging Face's."""
    config = json.loads((job.built_engine / "backend" / "config.json").read_text(encoding="utf-8"))
    return int(config.get("pretrained_config", config)["num_hidden_layers"])
