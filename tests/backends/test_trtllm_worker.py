"""The worker as a real process: `worker.py` over a package that behaves as TensorRT-LLM does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

import edgekit
from edgekit.backends.tensorrt_llm.process import WORKER_PATH, Worker
from edgekit.backends.tensorrt_llm.worker import WORDS, sampling_fields
from edgekit.backends.worker_process import MAX_GARBAGE
from edgekit.backends.worker_request import Limits, Request, parse_line
from edgekit.backends.worker_wire import kind_of, kind_of_text
from edgekit.errors import (
    BackendError,
    BudgetError,
    EdgekitError,
    InputError,
    MissingBackendError,
    StaleEngineError,
)

DATA = Path(__file__).with_name("data")
COMMAND = (sys.executable, str(WORKER_PATH))
EXIT, KILL, SEGV, OOM, OOM_TEXT, HANG, PRINT, SILENT, BURST, BAD_ALLOC = range(900, 910)
LIMITS = Limits(start_s=20, ping_every_s=0.1, ping_s=20, silence_s=20, close_s=2)

Start = Callable[..., Worker]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "fake.json").write_text("{}", encoding="utf-8")
    return tmp_path


@pytest.fixture
def start(model: Path) -> Iterator[Start]:
    """`start(load={...}, **options of load)`: a loaded worker, closed at the end."""
    workers: list[Worker] = []

    def make(
        *,
        behaviour: dict[str, Any] | None = None,
        limits: Limits = LIMITS,
        environment: dict[str, str] | None = None,
        report: Callable[[str, int, int], None] = lambda *_: None,
        **changes: Any,
    ) -> Worker:
        (model / "fake.json").write_text(json.dumps(behaviour or {}), encoding="utf-8")
        fake = {"PYTHONPATH": str(DATA), **(environment or {})}
        worker = Worker(COMMAND, environment=fake, limits=limits)
        workers.append(worker)
        worker.load({**options(model), **changes}, report=report)
        return worker

    yield make
    for worker in workers:
        worker.close()


def options(model: Path) -> dict[str, Any]:
    return {
        "model": str(model),
        "backend": "tensorrt",
        "context_tokens": 64,
        "kv_tokens": 128,
        "max_batch_size": 2,
        "max_num_tokens": 32,
        "chunked_prefill": True,
    }


def ask(worker: Worker, first: int = 5, *, count: int = 4, **sampling: Any) -> Request:
    stops = sampling.pop("stops", [])
    return worker.ask(
        "generate",
        token_ids=[first, 7],
        sampling=sampling,
        max_new_tokens=count,
        stop_token_ids=stops,
    )


def answer(request: Request) -> tuple[list[int], str]:
    *before, last = request
    assert {message["type"] for message in before} <= {"tokens"}
    return [i for message in before for i in message["token_ids"]], last["reason"]


def seen(model: Path) -> list[dict[str, Any]]:
    text = (model / "seen.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def gone(pid: int, *, within_s: float = 5) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.02)
    return False


# --- what is asked of TensorRT-LLM ---


def test_an_engine_is_loaded_with_the_sizes_of_the_plan(start: Start, model: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    worker = start(report=lambda *step: steps.append(step))
    versions = {"python": sys.version.split()[0], "tensorrt_llm": "1.2.1", "torch": "2.9.1"}
    assert versions.items() <= worker.versions.items()
    assert worker.device == {"gpu": "NVIDIA GeForce RTX 3070 (0)", "sm": 86}
    assert steps == [("load", 1, 3), ("load", 2, 3), ("load", 3, 3)]
    assert seen(model) == [
        {
            "llm": "_TrtLLM",
            "skip_tokenizer_init": True,
            "kv_cache_config": {
                "enable_block_reuse": True,
                "max_tokens": 128,
                "free_gpu_memory_fraction": 0.95,
                "dtype": "auto",
                "tokens_per_block": 32,
            },
            "max_batch_size": 2,
            "max_num_tokens": 32,
            "enable_chunked_prefill": True,
            "fail_fast_on_attention_window_too_large": True,
        }
    ]


def test_a_checkpoint_is_loaded_by_the_pytorch_backend(start: Start, model: Path) -> None:
    start(backend="pytorch", environment={"FAKE_TRTLLM": "1.3"}, kv_dtype="fp8")
    [loaded] = seen(model)
    assert (loaded["llm"], loaded["max_seq_len"], loaded["dtype"]) == ("LLM", 64, "float16")
    # nothing of the cache is left to its defaults: 90 % of what is free, blocks of its choice
    assert loaded["kv_cache_config"] == {
        "max_tokens": 128, "free_gpu_memory_fraction": 0.95, "enable_block_reuse": True,
        "tokens_per_block": 32, "dtype": "fp8",
    }  # fmt: skip
    # one graph: each takes up to 200 MB, and the plan counts one
    graphs = loaded["cuda_graph_config"]
    assert (graphs["batch_sizes"], graphs["enable_padding"]) == ([loaded["max_batch_size"]], True)
    assert {"speculative_config", "fail_fast_on_attention_window_too_large"}.isdisjoint(loaded)


def test_a_cache_that_is_not_read_in_parts_shares_nothing(start: Start, model: Path) -> None:
    start(backend="pytorch", chunked_prefill=False)
    [loaded] = seen(model)
    assert not loaded["enable_chunked_prefill"]
    assert not loaded["kv_cache_config"]["enable_block_reuse"]


def test_drafts_by_n_gram_are_the_pytorch_backend_s(start: Start, model: Path) -> None:
    speculation = {"kind": "ngram", "max_draft_len": 4, "is_public_pool": False}
    start(backend="pytorch", speculation=speculation)
    [loaded] = seen(model)
    assert loaded["speculative_config"]["max_draft_len"] == 4
    assert not loaded["speculative_config"]["is_public_pool"]
    assert loaded["disable_overlap_scheduler"]
    for options in ({"backend": "tensorrt"}, {"backend": "pytorch", "kind": "lookahead"}):
        kind = options.pop("kind", "ngram")
        with pytest.raises(InputError, match="drafts are the PyTorch backend's"):
            start(**options, speculation={**speculation, "kind": kind})


def test_an_engine_needs_a_version_that_has_them(start: Start) -> None:
    with pytest.raises(MissingBackendError, match="has no engines"):
        start(environment={"FAKE_TRTLLM": "1.3"})


def test_an_interpreter_without_tensorrt_llm_is_refused(start: Start, tmp_path: Path) -> None:
    with pytest.raises(MissingBackendError, match="No module named 'tensorrt_llm'"):
        start(environment={"PYTHONPATH": str(tmp_path)})


def test_the_limit_of_tokens_is_always_sent(start: Start, model: Path) -> None:
    # 40 is more than TensorRT-LLM's own default of 32
    tokens, reason = answer(ask(start(), count=40))
    assert (tokens, reason) == (list(range(6, 46)), "length")
    assert seen(model)[-1]["max_tokens"] == 40


def test_greedy_is_top_k_1_and_no_temperature(start: Start, model: Path) -> None:
    answer(ask(start(), temperature=0.0, top_p=0.5, seed=3, stops=[900, 901, 902]))
    assert {k: v for k, v in seen(model)[-1].items() if v is not None} == {
        "ids": 2,
        "streaming": True,
        "top_k": 1,
        "max_tokens": 4,
        "end_id": 900,
        "pad_id": 0,
        "stop_token_ids": [901, 902],
        "include_stop_str_in_output": True,
        "return_generation_logits": False,
        "detokenize": False,
        "add_special_tokens": False,
    }


def test_sampling_arrives_as_asked(start: Start, model: Path) -> None:
    sampling: dict[str, Any] = {"temperature": 0.6, "top_p": 0.95, "top_k": 40, "min_p": 0.1}
    answer(ask(start(), **sampling, repetition_penalty=1.1, seed=2**64 - 1))
    asked = seen(model)[-1]
    assert sampling.items() <= asked.items()
    assert (asked["repetition_penalty"], asked["seed"], asked["end_id"]) == (1.1, 2**64 - 1, -1)


def test_plain_sampling_names_top_p_so_that_it_is_not_greedy() -> None:
    fields = sampling_fields({"temperature": 1.0, "seed": None}, 3, [])
    assert (fields["temperature"], fields["top_p"], "top_k" in fields) == (1.0, 1.0, False)
    again = sampling_fields({"temperature": 1.0}, 3, [])
    assert fields["seed"] != again["seed"]  # its own is always 0


def test_an_unknown_field_is_refused_and_the_worker_goes_on(start: Start) -> None:
    worker = start()
    with pytest.raises(InputError, match="unknown sampling field: beam"):
        answer(ask(worker, beam=3))
    assert answer(ask(worker))[0] == [6, 7, 8, 9]


# --- answers ---


def test_the_end_token_is_given_though_engines_leave_it_out(start: Start) -> None:
    worker = start()
    assert answer(ask(worker, count=10, stops=[8])) == ([6, 7, 8], "stop")
    assert answer(ask(worker, count=10, stops=[99, 8])) == ([6, 7, 8], "stop")


def test_tokens_behind_a_stop_token_are_not_given(start: Start) -> None:
    # the third token of a burst of three would follow
    assert answer(ask(start(), BURST, count=10, stops=[910])) == ([909, 910], "stop")


def test_no_more_tokens_come_than_were_asked_for(start: Start) -> None:
    assert answer(ask(start(), BURST, count=4)) == ([909, 910, 911, 912], "length")


def test_several_requests_are_answered_at_once(start: Start) -> None:
    worker = start()
    requests = [ask(worker, first, count=20) for first in (10, 100, 200, 300)]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(answer, requests, timeout=10))
    assert [tokens[0] for tokens, _ in answers] == [11, 101, 201, 301]
    assert all(len(tokens) == 20 for tokens, _ in answers)


def test_a_cancelled_request_is_over_and_the_others_go_on(start: Start) -> None:
    worker = start()
    silent, other = ask(worker, SILENT), ask(worker, count=30)
    messages = iter(silent)
    assert next(messages)["token_ids"] == [908]
    silent.cancel()
    silent.cancel()
    assert len(answer(other)[0]) == 30
    assert answer(ask(worker))[0] == [6, 7, 8, 9]
    assert worker.num_garbage == 0


def test_cancelling_what_has_ended_does_nothing(start: Start) -> None:
    worker = start()
    request = ask(worker)
    answer(request)
    request.cancel()
    assert answer(ask(worker))[1] == "length"


def test_prints_do_not_reach_the_protocol(start: Start) -> None:
    worker = start()
    assert answer(ask(worker, PRINT, count=5)) == ([907, 908, 909, 910, 911], "length")
    assert worker.num_garbage == 0


# --- failures ---


@pytest.mark.parametrize("how", [OOM, OOM_TEXT])
def test_memory_short_in_an_answer_is_told_apart(start: Start, how: int) -> None:
    worker = start()
    with pytest.raises(BudgetError, match="out of memory"):
        answer(ask(worker, how))
    assert answer(ask(worker))[0] == [6, 7, 8, 9]


@pytest.mark.parametrize(
    ("behaviour", "error", "words"),
    [
        ({"load": "oom"}, BudgetError, "not enough memory for loading"),
        ({"load": str(BAD_ALLOC)}, BudgetError, "SIGABRT"),
        ({"load": "log", "says": "[E] expecting compute 8.9 got 8.6"}, StaleEngineError, "another"),
        ({"load": "log", "says": "nothing known"}, BackendError, "deserialize"),
        ({"load": str(KILL)}, BackendError, "SIGKILL"),
    ],
)
def test_a_failure_to_load_says_why(
    start: Start, behaviour: dict[str, str], error: type[EdgekitError], words: str
) -> None:
    with pytest.raises(error, match=words) as caught:
        start(behaviour=behaviour)
    assert type(caught.value) is error


def test_loading_has_a_limit(start: Start) -> None:
    # most of it is for the interpreter to start
    with pytest.raises(BackendError, match=r"is still (starting|loading) after 1 s"):
        start(behaviour={"load": "hang"}, limits=Limits(start_s=1, close_s=1))


@pytest.mark.parametrize(
    ("how", "words"), [(EXIT, "exit status 3.*last words"), (KILL, "SIGKILL"), (SEGV, "SIGSEGV")]
)
def test_a_crash_is_one_error_for_every_open_request(start: Start, how: int, words: str) -> None:
    worker = start()
    waiting = [ask(worker, SILENT) for _ in range(3)]
    crashing = ask(worker, how)
    for request in [*waiting, crashing]:
        with pytest.raises(BackendError, match=words):
            answer(request)
        assert request._answers.empty()
    with pytest.raises(BackendError, match=words):
        ask(worker)


def test_a_kill_from_outside_is_an_error(start: Start) -> None:
    worker = start()
    request = ask(worker, SILENT)
    assert worker._process is not None
    worker._process.kill()
    with pytest.raises(BackendError, match="SIGKILL"):
        answer(request)


def test_a_hang_is_noticed_by_its_silence_to_pings(start: Start) -> None:
    worker = start(limits=Limits(ping_every_s=0.1, ping_s=0.5, close_s=1))
    requests = [ask(worker, SILENT), ask(worker, HANG)]
    for request in requests:
        with pytest.raises(BackendError, match=r"has not answered for 0\.5 s"):
            answer(request)


def test_an_engine_that_makes_no_token_is_noticed(start: Start) -> None:
    worker = start(limits=Limits(ping_every_s=0.1, ping_s=20, silence_s=0.5, close_s=1))
    time.sleep(0.8)  # without a request there is nothing to wait for
    with pytest.raises(BackendError, match=r"no token for 0\.5 s"):
        answer(ask(worker, SILENT))


def test_a_command_that_does_not_exist_is_said() -> None:
    with pytest.raises(MissingBackendError, match="cannot start /nowhere/python"):
        Worker(("/nowhere/python", "worker.py"))


def test_the_environment_of_this_interpreter_is_kept_from_the_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(DATA))
    worker = Worker(COMMAND, limits=LIMITS)
    with pytest.raises(MissingBackendError, match="No module named 'tensorrt_llm'"):
        worker.load({"backend": "tensorrt", "model": "."})


TOOL = """#!/bin/sh
if [ "$1" = rm ]; then echo "$@" >> {calls}; exec kill -9 "$(cat {pid})"; fi
exec 3<&0
setsid {worker} <&3 &
echo $! > {pid}
wait $!
"""
"""A container's tool: what it started is not of its process group, and outlives it."""


