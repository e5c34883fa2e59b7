"""Answers made side by side on a real engine are those made alone, up to the first near-tie."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgekit.backends import Session, find_backend
from edgekit.checkpoint import resolve_model
from edgekit.export import export_decoder
from edgekit.profile import find_profile
from edgekit.runtime.answer import Reading
from edgekit.runtime.asking import Asker
from edgekit.runtime.load import LoadedEngine
from edgekit.runtime.sampling import Sampling
from edgekit.runtime.token_source import Step
from edgekit.runtime.tokenizer import Tokenizer
from edgekit.serve.job import Ended, Event, Failed, Job, Made, Work
from edgekit.serve.slots import SlotScheduler

NUM_SLOTS, NEW_TOKENS = 8, 40
NEAR_TIE = {"fp16": 1e-3, "int8": 0.05, "int4_awq": 0.05}
"""Difference of two log-probabilities that rounding can turn round. fp16 engines compute in fp32 on
a CPU; the others round activations to 8 bits, and passes of one row and of many sum in different
orders."""


def answers(
    engine: LoadedEngine, session: Session, prompts: Sequence[Sequence[int]], *, at_once: int
) -> list[list[Step]]:
    """Greedy answers through the scheduler, so many in work at once; each with its runner-up."""
    done = threading.Semaphore(0)
    made: dict[Job, list[Step]] = {}

    def deliver(events: Sequence[tuple[Job, Event]]) -> None:
        for job, event in events:
            if isinstance(event, Made):
                made[job] += event.steps
            elif isinstance(event, Failed):
                failed.append(event)
            if isinstance(event, Ended | Failed):
                done.release()

    failed: list[Failed] = []
    asker = Asker(replace(engine, session=session), notify=lambda _: None)
    scheduler = SlotScheduler(asker, queue_limit=100, deliver=deliver)
    jobs = []
    for prompt in prompts:
        work = Work(
            prompt_ids=tuple(prompt), sampling=Sampling(), reading=Reading(),
            max_new_tokens=NEW_TOKENS, top_logprobs=2,
        )  # fmt: skip
        jobs.append(Job(work))
        made[jobs[-1]] = []
    scheduler.start()
    try:
        for start in range(0, len(jobs), at_once):
            for job in jobs[start : start + at_once]:
                scheduler.submit(job)
            for _ in jobs[start : start + at_once]:
                assert done.acquire(timeout=60)
    finally:
        scheduler.close()
    assert not failed
    return [made[job] for job in jobs]


def require_same(alone: list[Step], together: list[Step], near_tie: float) -> int:
    """How many steps are the same; they may part only at a near-tie."""
    for place, (one, other) in enumerate(zip(alone, together, strict=False)):
        if one.token_id != other.token_id:
            for step in (one, other):
                assert step.top[0][1] - step.top[1][1] < near_tie, (place, one, other)
            return place
    assert len(alone) == len(together)
    return len(alone)


def check(
    engine: LoadedEngine,
    open_session: Callable[[], Session],
    prompts: Sequence[Sequence[int]],
    near_tie: float,
) -> list[int]:
    """Sessions of their own, so that nothing is reused."""
    found = []
    for at_once in (1, NUM_SLOTS):
        session = open_session()
        try:
            found.append(answers(engine, session, prompts, at_once=at_once))
        finally:
            session.close()
    return [require_same(a, t, near_tie) for a, t in zip(*found, strict=True)]


@pytest.mark.parametrize("precision", list(NEAR_TIE))
def test_side_by_side_is_alone(
    precision: str,
    make_tiny: Callable[..., Path],
    make_engine: Callable[..., LoadedEngine],
    tmp_path: Path,
) -> None:
    engine = make_engine(context_tokens=256)
    size = max(64, engine.session.vocab_size)
    shape = {"hidden_size": 128, "intermediate_size": 192, "vocab_size": size}
    graph = tmp_path / "graph"
    graph.mkdir()
    checkpoint = resolve_model(str(make_tiny("llama", **shape)), work=tmp_path)
    storage = find_profile("cpu").storage[precision]
    export_decoder(checkpoint, storage, graph, context_tokens=256)
    prompts = [
        [3 + (7 * i + j * (i + 1)) % 60 for j in range(5 + 17 * i)] for i in range(NUM_SLOTS)
    ]

    def open_session() -> Session:
        return find_backend("onnxruntime").open(graph, context_tokens=256, num_slots=NUM_SLOTS)

    same = check(engine, open_session, prompts, NEAR_TIE[precision])
    assert sum(same) > NUM_SLOTS * NEW_TOKENS // 4


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "int4_awq"])
def test_a_real_model_says_side_by_side_what_it_says_alone(
    precision: str, smollm2_gguf: Path, make_engine: Callable[..., LoadedEngine], tmp_path: Path
) -> None:
    checkpoint = resolve_model(str(smollm2_gguf), work=tmp_path)
    graph = tmp_path / "graph"
    graph.mkdir()
    export_decoder(checkpoint, find_profile("cpu").storage[precision], graph, context_tokens=512)
    tokenizer = Tokenizer.load(checkpoint.path)
    engine = replace(make_engine(context_tokens=512), tokenizer=tokenizer)
    questions: list[Any] = [
        "What is the capital of France?", "Why is the sky blue?", "Write a poem about rain.",
        "Count to twenty.", "Name three fruits and their colours.", "What is 12 times 12?",
        "Tell me a story about a robot that learns to paint.", "How do I boil an egg?",
    ]  # fmt: skip
    chat = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    prompts = [tokenizer.encode_chat(chat.format(question)) for question in questions]

    def open_session() -> Session:
        return find_backend("onnxruntime").open(graph, context_tokens=512, num_slots=NUM_SLOTS)

    same = check(engine, open_session, prompts, NEAR_TIE[precision])
    assert sum(same) > NUM_SLOTS * NEW_TOKENS // 4
