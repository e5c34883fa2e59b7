"""Session and worker over a real process, and a package that behaves as Edge-LLM's wheel does."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models

from edgekit.backends.base import TopScoring
from edgekit.backends.edge_llm.process import WORKER_PATH
from edgekit.backends.edge_llm.session import (
    TOP_TOKENS,
    EdgeLlmSession,
    end_ids,
    open_session,
)
from edgekit.backends.edge_llm.worker import sampling_fields
from edgekit.backends.worker_request import Limits
from edgekit.errors import (
    BackendError,
    BudgetError,
    EdgekitError,
    EngineError,
    InputError,
    MissingBackendError,
    StaleEngineError,
)
from edgekit.runtime.sampling import Sampling
from edgekit.runtime.streamed import StreamedGeneration
from tests.backends import edgellm
from tests.backends.at_once import ask_at_once
from tests.backends.edgellm import (
    BURST,
    DEAF,
    EXIT,
    HANG,
    KILL,
    LOST,
    NO_END,
    OOM,
    OOM_TEXT,
    PRINT,
    RUNTIME,
    SEGV,
    SILENT,
    THOR,
    UNREAD,
    read_seen,
    write_engine,
)

if TYPE_CHECKING:
    from edgekit.backends.base import StreamingSession

LIMITS = Limits(start_s=20, ping_every_s=0.1, ping_s=20, silence_s=20, close_s=2)
GREEDY = asdict(Sampling())

Open = Callable[..., EdgeLlmSession]


@pytest.fixture
def open_engine(tmp_path: Path) -> Iterator[Open]:
    """`open_engine(behaviour, num_slots=1, …)`: closed at the end."""
    sessions: list[EdgeLlmSession] = []

    def make(behaviour: dict[str, Any] | None = None, **options: Any) -> EdgeLlmSession:
        layout = options.pop("layout", {})
        engine, _ = write_engine(
            tmp_path, behaviour, **{"batch": options.get("num_slots", 1), **layout}
        )
        environment = {**os.environ, **edgellm.ENVIRONMENT, **options.pop("environment", {})}
        fields = {"context_tokens": 64, "num_slots": 1, "limits": LIMITS, "device": THOR, **options}
        session = open_session(RUNTIME, engine, environment=environment, **fields)
        sessions.append(session)
        return session

    yield make
    for session in sessions:
        session.close()


def tokens(session: EdgeLlmSession, first: int, count: int, **sampling: Any) -> list[int]:
    asked = {**GREEDY, **sampling}
    return list(session.stream([first, 7], sampling=asked, max_new_tokens=count))


both = pytest.mark.parametrize("num_slots", [1, 4], ids=["one by one", "together"])


# --- what is asked of Edge-LLM ---


@both
def test_an_answer_streams(open_engine: Open, tmp_path: Path, num_slots: int) -> None:
    session: StreamingSession = open_engine(num_slots=num_slots, stop_ids=(99,))
    assert session.context_tokens == 64
    assert list(session.stream([20, 7], sampling=GREEDY, max_new_tokens=3)) == [21, 22, 23]
    kind, *_ = seen = read_seen(tmp_path / "llm" / "seen.jsonl")
    assert kind["kind"] == ("LLMRuntime" if num_slots == 1 else "RequestEngine")
    assert num_slots == 1 or {"max_batch_size": 4} in seen
    assert {k: v for k, v in seen[-1].items() if k != "seed"} == {
        "temperature": 1.0, "top_p": 1.0, "top_k": 1, "max_generate_length": 3,
        "apply_chat_template": False, "add_generation_prompt": False, "enable_thinking": False,
        "disable_spec_decode": True, "skip_special_tokens": False, "num_logprobs": 0,
        "text": "20 7", "logit_bias": {},
    }  # fmt: skip


def test_what_steers_its_compiler_is_kept_from_it(
    open_engine: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("__LUNOWUD", "-disable=all")
    pid = open_engine().worker._process.pid  # type: ignore[union-attr]
    assert b"__LUNOWUD" not in Path(f"/proc/{pid}/environ").read_bytes()


def test_weights_beside_the_engine_are_named(open_engine: Open, tmp_path: Path) -> None:
    open_engine(layout={"has_checkpoint": True})
    (seen, *_) = read_seen(tmp_path / "llm" / "seen.jsonl")
    assert seen["checkpoint_dir"] == str(tmp_path / "checkpoint")


def test_more_conversations_than_the_engine_has_are_not_asked_for(
    open_engine: Open, tmp_path: Path
) -> None:
    open_engine(num_slots=9, layout={"batch": 2})
    assert {"max_batch_size": 2} in read_seen(tmp_path / "llm" / "seen.jsonl")


def test_sampling_arrives_as_asked(open_engine: Open, tmp_path: Path) -> None:
    tokens(open_engine(), 20, 2, temperature=0.6, top_p=0.9, top_k=40, seed=5)
    seen = read_seen(tmp_path / "llm" / "seen.jsonl")[-1]
    assert (seen["temperature"], seen["top_p"], seen["top_k"], seen["seed"]) == (0.6, 0.9, 40, 5)


@pytest.mark.parametrize(
    ("sampling", "fields"),
    [
        ({}, (1.0, 1, 1.0)),
        ({"temperature": 0.0, "top_p": 0.9, "top_k": 40}, (1.0, 1, 1.0)),
        ({"temperature": 0.0005}, (1.0, 1, 1.0)),
        ({"temperature": 0.8, "top_k": 1}, (1.0, 1, 1.0)),
        # neither top_k nor top_p: refused by it, or greedy at 1.0, so top_p is a little below 1
        ({"temperature": 1.0}, (1.0, 0, 0.999998)),
        ({"temperature": 0.7, "top_p": 1.0}, (0.7, 0, 0.999998)),
        ({"temperature": 0.7, "top_k": 20}, (0.7, 20, 1.0)),
        ({"temperature": 0.7, "min_p": 0.0, "repetition_penalty": 1.0}, (0.7, 0, 0.999998)),
    ],
)
def test_sampling_is_what_it_would_do(
    sampling: dict[str, Any], fields: tuple[float, int, float]
) -> None:
    found = sampling_fields(sampling)
    assert (found["temperature"], found["top_k"], found["top_p"]) == fields
    assert found["seed"] != sampling_fields(sampling)["seed"]  # its own is always the same


@pytest.mark.parametrize(
    ("sampling", "words"),
    [
        ({"min_p": 0.1}, "has no min_p: 0.1"),
        ({"repetition_penalty": 1.1}, "has no repetition_penalty: 1.1"),
        ({"beams": 3}, "unknown sampling field: beams"),
    ],
)
def test_what_its_sampler_lacks_is_refused(
    open_engine: Open, sampling: dict[str, Any], words: str
) -> None:
    with pytest.raises(Exception, match=words):
        sampling_fields(sampling)
    session = open_engine()
    with pytest.raises(InputError, match=words):
        tokens(session, 20, 1, **sampling)
    assert tokens(session, 20, 1) == [21]


# --- how answers end ---


@both
def test_a_stop_token_ends_an_answer_and_is_in_it(open_engine: Open, num_slots: int) -> None:
    session = open_engine(num_slots=num_slots, stop_ids=(99, 24))
    assert tokens(session, 20, 9) == [21, 22, 23, 24]


def test_the_end_token_is_given_though_the_runtime_leaves_it_out(open_engine: Open) -> None:
    session = open_engine(stop_ids=(12, 99))
    assert tokens(session, 9, 9) == [10, 11, 12]  # 12 is its own end token, and not streamed
    stopped = StreamedGeneration(session, [9, 7], sampling=Sampling(), stop_ids={12})
    assert [step.token_id for step in stopped] == [10, 11]
    assert stopped.finish_reason == "stop"


def test_tokens_behind_a_stop_token_or_the_limit_are_not_given(open_engine: Open) -> None:
    assert tokens(open_engine(stop_ids=(910,)), BURST, 9) == [909, 910]
    assert tokens(open_engine(stop_ids=(99,)), BURST, 4) == [909, 910, 911, 912]


def test_without_stop_ids_its_own_end_token_is_banned(open_engine: Open, tmp_path: Path) -> None:
    assert tokens(open_engine(), 9, 5) == [10, 11, 12, 13, 14]
    assert read_seen(tmp_path / "llm" / "seen.jsonl")[-1]["logit_bias"] == {"12": -100.0}


def test_to_score_its_own_end_token_ends_an_answer(open_engine: Open) -> None:
    assert tokens(open_engine(to_score=True), 9, 5) == [10, 11]


def test_end_tokens_are_read_from_every_file_that_names_them(tmp_path: Path) -> None:
    edgellm.write_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text('{"eos_token_id": [3, 4]}')
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 5}')
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "6"}}')
    assert end_ids(tmp_path) == [3, 4, 5, 6]
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "not a token"}')
    (tmp_path / "generation_config.json").unlink()
    assert end_ids(tmp_path) == []


# --- the prompt is a text ---


@pytest.mark.parametrize(
    ("prompt", "count", "words"),
    [
        ([], 1, "has no tokens"),
        ([1] * 60, 5, "60 tokens and the answer 5, the context holds 64"),
        ([1] * 61, 1, "61 tokens, the engine takes 60"),
        ([1], 0, "at least 1"),
        ([1, 1000], 1, "token 1000 is outside"),
    ],
)
def test_input_is_checked_before_anything_is_sent(
    open_engine: Open, tmp_path: Path, prompt: list[int], count: int, words: str
) -> None:
    session = open_engine()
    with pytest.raises(InputError, match=words):
        session.stream(prompt, sampling=GREEDY, max_new_tokens=count)
    assert len(read_seen(tmp_path / "llm" / "seen.jsonl")) == 1  # load


@both
@pytest.mark.parametrize("first", [UNREAD, DEAF])
def test_a_prompt_of_which_nothing_is_read_is_an_error(
    open_engine: Open, num_slots: int, first: int
) -> None:
    session = open_engine(num_slots=num_slots)
    with pytest.raises(BackendError, match="no token"):
        tokens(session, first, 3)
    assert tokens(session, 20, 1) == [21]


def test_a_tokenizer_that_counts_otherwise_is_told_once(
    open_engine: Open, caplog: pytest.LogCaptureFixture
) -> None:
    session = open_engine({"more": 1})
    with caplog.at_level(logging.WARNING):
        assert tokens(session, 20, 1) == tokens(session, 20, 1) == [21]
    assert [record.message for record in caplog.records] == [
        "Edge-LLM reads 3 tokens where the tokenizer has 2: its own tokenizer differs, and answers "
        "may be worse"
    ]
    with pytest.raises(BackendError, match="it answers another prompt"):
        session.top_scores([20, 7], first=1)


def test_a_lost_character_is_told(
    open_engine: Open, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    session = open_engine()
    made = tokenizers.Tokenizer(models.WordLevel({"7": 0, "Ã": 1, "\ufffd": 2}, unk_token="7"))
    made.decoder = decoders.ByteLevel()
    session._tokenizer = made
    with caplog.at_level(logging.WARNING):
        stream = session.stream([1], sampling=GREEDY, max_new_tokens=1)
    assert session._text_of([1]) == ("\ufffd", 1, False)
    stream.close()
    assert "ended within a character" in caplog.text


# --- many at once ---


@both
def test_closing_a_stream_cancels_it(open_engine: Open, num_slots: int) -> None:
    session = open_engine(num_slots=num_slots)
    with closing(session.stream([SILENT], sampling=GREEDY, max_new_tokens=9)) as stream:
        assert [next(stream), next(stream)] == [908, 909]
    assert tokens(session, 5, 3) == [6, 7, 8]


def test_two_share_the_passes_of_an_engine_for_several(open_engine: Open) -> None:
    session = open_engine(num_slots=2)
    with closing(session.stream([SILENT], sampling=GREEDY, max_new_tokens=9)) as silent:
        assert next(silent) == 908
        assert tokens(session, 100, 30) == list(range(101, 131))  # beside it


def test_an_engine_for_one_answers_in_turn(open_engine: Open) -> None:
    session = open_engine()
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda first: tokens(session, first, 30), (100, 200, 300)))
    assert answers == [list(range(n + 1, n + 31)) for n in (100, 200, 300)]


@both
@pytest.mark.parametrize("is_killed", [False, True])
def test_no_request_is_lost_or_answered_twice(
    open_engine: Open, num_slots: int, *, is_killed: bool
) -> None:
    """Many at once, more than its queue takes: answered, cancelled, failed; and then killed."""
    session = open_engine(num_slots=num_slots, stop_ids=(999,))
    ends = ask_at_once(
        session, turns=8, first=20, bad={2: OOM_TEXT, 3: LOST}, kill_at=4 if is_killed else None
    )
    if is_killed:
        return
    assert ends == [["answered", "answered", "memory", "failed"] * 2] * 8
    assert session.worker.num_garbage == 0
    assert not session.worker._requests
    assert tokens(session, 5, 1) == [6]


# --- failures ---


@both
@pytest.mark.parametrize("how", [OOM, OOM_TEXT])
def test_memory_short_in_an_answer_is_told_apart(
    open_engine: Open, num_slots: int, how: int
) -> None:
    session = open_engine(num_slots=num_slots)
    with pytest.raises(BudgetError, match="not enough memory for answering"):
        tokens(session, how, 9)
    assert tokens(session, 5, 1) == [6]


@both
def test_an_answer_that_ends_in_an_error_says_which(open_engine: Open, num_slots: int) -> None:
    with pytest.raises(BackendError, match="illegal memory access"):
        tokens(open_engine(num_slots=num_slots), NO_END, 4)


@pytest.mark.parametrize(
    ("how", "words"), [(EXIT, "exit status 3.*last words"), (KILL, "SIGKILL"), (SEGV, "SIGSEGV")]
)
def test_a_crash_is_one_error_for_every_open_request(
    open_engine: Open, how: int, words: str
) -> None:
    session = open_engine(num_slots=4)
    silent = session.stream([SILENT], sampling=GREEDY, max_new_tokens=9)
    assert next(silent) == 908
    with pytest.raises(BackendError, match=words):
        tokens(session, how, 9)
    with pytest.raises(BackendError, match=words):
        list(silent)
    with pytest.raises(BackendError, match=words):
        tokens(session, 5, 1)


def test_a_hang_is_noticed(open_engine: Open) -> None:
    session = open_engine(limits=replace(LIMITS, ping_s=0.5, close_s=1))
    with pytest.raises(BackendError, match=r"has not answered for 0\.5 s"):
        tokens(session, HANG, 9)


def test_a_runtime_that_makes_no_token_is_noticed(open_engine: Open) -> None:
    session = open_engine(limits=replace(LIMITS, silence_s=0.5, close_s=1))
    with pytest.raises(BackendError, match=r"no token for 0\.5 s"):
        tokens(session, SILENT, 9)


def test_prints_do_not_reach_the_protocol(open_engine: Open) -> None:
    session = open_engine()
    assert tokens(session, PRINT, 5) == [907, 908, 909, 910, 911]
    assert session.worker.num_garbage == 0


@pytest.mark.parametrize(
    ("behaviour", "environment", "error", "words"),
    [
        ({"load": str(OOM)}, {}, BudgetError, "not enough memory for loading"),
        ({"load": "log", "says": "Failed to allocate pinned host buffer"}, {}, BudgetError,
         "not enough memory"),
        ({"load": "log", "says": "checkpoint does not match build provider"}, {}, StaleEngineError,
         "another device, TensorRT or checkpoint"),
        ({"load": "log", "says": "nothing known"}, {}, BackendError, "initialize the runtime"),
        ({"load": str(KILL)}, {}, BackendError, "SIGKILL"),
        ({}, {"EDGELLM_STANDIN": "unselected"}, MissingBackendError, "NativeSelectionError"),
        ({}, {"PYTHONPATH": "/nowhere"}, MissingBackendError, "No module named"),
    ],
)  # fmt: skip
def test_a_failure_to_load_says_why(
    open_engine: Open,
    behaviour: dict[str, str],
    environment: dict[str, str],
    error: type[EdgekitError],
    words: str,
) -> None:
    with pytest.raises(error, match=words) as caught:
        open_engine(behaviour, environment=environment)
    assert type(caught.value) is error


def test_an_engine_of_elsewhere_is_not_loaded(open_engine: Open, tmp_path: Path) -> None:
    other = replace(THOR.gpus[0], name="Orin (nvgpu)", sm=87)
    with pytest.raises(StaleEngineError, match="compute capability sm_110, here sm_87"):
        open_engine(device=replace(THOR, gpus=(other,)))
    assert not (tmp_path / "llm" / "seen.jsonl").exists()


def test_a_damaged_tokenizer_is_an_engine_error(tmp_path: Path) -> None:
    engine, _ = write_engine(tmp_path)
    (engine / "llm" / "tokenizer.json").write_text("{")
    with pytest.raises(EngineError, match=r"tokenizer\.json"):
        open_session(RUNTIME, engine, context_tokens=64, num_slots=1, device=THOR)


def test_a_session_that_is_dropped_ends_its_worker(open_engine: Open) -> None:
    session = open_engine()
    process = session.worker._process
    assert process is not None
    session.__del__()
    assert process.poll() == 0


# --- log-probabilities ---


def test_the_likeliest_tokens_of_every_position(open_engine: Open) -> None:
    session = open_engine(to_score=True)
    assert isinstance(session, TopScoring)
    ids, log_probs = session.top_scores([30, 4, 5], first=1)
    assert ids.shape == log_probs.shape == (2, TOP_TOKENS)
    # the stand-in: after a prompt that begins with 30 comes 31 with 0.5, 32 with 0.25, …
    assert ids[:, :3].tolist() == [[31, 32, 33]] * 2
    assert np.exp(log_probs[:, :3]) == pytest.approx(np.array([[0.5, 0.25, 0.125]] * 2), rel=1e-5)


def test_a_position_within_a_character_is_not_asked(open_engine: Open) -> None:
    session = open_engine(to_score=True)
    whole = session._tokenizer

    class Halved:
        """One whose token 4 is half a character."""

        def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
            text: str = whole.decode(ids, skip_special_tokens=skip_special_tokens)
            return text if ids[-1] != 4 else text + " 0"

        def __getattr__(self, name: str) -> Any:
            return getattr(whole, name)

    session._tokenizer = Halved()  # type: ignore[assignment]  # as far as it is used
    ids, log_probs = session.top_scores([30, 4, 5], first=0)
    assert (ids[:, 0] < 0).tolist() == [False, True, False]
    assert np.isneginf(log_probs[1]).all()


def test_a_position_where_the_answer_ends_is_not_told(open_engine: Open) -> None:
    session = open_engine(to_score=True)
    ids, _ = session.top_scores([11, 4], first=1)  # 12 is its end token, and not given
    assert (ids < 0).all()


def test_of_the_whole_vocabulary_there_are_none(open_engine: Open) -> None:
    session = open_engine(to_score=True)
    with pytest.raises(InputError, match="of 50 tokens at most"):
        session.scores([3, 4, 5], first=1)
    with pytest.raises(InputError, match="cannot score"):
        session.top_scores([3], first=1)


def test_the_worker_needs_nothing_of_edgekit() -> None:
    for path in (WORKER_PATH, WORKER_PATH.with_name("onnx_build.py")):
        lines = path.read_text(encoding="utf-8").splitlines()
        found = [
            line for line in lines if line.lstrip().startswith(("from edgekit", "import edgek"))
        ]
        assert found in ([], ["    from edgekit.backends import worker_wire as wire"])  # for mypy