@pytest.mark.parametrize("is_killed", [True, False])
def test_a_container_whose_tool_is_killed_is_ended_by_its_name(
    model: Path, is_killed: bool
) -> None:
    tool, calls, pid = (model / name for name in ("docker", "calls", "pid"))
    tool.write_text(TOOL.format(calls=calls, pid=pid, worker=" ".join(COMMAND)))
    tool.chmod(0o755)
    worker = Worker(
        (str(tool), "run", "an-image", str(WORKER_PATH)),
        environment={"PYTHONPATH": str(DATA)},
        stop_words=(str(tool), "rm", "--force", "a-name"),
        limits=Limits(ping_every_s=0.1, ping_s=0.5, close_s=2),
    )
    worker.load(options(model))
    inside = int(pid.read_text())
    if is_killed:
        with pytest.raises(BackendError, match="has not answered"):
            answer(ask(worker, HANG))  # it does not see that its stdin has ended
    worker.close()
    assert gone(inside)
    assert (calls.read_text() if calls.exists() else "") == "rm --force a-name\n" * is_killed


def test_a_signal_that_a_container_s_tool_tells_of_is_named() -> None:
    with pytest.raises(BackendError, match=r"ended \(SIGKILL\)") as caught:
        Worker(("sh", "-c", "exit 137"), limits=LIMITS)
    assert caught.value.hint == "the system may have killed it for memory"


