"""The check of engines that sample by themselves and tell the likeliest tokens alone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgekit.backends.base import Wanted
from edgekit.errors import InputError, QualityError
from edgekit.quality import ON_ENGINE_TOP, ON_TWIN, ON_TWIN_ANSWERED, Quality
from edgekit.reference import REFERENCE_FILE, Reference, ask
from edgekit.verify import check_streamed

MakePath = Callable[..., Path]
Logits = Callable[[Path, Sequence[int]], NDArray[np.float32]]
FIRST, TOLD = 4, 20
PROMPTS = tuple(
    tuple(int(i) for i in np.random.default_rng(seed).integers(0, 384, 16)) for seed in range(2)
)
KNOWN = (5, 6, 7)


@dataclass
class Session:
    """Answers from `logits`, which `spoil` may change on the way."""

    logits: Callable[[Sequence[int]], NDArray[np.float32]]
    spoil: Callable[[NDArray[np.float32]], NDArray[np.float32]] = lambda row: row
    tells: bool = True
    context_tokens: int = 64
    closed: int = 0

    def stream(
        self, token_ids: Sequence[int], *, sampling: Mapping[str, Any], max_new_tokens: int
    ) -> Generator[int]:
        ids = list(token_ids)
        for _ in range(max_new_tokens):
            ids.append(int(self.spoil(self.logits(ids)[-1]).argmax()))
            yield ids[-1]

    def scores(self, token_ids: Sequence[int], *, first: int = 0) -> NDArray[np.float32]:
        raise AssertionError("it has only the likeliest")

    def top_scores(
        self, token_ids: Sequence[int], *, first: int = 0
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        if not self.tells:
            raise InputError("none")
        rows = np.array([self.spoil(row) for row in self.logits(token_ids)[first:]])
        rows = rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
        ids = np.argsort(-rows, axis=1)[:, :TOLD]
        return ids, np.take_along_axis(rows, ids, axis=1)

    def close(self) -> None:
        self.closed += 1


@dataclass
class Backend:
    """Opens that session."""

    session: Session
    asked: list[int] = field(default_factory=list)

    def missing_runtime(self) -> str | None:
        return None

    def commands(self, wanted: Wanted, source: Path, engine: Path) -> list[str]:
        return []

    def open_stream(
        self, engine: Path, *, context_tokens: int, num_slots: int, stop_ids: Collection[int] = ()
    ) -> Session:
        return self.session

    def open_scores(self, engine: Path, *, context_tokens: int) -> Session:
        self.asked.append(context_tokens)
        return self.session


@pytest.fixture(scope="module")
def logits(
    make_tiny: MakePath, hf_logits: Logits
) -> Callable[[Sequence[int]], NDArray[np.float32]]:
    model = make_tiny()
    return lambda ids: hf_logits(model, ids)


@pytest.fixture
def engine(
    tmp_path: Path, make_tiny: MakePath, logits: Callable[[Sequence[int]], NDArray[np.float32]]
) -> Path:
    """An engine's directory, as far as it is read: answers of transformers, and a tokenizer."""
    found = ask(lambda ids, count: logits(ids)[-count:], PROMPTS, first_position=FIRST)
    answer: list[int] = []
    for _ in range(6):
        answer.append(int(logits([*KNOWN, *answer])[-1].argmax()))
    reference = Reference(
        prompts=PROMPTS,
        first_position=FIRST,
        top_ids=found.top_ids,
        original=found.log_probs.astype(np.float16),
        simulated=found.log_probs.astype(np.float16),
        original_next=found.next,
        simulated_next=found.next,
        known_prompt=KNOWN,
        known_answer=tuple(answer),
    )
    for name in ("reference", "tokenizer"):
        (tmp_path / name).mkdir()
    reference.save(tmp_path / "reference" / REFERENCE_FILE)
    tokenizer = (make_tiny() / "tokenizer.json").read_bytes()
    (tmp_path / "tokenizer" / "tokenizer.json").write_bytes(tokenizer)
    return tmp_path


def twin(engine: Path) -> Quality:
    known = Reference.load(engine / "reference" / REFERENCE_FILE).known_answer
    return Quality(
        positions=1, mean_kl=0.5, mean_kl_simulated=0.5, top1_agreement=0.5, perplexity_ratio=1.01,
        known_answer_ids=known, known_answer_agreement=6, measured_on=ON_TWIN,
    )  # fmt: skip


def check(session: Session, engine: Path) -> Quality:
    backend = Backend(session)
    found = check_streamed(
        backend, twin(engine), engine=engine, context_tokens=64, precision="int8_sq"
    )
    assert backend.asked == [64]
    assert session.closed == 1
    return found


def test_an_engine_that_is_right_passes_by_its_likeliest_tokens(
    engine: Path, logits: Callable[[Sequence[int]], NDArray[np.float32]]
) -> None:
    found = check(Session(logits), engine)
    assert found.measured_on == ON_ENGINE_TOP
    # two prompts of 16 tokens, from position 4 to the last but one
    assert found.positions == 2 * (16 - 1 - FIRST)
    assert found.top1_agreement == 1.0
    assert found.mean_kl == pytest.approx(0, abs=1e-3)
    assert found.perplexity_ratio == 1.01  # of what it does not tell; the twin's stays
    assert found.known_answer_agreement == 6


def test_garbage_that_begins_as_it_should_is_found(
    engine: Path, logits: Callable[[Sequence[int]], NDArray[np.float32]]
) -> None:
    session = Session(logits)
    whole = session.top_scores

    def shuffled(
        token_ids: Sequence[int], *, first: int = 0
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        ids, values = whole(token_ids, first=first)
        return (ids + 97) % 384, values

    session.top_scores = shuffled  # type: ignore[method-assign]
    with pytest.raises(QualityError, match="mean KL divergence from ModelOpt's simulation"):
        check(session, engine)


def test_garbage_in_the_known_answer_is_found(
    engine: Path, logits: Callable[[Sequence[int]], NDArray[np.float32]]
) -> None:
    session = Session(logits, spoil=lambda row: -row)
    with pytest.raises(QualityError, match="does not answer as its checkpoint does"):
        check(session, engine)


def test_one_that_tells_nothing_is_asked_its_known_answer(
    engine: Path, logits: Callable[[Sequence[int]], NDArray[np.float32]]
) -> None:
    found = check(Session(logits, tells=False), engine)
    assert found == replace(
        twin(engine), measured_on=ON_TWIN_ANSWERED, known_answer=found.known_answer
    )
