"""What `scripts/gpu-check` asks of a card, asked of stand-ins: good ones and broken ones."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from edgekit.backends.base import Session
from edgekit.backends.tensorrt_rtx import runtime
from edgekit.backends.tensorrt_rtx.layout import PLAN_FILE, EngineLayout
from edgekit.backends.tensorrt_rtx.twin import open_twin
from edgekit.bench.measure import BenchTest, TestResult
from edgekit.bench.metrics import Summary
from edgekit.device import Device, read_device
from edgekit.engine import WORK, Manifest, device_cache, engine_path, remove_leftovers
from edgekit.errors import BackendError, InputError, MissingBackendError
from edgekit.reference import REFERENCE_FILE, Reference
from gpu_check import __main__ as script
from gpu_check import processes
from gpu_check.card import choose, find_card
from gpu_check.job import Job, Outcome
from gpu_check.lines import Line, Part, at_least, at_most, told
from gpu_check.memory import RUNTIME, WEIGHTS, WORKSPACE, Note, Planned, check_memory
from gpu_check.numerics import (
    EIGHT_BIT,
    SIXTEEN_BIT,
    check_numerics,
    differences,
    divergences,
    limits_of,
)
from gpu_check.report import Report, to_markdown
from gpu_check.rig import Rig, stages
from gpu_check.speed import Bounds, check_first_tokens, check_speed, slowest
from gpu_check.steps import STEPS

if TYPE_CHECKING:
    from edgekit.backends.base import Logits

ROOT = Path(__file__).parent.parent
MakePath = Callable[..., Path]
MakeSession = Callable[..., Any]
Recorded = Callable[[str], Device]
CONTEXT = 96
PROMPTS = [[int(i) for i in np.random.default_rng(n).integers(0, 50, 20 + n)] for n in range(3)]


class Wrapped:
    """A session that hands everything on."""

    def __init__(self, inner: Session) -> None:
        self.inner = inner

    @property
    def num_slots(self) -> int:
        return self.inner.num_slots

    @property
    def context_tokens(self) -> int:
        return self.inner.context_tokens

    @property
    def vocab_size(self) -> int:
        return self.inner.vocab_size

    fills_apart = False

    def length(self, slot: int) -> int:
        return self.inner.length(slot)

    def prefill(self, slot: int, token_ids: Sequence[int], *, num_logits: int = 1) -> Logits:
        return self.inner.prefill(slot, token_ids, num_logits=num_logits)

    def decode(self, slots: Sequence[int], token_ids: Sequence[int]) -> Logits:
        return self.inner.decode(slots, token_ids)

    def truncate(self, slot: int, length: int) -> None:
        self.inner.truncate(slot, length)

    def close(self) -> None:
        self.inner.close()


class WrongLogits(Wrapped):
    """One logit of one row is off."""

    def prefill(self, slot: int, token_ids: Sequence[int], *, num_logits: int = 1) -> Logits:
        rows = super().prefill(slot, token_ids, num_logits=num_logits).copy()
        rows[len(rows) // 2, 7] += 1
        return rows


class NotANumber(Wrapped):
    def prefill(self, slot: int, token_ids: Sequence[int], *, num_logits: int = 1) -> Logits:
        return super().prefill(slot, token_ids, num_logits=num_logits) * np.float32("nan")


class WrongDecode(Wrapped):
    """The decode profile computes something else."""

    def decode(self, slots: Sequence[int], token_ids: Sequence[int]) -> Logits:
        return -super().decode(slots, token_ids)


class SwappedSlots(Wrapped):
    """Rows come in the order of the slots, not of the call."""

    def decode(self, slots: Sequence[int], token_ids: Sequence[int]) -> Logits:
        rows = super().decode(slots, token_ids)
        return rows[np.argsort(slots)]


class SharedCache(Wrapped):
    """A prompt of slot 1 changes what is computed for slot 0 from then on."""

    def __init__(self, inner: Session) -> None:
        super().__init__(inner)
        self._is_spoilt = False

    def prefill(self, slot: int, token_ids: Sequence[int], *, num_logits: int = 1) -> Logits:
        self._is_spoilt = self._is_spoilt or slot == 1
        return super().prefill(slot, token_ids, num_logits=num_logits)

    def decode(self, slots: Sequence[int], token_ids: Sequence[int]) -> Logits:
        rows = super().decode(slots, token_ids).copy()
        if self._is_spoilt and 0 in slots:
            rows[list(slots).index(0)] *= -1
        return rows

    def truncate(self, slot: int, length: int) -> None:
        self._is_spoilt = self._is_spoilt and slot != 1
        super().truncate(slot, length)


class Remembers(Wrapped):
    """What was taken back is still looked at: the last token before is read once more."""

    def __init__(self, inner: Session) -> None:
        super().__init__(inner)
        self._is_back = False

    def truncate(self, slot: int, length: int) -> None:
        self._is_back = 0 < length < self.length(slot)
        super().truncate(slot, length)

    def prefill(self, slot: int, token_ids: Sequence[int], *, num_logits: int = 1) -> Logits:
        rows = super().prefill(slot, token_ids, num_logits=num_logits)
        rows, self._is_back = -rows if self._is_back else rows, False
        return rows


class WrongPieces(Wrapped):
    """A piece that begins where another ended has wrong positions."""

    def prefill(self, slot: int, token_ids: Sequence[int], *, num_logits: int = 1) -> Logits:
        starts_late = self.length(slot) == 8
        rows = super().prefill(slot, token_ids, num_logits=num_logits)
        self._late = starts_late or (getattr(self, "_late", False) and self.length(slot) > 9)
        return -rows if self._late and num_logits > 1 else rows


class WrongLength(Wrapped):
    def length(self, slot: int) -> int:
        return max(0, super().length(slot) - (self.num_slots > 1 and slot == 1))


class Overflows(Wrapped):
    def decode(self, slots: Sequence[int], token_ids: Sequence[int]) -> Logits:
        if self.length(slots[0]) == self.context_tokens:
            return np.zeros((len(slots), self.vocab_size), np.float32)
        return super().decode(slots, token_ids)


class Dies(Wrapped):
    def decode(self, slots: Sequence[int], token_ids: Sequence[int]) -> Logits:
        raise BackendError("CUDA_ERROR_ILLEGAL_ADDRESS")


@pytest.fixture
def pair(make_session: MakeSession) -> tuple[Any, Any]:
    """A card of three slots and a twin of one."""
    return (
        make_session(context_tokens=CONTEXT, num_slots=3),
        make_session(context_tokens=CONTEXT, num_slots=1),
    )


def wrong(lines: Sequence[Line]) -> list[str]:
    return [line.name for line in lines if line.passed is False]


def test_the_twin_passes_against_itself(make_tiny: MakePath, export_standard: MakePath) -> None:
    graph = export_standard(make_tiny("qwen2"), context_tokens=CONTEXT)
    # other pieces than the twin's, as a card has them: 8 tokens of a prompt at once
    card = open_twin(
        graph, context_tokens=CONTEXT, num_slots=3, threads=1, chunk_tokens=8, max_logits=4
    )
    twin = open_twin(graph, context_tokens=CONTEXT, num_slots=1, threads=1)
    lines = check_numerics(card, twin, PROMPTS, SIXTEEN_BIT)
    assert wrong(lines) == []
    judged = {line.name for line in lines if line.passed}
    assert len(judged) == 11
    assert [card.length(slot) for slot in range(3)] == [0, 0, 0]
    card.close()
    twin.close()


def test_a_good_session_passes(pair: tuple[Any, Any]) -> None:
    assert wrong(check_numerics(*pair, PROMPTS, SIXTEEN_BIT)) == []


@pytest.mark.parametrize(
    ("broken", "caught"),
    [
        (WrongLogits, "logits: largest difference / standard deviation"),
        (NotANumber, "logits: mean KL, nats"),
        (WrongDecode, "a token a pass = several in one"),
        (WrongDecode, "greedy: largest margin of a token that differs / standard deviation"),
        (SwappedSlots, "several slots = single ones"),
        (SharedCache, "several slots = single ones"),
        (Remembers, "truncate and go on = never said"),
        (WrongPieces, "prompt in pieces = one pass"),
        (WrongLength, "several slots"),
        (Overflows, "one token more is refused, and changes nothing"),
    ],
)
def test_what_is_broken_is_caught(
    broken: type[Wrapped], caught: str, pair: tuple[Any, Any]
) -> None:
    lines = check_numerics(broken(pair[0]), pair[1], PROMPTS, SIXTEEN_BIT)
    assert caught in wrong(lines)


@pytest.mark.parametrize("broken", [SwappedSlots, SharedCache, WrongLength, Overflows])
def test_what_only_slots_have_is_found_by_its_own_check(
    broken: type[Wrapped], pair: tuple[Any, Any]
) -> None:
    assert len(wrong(check_numerics(broken(pair[0]), pair[1], PROMPTS, SIXTEEN_BIT))) == 1


def test_a_check_that_dies_is_a_line_and_the_others_go_on(pair: tuple[Any, Any]) -> None:
    lines = check_numerics(Dies(pair[0]), pair[1], PROMPTS, SIXTEEN_BIT)
    assert {"greedy", "decode against prefill", "several slots"} <= set(wrong(lines))
    assert "CUDA_ERROR_ILLEGAL_ADDRESS" in next(x.note for x in lines if x.name == "greedy")
    passed = {line.name for line in lines if line.passed}
    assert {"prompt in pieces = one pass", "truncate and go on = never said"} <= passed


def test_one_slot_is_said_and_not_judged(make_session: MakeSession) -> None:
    one = [make_session(context_tokens=CONTEXT) for _ in range(2)]
    lines = check_numerics(one[0], one[1], PROMPTS, SIXTEEN_BIT)
    assert next(x for x in lines if x.name == "several slots = single ones").passed is None


class NearTie(Wrapped):
    """Its two likeliest tokens are so near that rounding decides; the others are as they are."""

    def __init__(self, inner: Session, lead: float) -> None:
        super().__init__(inner)
        self._lead = lead

    def decode(self, slots: Sequence[int], token_ids: Sequence[int]) -> Logits:
        rows = super().decode(slots, token_ids).copy()
        rows[:, 3], rows[:, 4] = 9 + self._lead, 9
        return rows


@pytest.mark.parametrize(("lead", "passes"), [(0.02, True), (3.0, False)])
def test_tokens_may_change_places_at_a_near_tie(
    lead: float, passes: bool, pair: tuple[Any, Any]
) -> None:
    lines = check_numerics(NearTie(pair[0], lead), NearTie(pair[1], -lead), PROMPTS, SIXTEEN_BIT)
    line = next(line for line in lines if line.name.startswith("greedy: largest margin"))
    assert line.passed is passes
    assert "1 of 32 tokens are the same; the first other one is number 2, margin" in line.note


def test_differences_are_in_standard_deviations_and_divergences_in_nats() -> None:
    expected = np.array([[0.0, 2.0], [0.0, 4.0]], np.float32)  # deviations of 1 and 2
    found = differences(expected + np.array([0.5, 0], np.float32), expected)
    assert found.tolist() == [0.5, 0.25]
    assert divergences(expected, expected).tolist() == [0, 0]
    p = 1 / (1 + math.exp(-2))
    shifted = divergences(np.zeros((1, 2), np.float32), expected[:1])[0]
    assert shifted == pytest.approx(math.log(2) + p * math.log(p) + (1 - p) * math.log(1 - p))
    with pytest.raises(ValueError, match=r"logits \[1, 2\], expected \[2, 2\]"):
        differences(expected[:1], expected)
    assert (limits_of(16), limits_of(8)) == (SIXTEEN_BIT, EIGHT_BIT)


MIB = 2**20
PLANNED = Planned(
    weights_bytes=100 * MIB,
    kv_cache_bytes=60 * MIB,
    workspace_bytes=64 * MIB,
    runtime_bytes=400 * MIB,
    total_bytes=624 * MIB,
    engine_bytes=130 * MIB,
    num_buffers=4,
)
GOOD = {"runtime": 300, "weights": 125, "workspace": 20, "cache": 60, "growth": 10}


class CardMemory:
    """So much is taken by each stage, in MiB; what is taken by `kept` does not come back."""

    def __init__(self, session: Session, taken: dict[str, int], kept: int = 0) -> None:
        self.free = 8000 * MIB
        self._session = session
        self._taken = taken
        self._kept = kept

    def open(self, note: Note) -> Session:
        for stage, name in (
            ("runtime", RUNTIME), ("weights", WEIGHTS), ("workspace", WORKSPACE), ("cache", None),
        ):  # fmt: skip
            self.free -= self._taken[stage] * MIB
            if name is not None:
                note(name)
        memory = self

        class Growing(Wrapped):
            def decode(self, slots: Sequence[int], token_ids: Sequence[int]) -> Logits:
                if self.length(slots[0]) == self.context_tokens - 1:
                    memory.free -= memory._taken["growth"] * MIB
                return super().decode(slots, token_ids)

            def close(self) -> None:
                memory.free = (8000 - memory._kept) * MIB

        return Growing(self._session)


def measured(session: Session, changes: dict[str, int], kept: int = 0) -> list[Line]:
    memory = CardMemory(session, {**GOOD, **changes}, kept)
    return check_memory(memory.open, lambda: memory.free, PLANNED)


def test_memory_is_read_stage_by_stage(make_session: MakeSession) -> None:
    session = make_session(context_tokens=CONTEXT, num_slots=2)
    lines = measured(session, {})
    assert wrong(lines) == []
    found = {line.name: (line.value or 0) / MIB for line in lines}
    assert found == {
        "free before": 8000,
        "runtime": 300,
        "weights": 125,
        "KV cache": 60,
        "workspace": 30,  # 20 to be able to run, 10 on the way to a full cache
        "all, at full context": 515,
        "kept after closing": 0,
    }
    assert [session.length(slot) for slot in range(2)] == [CONTEXT, CONTEXT]


@pytest.mark.parametrize(
    ("changes", "kept", "caught"),
    [
        ({"weights": 230}, 0, ["weights"]),  # held twice
        ({"cache": 120}, 0, ["KV cache"]),
        ({"growth": 400}, 0, ["all, at full context"]),
        ({}, 425, ["kept after closing"]),
    ],
)
def test_memory_over_the_plan_is_caught(
    changes: dict[str, int], kept: int, caught: list[str], make_session: MakeSession
) -> None:
    session = make_session(context_tokens=CONTEXT, num_slots=2)
    assert wrong(measured(session, changes, kept)) == caught


def test_first_tokens_are_timed_and_judged_by_the_first_load(make_session: MakeSession) -> None:
    def lines(first_s: float | None) -> list[Line]:
        ticks = iter([10.0, 12.0, 15.0, 15.5])
        session, found = check_first_tokens(
            lambda: make_session(context_tokens=CONTEXT), [1, 2, 3], ticks.__next__, first_s=first_s
        )
        assert session.length(0) == 0
        return found

    assert [line.value for line in lines(None)] == [2, 3, 0.5, 5.5]
    assert wrong(lines(None)) == wrong(lines(6)) == []
    assert wrong(lines(5)) == ["load to second token"]


def test_a_session_that_fails_at_its_first_token_is_closed(make_session: MakeSession) -> None:
    session = make_session(context_tokens=2)
    with pytest.raises(InputError):
        check_first_tokens(lambda: session, [1, 2, 3], lambda: 0.0)
    assert session.is_closed


def test_decode_is_judged_by_bandwidth_and_launches(make_session: MakeSession) -> None:
    # half of 1000 tokens/s is 2 ms a token; twenty layers may take 1 ms more
    assert slowest(1000, 20) == pytest.approx(1000 / 3)
    session = make_session(context_tokens=CONTEXT)
    ids = [1] * CONTEXT

    def lines(bound: float | None) -> list[Line]:
        bounds = Bounds(empty=bound, full=bound, num_layers=2)
        return check_speed(session, ids, bounds, repetitions=2)

    plain = lines(None)
    assert "is not known" in plain[0].note
    assert plain[0].passed is None
    speed = plain[0].value or 0
    assert wrong(lines(speed / 10))[:1] == ["decode, empty context: not above the bound"]
    assert [len(line.samples) for line in plain] == [2, 2, 2]
    limits = Line(name="", limit="")
    assert at_least("x", 1, 2).passed is False
    assert at_most("x", math.nan, 2).passed is at_least("x", math.nan, 2).passed is False
    assert limits.passed is None


@pytest.mark.parametrize("name", ["rtx-3070", "rtx-4090"])
def test_a_card_is_found_with_its_precisions(name: str, recorded: Recorded) -> None:
    found = recorded(name)
    gpus = tuple(replace(gpu, cuda="13.0") for gpu in found.gpus)
    card = find_card(replace(found, gpus=gpus))
    assert card.profile.name == name
    has_fp8 = card.gpu.sm == 89
    assert set(card.precisions) - {"fp8"} == {"fp16", "int8", "int4_awq"}
    assert ("fp8" in card.precisions) is has_fp8
    assert choose(card, ["int8", "fp16", "int8"]) == ("int8", "fp16")
    with pytest.raises(InputError, match="nvfp4"):
        choose(card, ["fp16", "nvfp4"])
    told_of = {line.name: line.note for line in card.lines}
    assert told_of["architecture"] == f"sm_{card.gpu.sm}"
    assert told_of["GPU"] == card.gpu.name


def test_what_is_no_card_for_it_is_said_in_one_sentence(recorded: Recorded) -> None:
    found = recorded("rtx-4090")
    with pytest.raises(MissingBackendError, match=r"470\.86 runs CUDA up to 11\.4, .* CUDA 13"):
        find_card(recorded("rtx-3070"))
    server = replace(found.gpus[0], name="NVIDIA H100 80GB HBM3", sm=90)
    with pytest.raises(MissingBackendError, match="does not compile for NVIDIA H100"):
        find_card(replace(found, gpus=(server,)))
    ancient = replace(found.gpus[0], name="NVIDIA GeForce GTX 1080", sm=61)
    with pytest.raises(MissingBackendError, match="sm_61"):
        find_card(replace(found, gpus=(ancient,)))
    with pytest.raises(MissingBackendError):
        find_card(recorded("driver-without-gpu"))


# the whole run, with a stand-in for the card


def stand_in_build(job: Job, checkpoint: Path, graph: Path) -> Outcome:
    """An engine directory as `build` leaves it, without compiling."""
    engine = engine_path(
        job.store, model="tiny", profile="rtx-4090", precision=job.precision, backend="tensorrt-rtx"
    )
    (engine / "backend").mkdir(parents=True)
    (engine / "reference").mkdir()
    shutil.copytree(checkpoint, engine / "tokenizer")
    (engine / "backend" / PLAN_FILE).write_bytes(bytes(100))
    EngineLayout(
        version="1", capabilities=(89,), num_layers=2, num_kv_heads=2, head_dim=16, vocab_size=384,
        context_tokens=CONTEXT, batch=job.batch, chunk_tokens=CONTEXT, max_logits=32,
        has_decode_profile=job.precision != "fp16",
    ).write(engine / "backend")  # fmt: skip
    nothing: Any = np.zeros((0, 1), np.float16)
    Reference(
        prompts=tuple(tuple(prompt) for prompt in PROMPTS), first_position=1,
        top_ids=nothing.astype(np.int32), original=nothing, simulated=nothing,
        original_next=np.zeros(0, np.float32), simulated_next=np.zeros(0, np.float32),
        known_prompt=(1,), known_answer=(2,),
    ).save(engine / "reference" / REFERENCE_FILE)  # fmt: skip
    sizes = ("weights_bytes", "kv_cache_bytes", "workspace_bytes", "runtime_bytes", "total_bytes")
    speeds = dict.fromkeys(("decode_bound_tokens_per_s", "decode_bound_full_tokens_per_s"))
    Manifest(
        model="tiny", checkpoint_sha256="", precision=job.precision, kv_precision="fp16",
        profile="rtx-4090", backend={"name": "tensorrt-rtx", "version": "1"},
        context_tokens=CONTEXT, batch=job.batch, plan={**dict.fromkeys(sizes, 1000), **speeds},
        device={}, build_key="",
    ).write(engine)  # fmt: skip
    remove_leftovers(job.store)
    shutil.copytree(graph, job.graph)
    return Outcome(lines=[told("engine", 100, "bytes")], facts={"engine": str(engine)})


class StandIn:
    """`perform` in this process: the twin is the card, and everything fits."""

    def __init__(self, checkpoint: Path, graph: Path) -> None:
        self._checkpoint, self._graph = checkpoint, graph
        self.done: list[tuple[str, str]] = []
        self.wrap: Callable[[Session], Session] = lambda session: session
        self.fail_at: tuple[str, BaseException] | None = None

    def __call__(self, step: str, job: Job) -> Outcome:
        self.done.append((job.precision, step))
        if self.fail_at is not None and self.fail_at[0] == step and job.precision == "int8":
            raise self.fail_at[1]
        job = Job.from_json(job.to_json())  # as it comes to another process
        if step == "build":
            return stand_in_build(job, self._checkpoint, self._graph)
        rig = Rig(open_card=self._open_card, open_twin=self._open_twin, free_bytes=lambda: 10**9)
        return STEPS[step](job, rig, lambda *_: None)

    def _open_card(self, engine: Path, context_tokens: int, num_slots: int, note: Note) -> Session:
        for stage in (RUNTIME, WEIGHTS, WORKSPACE):
            note(stage)
        kernels = device_cache(engine.parent) / "card.kernels"
        kernels.parent.mkdir(exist_ok=True)
        kernels.write_bytes(b"kernels")
        return self.wrap(
            open_twin(
                self._graph, context_tokens=context_tokens, num_slots=num_slots, threads=1,
                chunk_tokens=16,
            )
        )  # fmt: skip

    def _open_twin(self, graph: Path, context_tokens: int) -> Session:
        return open_twin(graph, context_tokens=context_tokens, num_slots=1, threads=1)


@pytest.fixture
def stand_in(make_tiny: MakePath, export_standard: MakePath) -> StandIn:
    checkpoint = make_tiny("qwen2")
    return StandIn(checkpoint, export_standard(checkpoint, context_tokens=CONTEXT))


@pytest.fixture
def run_script(
    stand_in: StandIn, tmp_path: Path, recorded: Recorded, make_tiny: MakePath,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Callable[..., int]]:  # fmt: skip
    card = recorded("rtx-4090")
    # how long anything takes is luck on a machine that others use, too
    monkeypatch.setattr("gpu_check.steps.check_first_tokens", first_tokens_of_a_quiet_machine)
    monkeypatch.setattr("gpu_check.speed.run_tests", speeds_of_a_quiet_machine)

    def run(*arguments: str) -> int:
        common = [
            "--model", str(make_tiny("qwen2")), "--store", str(tmp_path / "store"),
            "--json", str(tmp_path / "report.json"), "--repetitions", "1",
        ]  # fmt: skip
        return script.main([*common, *arguments], look=lambda: card, perform=stand_in)

    yield run
    # no graph is left, whatever happened
    assert not list((tmp_path / "store" / WORK).glob(".building-*"))


def speeds_of_a_quiet_machine(
    session: Session, tests: Sequence[BenchTest], *, token_ids: Sequence[int], **_: Any
) -> list[TestResult]:
    assert max(test.needed_tokens for test in tests) == session.context_tokens == len(token_ids)
    speeds = [1000.0, 100.0, 90.0]
    return [
        TestResult(test=test, tokens_per_s=Summary((speed,)))
        for test, speed in zip(tests, speeds, strict=True)
    ]


def first_tokens_of_a_quiet_machine(*given: Any, **named: Any) -> Any:
    ticks = iter([0.0, 1.0, 2.0, 3.0])
    return check_first_tokens(given[0], given[1], ticks.__next__, **named)


def test_a_good_card_passes_and_the_report_says_so(
    run_script: Callable[..., int], stand_in: StandIn, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert run_script("--precisions", "fp16,int8") == 0
    assert stand_in.done == [(p, step) for p in ("fp16", "int8") for step in STEPS]
    out, err = capsys.readouterr()
    assert out.startswith("# gpu-check: PASS, ")
    assert "scripts/gpu-check --model" in out.splitlines()[2]
    assert "tensorrt-rtx-cu13-bindings 1.7" in out.splitlines()[3]
    assert "## int8: numbers, card against processor (" in out
    assert "| GPU | NVIDIA GeForce RTX 4090 |" in out
    assert "FAIL" not in out
    table = out[out.index("## int8: memory of the card") :].splitlines()
    assert table[2] == "| check | measured | planned | ratio | limit | result | note |"
    assert table[5] == (
        "| runtime | 0 B | 1000 B | 0.00 |  |  | driver's context and library; the plan counts the "
        "process as well |"
    )
    assert "int8 (2 of 2): numerics" in err
    data = json.loads((tmp_path / "report.json").read_text())
    assert data["passed"] is True
    assert [part["step"] for part in data["parts"][1:6]] == list(STEPS)
    kernels = [x for part in data["parts"] for x in part["lines"] if "kernels" in x["name"]]
    assert [line["passed"] for line in kernels] == [True, True]


def test_a_broken_card_ends_with_4(
    run_script: Callable[..., int], stand_in: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in.wrap = SwappedSlots
    assert run_script("--precisions", "fp16") == 4
    out, err = capsys.readouterr()
    assert out.startswith("# gpu-check: FAIL, ")
    row = next(line for line in out.splitlines() if "several slots = single" in line)
    assert "≤ 0.1 | **FAIL** | 2 slots |" in row
    assert "failed: several slots = single ones" in err


def test_a_step_that_fails_is_reported_and_the_others_go_on(
    run_script: Callable[..., int], stand_in: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in.fail_at = ("memory", BackendError("the GPU fell off the bus", hint="restart"))
    assert run_script("--precisions", "int8,fp16") == 4
    assert stand_in.done == [(p, step) for p in ("int8", "fp16") for step in STEPS]
    out = capsys.readouterr().out
    assert "| memory | **FAIL** | the GPU fell off the bus (restart) |" in out


def test_without_an_engine_the_next_precision_comes(
    run_script: Callable[..., int], stand_in: StandIn
) -> None:
    stand_in.fail_at = ("build", RuntimeError("a bug"))
    assert run_script("--precisions", "int8,fp16") == 4
    assert stand_in.done == [("int8", "build"), *(("fp16", step) for step in STEPS)]


def test_ctrl_c_prints_what_there_is_and_leaves_nothing(
    run_script: Callable[..., int], stand_in: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in.fail_at = ("numerics", KeyboardInterrupt())
    assert run_script("--precisions", "fp16,int8") == 130
    assert stand_in.done[-1] == ("int8", "numerics")
    out = capsys.readouterr().out
    assert ", interrupted" in out.splitlines()[0]
    assert out.startswith("# gpu-check: FAIL")


def test_a_precision_that_the_card_has_not_is_refused_before_any_work(
    run_script: Callable[..., int], stand_in: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_script("--precisions", "nvfp4") == 2
    assert stand_in.done == []
    assert "hint: it has fp16, int8, fp8, int4_awq" in capsys.readouterr().err


def test_a_report_of_nothing_is_no_proof() -> None:
    empty = Report(command=["x"], versions={}, model="m", parts=[])
    assert not empty.passed
    only_told = Part(step="device", lines=(told("GPU", note="a | b\nc"),))
    assert not replace(empty, parts=[only_told]).passed
    assert "| GPU | a / b c |" in to_markdown(replace(empty, parts=[only_told]))


def test_a_part_is_the_same_after_json() -> None:
    part = Part(
        step="speed", subject="fp16", seconds=1.5,
        lines=(at_least("decode", 2000.4, 1000, "tokens/s", samples=(1990.0, 2000.4, 2100.0)),),
    )  # fmt: skip
    assert Part.from_dict(json.loads(json.dumps(part.to_dict()))) == part
    nan = Part(step="x", lines=(at_most("y", math.nan, 1),)).to_dict()
    assert json.dumps(nan, allow_nan=False)
    report = Report(command=["x"], versions={}, model="m", parts=[part])
    assert "| decode | 2000 tokens/s (1990 to 2100) | ≥ 1000 tokens/s | PASS |" in to_markdown(
        report
    )


def test_stages_are_told_in_order_and_the_room_is_as_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Executor:
        def __init__(self, *given: Any) -> None:
            self.given = given
            self.loaded = self._load(Path("plan"))

        def _load(self, plan: Path) -> str:
            return f"loaded {plan}"

    monkeypatch.setattr(runtime, "TrtExecutor", Executor)
    heard: list[str] = []
    with stages(heard.append):
        made: Any = runtime.TrtExecutor(1, 2, 3, 4)  # type: ignore[arg-type]
    assert (made.given, made.loaded) == ((1, 2, 3, 4), "loaded plan")
    assert heard == [RUNTIME, WEIGHTS, WORKSPACE]
    assert runtime.TrtExecutor is Executor  # type: ignore[comparison-overlap]


# processes


def some_job(tmp_path: Path) -> Job:
    return Job(model=str(tmp_path / "absent"), precision="fp16", store=tmp_path / "s", batch=2)


def test_a_step_that_raises_in_its_process_is_a_failed_line(tmp_path: Path) -> None:
    outcome = processes.isolated("memory", some_job(tmp_path))
    assert [(line.name, line.passed) for line in outcome.lines] == [("memory", False)]
    assert outcome.lines[0].note == "there is no engine to check"


def child(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """The next step's process runs that instead."""
    real = processes._run
    monkeypatch.setattr(
        processes, "_run", lambda command, variables: real([command[0], "-c", program], variables)
    )