def test_variables_that_do_harm_are_hidden(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "2")
    script = f"import os; print(os.environ.get('SLURM_NTASKS')); {STAND_IN}"
    for hidden, said in (((), "2"), (("SLURM_NTASKS",), "None")):
        worker = Worker((sys.executable, "-c", script), hidden=hidden, limits=LIMITS)
        assert worker.said[0] == said
        worker.close()


# --- ends ---


def test_close_ends_it_and_is_safe_to_repeat(start: Start, model: Path) -> None:
    worker = start()
    request = ask(worker, SILENT)
    assert worker._process is not None
    pid = worker._process.pid
    threads = [threading.Thread(target=worker.close) for _ in range(2)]
    for thread in threads:
        thread.start()
    with pytest.raises(BackendError, match="the session is closed"):
        answer(request)
    for thread in threads:
        thread.join(timeout=10)
    worker.close()
    assert gone(pid)
    assert {"shutdown": True} in seen(model)
    with pytest.raises(BackendError, match="the session is closed"):
        ask(worker)


def test_close_ends_a_hanging_one(start: Start) -> None:
    worker = start(limits=Limits(close_s=0.3))
    ask(worker, HANG)
    time.sleep(0.2)
    assert worker._process is not None
    worker.close()
    assert worker._process.poll() is not None


