"""The session over a real worker process and a package that behaves as TensorRT-LLM does."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from edgekit.backends.tensorrt_llm.process import WORKER_PATH
from edgekit.backends.tensorrt_llm.session import LoadOptions, TrtLlmSession
from edgekit.backends.worker_request import Limits
from edgekit.errors import BackendError, BudgetError, InputError
from edgekit.runtime.sampling import Sampling
from edgekit.runtime.streamed import StreamedGeneration
from tests.backends.at_once import ask_at_once

if TYPE_CHECKING:
    from edgekit.backends.base import StreamingSession

DATA = Path(__file__).with_name("data")
KILL, OOM, SILENT = 901, 903, 907
GREEDY = asdict(Sampling())

Open = Callable[..., TrtLlmSession]


@pytest.fixture
def open_session(tmp_path: Path) -> Iterator[Open]:
    """`open_session(behaviour, stop_ids=..., **options)`: closed at the end."""
    sessions: list[TrtLlmSession] = []

    def make(
        behaviour: dict[str, Any] | None = None, *, stop_ids: tuple[int, ...] = (), **changes: Any
    ) -> TrtLlmSession:
        (tmp_path / "fake.json").write_text(json.dumps(behaviour or {}), encoding="utf-8")
        options: dict[str, Any] = {
            "model": str(tmp_path), "backend": "tensorrt", "context_tokens": 64, "kv_tokens": 256,
            "max_batch_size": 2, "max_num_tokens": 32, "chunked_prefill": True, **changes,
        }  # fmt: skip
        session = TrtLlmSession.open(
            (sys.executable, str(WORKER_PATH)),
            LoadOptions(**options),
            vocab_size=1000,
            stop_ids=stop_ids,
            environment={"PYTHONPATH": str(DATA)},
            limits=Limits(start_s=20, ping_s=20, silence_s=20, close_s=2),
        )
        sessions.append(session)
        return session

    yield make
    for session in sessions:
        session.close()


def tokens(session: TrtLlmSession, first: int, count: int) -> list[int]:
    return list(session.stream([first, 7], sampling=GREEDY, max_new_tokens=count))


def test_an_answer_streams_and_ends_with_its_stop_token(open_session: Open) -> None:
    session: StreamingSession = open_session(stop_ids=(99, 12))
    assert session.context_tokens == 64
    stream = session.stream([9, 7], sampling=GREEDY, max_new_tokens=20)
    assert list(stream) == [10, 11, 12]


def test_a_generation_over_it_knows_how_it_ended(open_session: Open) -> None:
    session = open_session(stop_ids=(12,))
    stopped = StreamedGeneration(session, [9, 7], sampling=Sampling(), stop_ids={12})
    assert [step.token_id for step in stopped] == [10, 11]
    assert stopped.finish_reason == "stop"
    sampling = Sampling(temperature=0.6, seed=1)
    cut = StreamedGeneration(session, [20], sampling=sampling, max_new_tokens=3)
    assert [step.token_id for step in cut] == [21, 22, 23]
    assert cut.finish_reason == "length"


@pytest.mark.parametrize(
    ("prompt", "count", "words"),
    [
        ([], 1, "has no tokens"),
        ([1] * 60, 5, "60 tokens and the answer 5, the context holds 64"),
        ([1], 0, "at least 1"),
        ([1, 1000], 1, "token 1000 is outside"),
        ([-1], 1, "token -1 is outside"),
    ],
)
def test_input_is_checked_before_anything_is_sent(
    open_session: Open, tmp_path: Path, prompt: list[int], count: int, words: str
) -> None:
    session = open_session()
    with pytest.raises(InputError, match=words):
        session.stream(prompt, sampling=GREEDY, max_new_tokens=count)
    assert len((tmp_path / "seen.jsonl").read_text(encoding="utf-8").splitlines()) == 1  # load


def test_the_whole_context_can_be_used(open_session: Open) -> None:
    session = open_session()
    assert len(list(session.stream([1] * 60, sampling=GREEDY, max_new_tokens=4))) == 4


def test_numbers_that_json_does_not_have_are_refused(open_session: Open) -> None:
    stream = open_session().stream([1], sampling={"top_p": float("nan")}, max_new_tokens=1)
    with pytest.raises(InputError, match="not a request"):
        next(stream)


def test_numpy_ids_are_taken(open_session: Open) -> None:
    prompt = np.array([5, 6], np.int64)
    stream = open_session().stream(prompt, sampling=GREEDY, max_new_tokens=1)  # type: ignore[arg-type]  # what callers have
    assert list(stream) == [6]


def test_closing_a_stream_cancels_it(open_session: Open) -> None:
    session = open_session()
    with closing(session.stream([SILENT], sampling=GREEDY, max_new_tokens=9)) as stream:
        assert [next(stream), next(stream)] == [908, 909]
    assert tokens(session, 5, 3) == [6, 7, 8]


def test_a_stream_never_begun_asks_for_nothing(open_session: Open, tmp_path: Path) -> None:
    session = open_session()
    session.stream([5], sampling=GREEDY, max_new_tokens=9).close()
    assert tokens(session, 5, 1) == [6]
    assert len((tmp_path / "seen.jsonl").read_text(encoding="utf-8").splitlines()) == 2


def test_two_threads_stream_at_once(open_session: Open) -> None:
    session = open_session()
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(tokens, session, first, 30) for first in (100, 200)]
        answers = [job.result(timeout=10) for job in jobs]
    assert answers == [list(range(101, 131)), list(range(201, 231))]


def test_closing_the_session_ends_a_stream_of_another_thread(open_session: Open) -> None:
    session = open_session()
    stream = session.stream([SILENT], sampling=GREEDY, max_new_tokens=9)
    assert next(stream) == 908
    closer = threading.Timer(0.1, session.close)
    closer.start()
    with pytest.raises(BackendError, match="the session is closed"):
        list(stream)
    closer.join(timeout=10)
    with pytest.raises(BackendError, match="the session is closed"):
        tokens(session, 5, 1)


def test_a_crash_ends_the_stream_and_not_edgekit(open_session: Open) -> None:
    session = open_session()
    with pytest.raises(BackendError, match="SIGKILL"):
        tokens(session, KILL, 9)
    with pytest.raises(BackendError, match="SIGKILL"):
        tokens(session, 5, 1)


def test_memory_short_in_an_answer_is_a_budget_error(open_session: Open) -> None:
    session = open_session()
    with pytest.raises(BudgetError, match="not enough memory for answering"):
        tokens(session, OOM, 9)
    assert tokens(session, 5, 1) == [6]


def test_a_smaller_kv_cache_than_planned_is_an_error(open_session: Open) -> None:
    with pytest.raises(BudgetError, match="holds 96 tokens instead of 256"):
        open_session({"pool": 96})


def test_a_kv_cache_cut_into_blocks_is_none(open_session: Open) -> None:
    # 256 tokens less one block of 32
    assert open_session({"pool": 224}).worker.pool_tokens == 224


def test_scores_are_log_probabilities_of_every_position(open_session: Open) -> None:
    scores = open_session(gather_logits=True).scores([3, 4, 5], first=1)
    assert scores.shape == (2, 1000)
    assert str(scores.dtype) == "float32"
    # row i: logit `length` at the last token of the prefix, 0 elsewhere
    expected = 3 - np.log(np.exp(3) + 999)
    assert scores[1, 5] == pytest.approx(expected, abs=1e-5)
    assert np.exp(scores).sum(-1) == pytest.approx([1, 1], abs=1e-4)


def test_scores_need_logits(open_session: Open) -> None:
    with pytest.raises(InputError, match="gather_logits"):
        open_session().scores([3, 4, 5])


def test_a_session_that_is_dropped_ends_its_worker(open_session: Open, tmp_path: Path) -> None:
    session = open_session()
    process = session.worker._process
    assert process is not None
    session.__del__()
    assert process.poll() == 0


@pytest.mark.parametrize("is_killed", [False, True])
def test_no_request_is_lost_or_answered_twice(open_session: Open, is_killed: bool) -> None:
    """Many at once: answered, cancelled in the middle, refused for memory; and then killed."""
    session = open_session(max_batch_size=8)
    ends = ask_at_once(session, turns=12, first=0, bad={3: OOM}, kill_at=5 if is_killed else None)
    if is_killed:
        return
    assert ends == [["answered", "answered", "answered", "memory"] * 3] * 8
    assert session.worker.num_garbage == 0
    assert not session.worker._requests
    assert tokens(session, 5, 1) == [6]
    assert not session.worker._forgotten  # what was cancelled has been told to be over