def test_a_process_that_dies_is_a_failed_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child(monkeypatch, "import os; os.kill(os.getpid(), 11)")
    outcome = processes.isolated("memory", some_job(tmp_path))
    assert [line.note for line in outcome.lines] == ["the process died: SIGSEGV"]


def test_ctrl_c_in_a_process_ends_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child(monkeypatch, "raise SystemExit(130)")
    with pytest.raises(KeyboardInterrupt):
        processes.isolated("memory", some_job(tmp_path))


def test_a_process_that_has_not_heard_ctrl_c_is_told(tmp_path: Path) -> None:
    told_file = tmp_path / "told"
    program = (
        "import pathlib, sys, time\n"
        "try:\n    pathlib.Path(sys.argv[1] + '.up').touch(); time.sleep(60)\n"
        "except KeyboardInterrupt:\n    pathlib.Path(sys.argv[1]).touch()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(told_file)])
    while not Path(f"{told_file}.up").exists():
        assert process.poll() is None
    processes._end(process)
    assert told_file.exists()
    assert process.returncode is not None


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ROOT / "scripts" / "gpu-check", *arguments],
        env={**os.environ, "EDGEKIT_PYTHON": sys.executable},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_without_a_card_the_script_says_so_in_one_sentence(tmp_path: Path) -> None:
    if read_device().gpus:
        pytest.skip("this machine has an NVIDIA GPU")
    done = command("--store", tmp_path / "store")
    assert (done.returncode, done.stdout) == (4, "")
    first, blank, hint = done.stderr.splitlines()
    assert first.startswith("error: ")
    assert (blank, hint[:6]) == ("", "hint: ")
    assert not (tmp_path / "store").exists()