PARENT = """
import sys, json, time
from edgekit.backends.tensorrt_llm.process import Worker
words, environment, options, seconds = map(json.loads, sys.argv[1:])
worker = Worker(words, environment=environment)
sys.stdout.write(f"{worker._process.pid}\\n")
sys.stdout.flush()
worker.load(options)
time.sleep(seconds)
"""


def start_parent(model: Path, seconds: int) -> subprocess.Popen[bytes]:
    """A process that starts a worker, writes its number, and lives so long."""
    arguments = [COMMAND, {"PYTHONPATH": str(DATA)}, options(model), seconds]
    return subprocess.Popen(
        [sys.executable, "-c", PARENT, *map(json.dumps, arguments)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(edgekit.__file__).parents[1])},
    )


@pytest.mark.parametrize(
    ("behaviour", "is_stopped"),
    # one that is stopped cannot see that its stdin has ended: the kernel must
    [({}, False), ({"load": "hang"}, False), ({}, True)],
    ids=["loaded", "loading", "stopped"],
)
def test_it_ends_when_its_parent_is_killed(
    model: Path, behaviour: dict[str, str], is_stopped: bool
) -> None:
    (model / "fake.json").write_text(json.dumps(behaviour), encoding="utf-8")
    with start_parent(model, 60) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        deadline = time.monotonic() + 5
        while not (model / "seen.jsonl").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        if is_stopped:
            os.kill(pid, signal.SIGSTOP)
        parent.kill()
    assert gone(pid)


def test_it_ends_with_a_parent_that_forgot_to_close(model: Path) -> None:
    with start_parent(model, 0) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert parent.wait(timeout=10) == 0
    assert gone(pid)
    assert seen(model)[-1] == {"shutdown": True}


def test_it_outlives_the_thread_that_asked_for_it(start: Start) -> None:
    with ThreadPoolExecutor(1) as pool:
        worker = pool.submit(start).result(timeout=10)
    assert answer(ask(worker))[0] == [6, 7, 8, 9]


def test_one_that_reads_nothing_blocks_nobody(start: Start) -> None:
    worker = start(limits=Limits(ping_every_s=0.1, ping_s=0.5, close_s=1))
    assert worker._process is not None
    os.kill(worker._process.pid, signal.SIGSTOP)
    # more than a pipe holds
    with pytest.raises(BackendError, match="has not answered"):
        worker.ask("generate", token_ids=list(range(100_000)))


@pytest.mark.parametrize("load", [False, True])
def test_it_ends_when_its_stdin_ends(model: Path, load: bool) -> None:
    (model / "fake.json").write_text('{"load": "hang"}', encoding="utf-8")
    process = subprocess.Popen(
        COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(DATA)},
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["type"] == "hello"
    if load:
        process.stdin.write(json.dumps({"type": "load", **options(model)}).encode() + b"\n")
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["step"] == 0
        assert json.loads(process.stdout.readline())["step"] == 1
    process.stdin.close()
    assert process.wait(timeout=5) == 0
    process.stdout.close()