@pytest.mark.slow  # quantizes and compiles
def test_the_first_step_builds_by_the_real_pipeline(make_tiny: MakePath, tmp_path: Path) -> None:
    job = Job(
        model=str(make_tiny("qwen2")), precision="fp16", store=tmp_path, batch=2,
        context_tokens=512, profile="rtx-4090",
    )  # fmt: skip
    outcome = processes.isolated("build", job)
    # no card is here: the twin was asked, and that is no proof of a card
    assert wrong(outcome.lines) == ["its answers were checked on the card"]
    job = job.told(outcome.facts)
    assert (job.backend_files / PLAN_FILE).is_file()
    twin = open_twin(job.graph, context_tokens=512, num_slots=1, threads=1)
    assert twin.prefill(0, [1, 2, 3]).shape == (1, 384)
    twin.close()
    if not read_device().gpus:
        for step in list(STEPS)[1:]:
            lines = processes.isolated(step, job).lines
            assert [(line.name, line.passed) for line in lines] == [(step, False)]
            assert "driver" in lines[0].note


@pytest.mark.gpu
def test_this_card_passes(tmp_path: Path, smollm2_gguf: Path) -> None:
    out = tmp_path / "report.json"
    done = command(
        "--model", smollm2_gguf, "--store", tmp_path / "store", "--json", out, "--context", "2048"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(out.read_text())["passed"] is True