def test_ctrl_c_does_not_reach_it(start: Start) -> None:
    worker = start()
    assert worker._process is not None
    assert os.getsid(worker._process.pid) != os.getsid(0)


# --- lines ---


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_none(line: bytes) -> None:
    message = parse_line(line)
    assert message is None or isinstance(message["type"], str)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@given(_JSON)
def test_any_json_is_a_message_or_none(value: Any) -> None:
    message = parse_line(json.dumps(value).encode())
    assert message is None or message == value


@given(st.text(min_size=1), st.integers(0), st.lists(st.integers(0)))
def test_a_message_is_read_as_it_was_written(kind: str, number: int, ids: list[int]) -> None:
    message = {"type": kind, "id": number, "token_ids": ids}
    assert parse_line(json.dumps(message).encode() + b"\n") == message


@pytest.mark.parametrize(
    "line", [b"", b"[]", b"{}", b'{"type": 1}', b'{"type": "a", "id": "1"}', b"[" * 100_000,
             b'{"type": "a", "id": true}', b'{"type": "tokens", "id": 1, "token_ids": 3}']
)  # fmt: skip
def test_what_is_no_message(line: bytes) -> None:
    assert parse_line(line) is None


STAND_IN = """
import json, sys
def say(**message):
    sys.stdout.write(json.dumps(message) + "\\n")
    sys.stdout.flush()
sys.stdout.write("== NVIDIA container ==\\n\\n" + "x" * 3_000_000 + "\\n")
say(type="hello", protocol=1)
for line in sys.stdin:
    message = json.loads(line)
    if message["type"] == "load":
        say(type="ready", versions={"tensorrt_llm": "1.2.1"}, device={})
    elif message["type"] == "generate":
        sys.stdout.write("garbage\\n" * message["max_new_tokens"])
        say(type="tokens", id=999, token_ids=[1])
        for _ in range(2):
            say(type="done", id=message["id"], reason="stop")
    elif message["type"] == "close":
        break
"""


def stand_in() -> Worker:
    worker = Worker((sys.executable, "-c", STAND_IN), limits=LIMITS)
    worker.load({})
    return worker


def test_a_banner_and_strangers_lines_are_dropped_and_counted() -> None:
    worker = stand_in()
    assert worker.num_garbage == 0
    assert answer(ask(worker, count=3))[1] == "stop"
    assert answer(ask(worker, count=1))[1] == "stop"
    worker.close()
    # garbage, one of no request, one answered twice: (3 + 1 + 1) + (1 + 1 + 1)
    assert worker.num_garbage == 8


def test_too_many_strange_lines_are_an_error() -> None:
    worker = stand_in()
    with pytest.raises(BackendError, match="not the protocol"):
        answer(ask(worker, count=MAX_GARBAGE + 1))
    worker.close()


def test_another_protocol_is_refused() -> None:
    script = STAND_IN.replace("protocol=1", "protocol=2")
    with pytest.raises(BackendError, match="protocol 2"):
        Worker((sys.executable, "-c", script), limits=LIMITS)


def test_kinds_of_vendors_words() -> None:
    assert kind_of_text("CUDA out of memory. Tried to allocate", WORDS) == "memory"
    assert (
        kind_of_text("The engine plan file is not compatible with this version", WORDS) == "foreign"
    )
    assert kind_of_text("boom", WORDS) == "internal"
    assert kind_of(MemoryError(), WORDS) == "memory"
    assert kind_of(ValueError("prompt length"), WORDS) == "input"
