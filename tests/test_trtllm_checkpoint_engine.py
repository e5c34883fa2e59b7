"""TensorRT-LLM 1.3, which builds no engines: the checkpoint is the engine, for its PyTorch backend.

The stand-in (tests/data/trtllm/standin_1.3) has the LLM API's names and refuses what that has not;
its answers are those of edgekit's reader over the checkpoint that it is given. Interpreter, pipes,
worker and processes are real; a GPU is recorded, not here.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import Result

from edgekit.runtime.asking import Asker
from edgekit.runtime.load import load_engine
from edgekit.serve.server import listen, make_server
from edgekit.serve.service import Service
from edgekit.serve.settings import Settings
from tests.commands import ok, run

SHAPE = {"hidden_size": 128, "intermediate_size": 192, "num_key_value_heads": 2}


@pytest.fixture(autouse=True)
def interpreter(
    use_trtllm: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Path:
    """This machine has an RTX 4090, and a Python of its own for TensorRT-LLM 1.3.0."""
    python = use_trtllm(monkeypatch, tmp_path, version="1.3.0")
    seen = f"env STANDIN_SEEN={tmp_path / 'seen.jsonl'} "
    python.write_text(python.read_text().replace("env ", seen, 1))
    return python


def build_in(store: Path, model: Path, *more: object, precision: str = "int8") -> Result:
    return run(
        "build", "--model", model, "--store", store, "--profile", "rtx-4090",
        "--precision", precision, "--context", 256, "--calibration-tokens", 64, *more, "--json",
    )  # fmt: skip


@pytest.fixture
def build(make_tiny: Callable[..., Path], tmp_path: Path) -> Callable[..., Result]:
    return partial(build_in, tmp_path / "store", make_tiny("llama", **SHAPE))


@pytest.fixture(scope="module")
def store(
    make_tiny: Callable[..., Path], use_trtllm: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Path]:  # fmt: skip
    """Of stages of both kinds and an engine, int8: to be opened, not changed."""
    directory = tmp_path_factory.mktemp("built")
    with pytest.MonkeyPatch.context() as patch:
        model = make_tiny("llama", **SHAPE)
        use_trtllm(patch, directory, version="1.2.1")
        ok(build_in(directory / "store", model, "--stage", "checkpoint"))
        use_trtllm(patch, directory, version="1.3.0")
        ok(build_in(directory / "store", model, "--stage", "checkpoint"))
        ok(build_in(directory / "store", model))
        yield directory / "store"


@pytest.fixture(scope="module")
def engine(store: Path) -> Path:
    [found] = store.glob("*/rtx-4090/int8-tensorrt-llm-pytorch")
    return found


@pytest.fixture
def compile_stage(store: Path, tmp_path: Path) -> Callable[..., Result]:
    def compile_it(backend: str = "tensorrt-llm-pytorch", *more: object) -> Result:
        [stage] = store.glob(f"*/rtx-4090/int8-{backend}.stage")
        return run("compile", stage, "--store", tmp_path / "store", *more, "--json")

    return compile_it


def loaded(tmp_path: Path) -> dict[str, Any]:
    """What the LLM API was given last."""
    given: dict[str, Any] = json.loads((tmp_path / "seen.jsonl").read_text().splitlines()[-1])
    return given


@pytest.mark.parametrize("precision", ["fp16", "int8", "int4_awq", "fp8"])
def test_the_version_that_is_found_decides_and_the_checkpoint_answers(
    precision: str, build: Callable[..., Result], tmp_path: Path
) -> None:
    result = build(precision=precision)
    made = ok(result)
    engine = Path(made["engine"])
    assert made["backend"] == {"name": "tensorrt-llm-pytorch", "version": "1.3.0"}
    assert "tensorrt-llm-pytorch" in result.stderr  # the plan says which it took
    assert made["quality"]["measured_on"] == "engine"
    limit = 0.02 if precision == "fp8" else 1e-3  # the engine rounds activations
    assert made["quality"]["mean_kl_simulated"] <= limit
    assert (made["device"]["sm"], made["device"]["tensorrt_llm"]) == (89, "1.3.0")
    names = {"config.json", "engine.json", "hf_quant_config.json", "model.safetensors"}
    if precision == "fp16":
        names.remove("hf_quant_config.json")
    assert {p.name for p in (engine / "backend").iterdir()} == names
    assert not (engine / "source").exists()

    checked = ok(run("verify", engine, "--json"))
    assert {name: checked[name] for name in made["quality"]} == made["quality"]


def test_nothing_is_left_to_the_api_s_defaults(
    build: Callable[..., Result], tmp_path: Path
) -> None:
    engine = ok(build("--batch", 3, "--kv", "fp8"))["engine"]
    assert loaded(tmp_path)["gather_generation_logits"]  # to be verified
    answered = run("chat", engine, "--prompt", "hello", "--max-new-tokens", 4)
    assert answered.exit_code == 0, answered.stderr
    assert loaded(tmp_path) == {
        "dtype": "float16", "max_batch_size": 1, "max_seq_len": 256,
        # prompts over an fp8 cache go through whole, and share no blocks
        "max_num_tokens": 256, "enable_chunked_prefill": False,
        "gather_generation_logits": False, "disable_overlap_scheduler": False,
        "KvCacheConfig": {
            "enable_block_reuse": False, "max_tokens": 288, "free_gpu_memory_fraction": 0.95,
            "dtype": "fp8", "tokens_per_block": 32,
        },
        "CudaGraphConfig": {"batch_sizes": [1], "max_batch_size": 0, "enable_padding": True},
    }  # fmt: skip


def test_chat_and_benchmark_over_it(engine: Path) -> None:
    words = ["chat", engine, "--prompt", "hello", "--max-new-tokens", 8, "--temperature", 0]
    first, again = run(*words), run(*words)
    assert first.exit_code == 0, first.stderr
    assert first.stdout.strip()
    assert first.stdout == again.stdout
    data = ok(run("bench", engine, "-p", 64, "-n", 16, "-d", 0, "-r", 2, "--json"))
    assert [test["name"] for test in data["tests"]] == ["pp64", "tg16"]
    assert data["timing"] == "stream"


def test_it_is_served(engine: Path) -> None:
    ready, services = threading.Event(), []

    def on_ready(service: Service) -> None:
        services.append(service)
        ready.set()

    with load_engine(engine, num_slots=1) as loaded, closing(listen("127.0.0.1", 0)) as sock:
        server = make_server(Asker(loaded, notify=lambda _: None), Settings(), on_ready=on_ready)
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([sock])))
        thread.start()
        try:
            assert ready.wait(20)
            url = f"http://127.0.0.1:{sock.getsockname()[1]}/v1/completions"
            asked = {"model": services[0].model_name, "prompt": "hello", "max_tokens": 6,
                     "temperature": 0}  # fmt: skip
            answers = [httpx.post(url, json=asked, timeout=60).json() for _ in range(2)]
        finally:
            server.should_exit = True
            thread.join(20)
    texts = [answer["choices"][0]["text"] for answer in answers]
    assert texts[0]
    assert texts[0] == texts[1]
    assert answers[0]["usage"]["completion_tokens"] == 6


def test_drafts_by_n_gram_change_no_answer(
    compile_stage: Callable[..., Result], engine: Path, tmp_path: Path
) -> None:
    drafting = ok(compile_stage("tensorrt-llm-pytorch", "--speculation", "ngram"))
    assert drafting["plan"]["speculation"] == "ngram"
    plain = json.loads((engine / "manifest.json").read_text())
    assert drafting["quality"] == plain["quality"]
    # the logits of five tokens a step instead of one: the vocabulary has fewer than 2,000
    more = drafting["plan"]["workspace_bytes"] - plain["plan"]["workspace_bytes"]
    assert 0 < more == 4 * 4 * json.loads(
        (engine / "backend" / "config.json").read_text()
    )["vocab_size"]  # fmt: skip
    words = ["--prompt", "one two one two one", "--max-new-tokens", 24, "--temperature", 0]
    texts = [run("chat", each, *words).stdout for each in (engine, drafting["engine"])]
    assert texts[0].strip()
    assert texts[0] == texts[1]
    given = loaded(tmp_path)
    timed = ok(run("bench", drafting["engine"], "-p", 8, "-n", 8, "-d", 0, "-r", 1, "--json"))
    assert "the engine drafts by itself (ngram)" in timed["notes"][-1]
    penalized = run("chat", drafting["engine"], *words, "--repetition-penalty", 1.1)
    assert penalized.exit_code == 2
    assert "takes no repetition penalty" in penalized.stderr
    assert given["disable_overlap_scheduler"]
    assert given["NGramDecodingConfig"] == {
        "max_draft_len": 4, "max_matching_ngram_size": 3, "is_keep_all": True,
        "is_use_oldest": False, "is_public_pool": False,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--backend", "tensorrt-llm"), "are of TensorRT-LLM's PyTorch backend"),
        (("--backend", "tensorrt-rtx"), "edgekit drafts for it while it answers"),
        (("--kv", "fp8"), "takes no drafts over an fp8 cache"),
    ],
)
def test_drafts_are_refused_where_there_are_none(
    words: tuple[str, ...], said: str, build: Callable[..., Result], tmp_path: Path
) -> None:
    for more in ((), ("--dry-run",)):
        result = build("--speculation", "ngram", *words, *more)
        assert result.exit_code == 2
        assert said in result.stderr
        assert "hint: " in result.stderr
    assert not (tmp_path / "store").exists()


def test_a_stage_becomes_the_same_engine(
    compile_stage: Callable[..., Result], engine: Path
) -> None:
    made, built = ok(compile_stage()), json.loads((engine / "manifest.json").read_text())
    assert (made["model"], made["quality"]) == (built["model"], built["quality"])
    own = "backend/model.safetensors"
    assert made["files"][own] == built["files"][own]


def test_a_stage_for_the_other_version_is_refused(
    compile_stage: Callable[..., Result], use_trtllm: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    result = compile_stage("tensorrt-llm")
    assert result.exit_code == 4
    assert "TensorRT-LLM 1.3.0 builds and runs no engines any more" in result.stderr
    assert "`--backend tensorrt-llm-pytorch` is for it" in result.stderr
    use_trtllm(monkeypatch, tmp_path, version="1.2.1")
    result = compile_stage("tensorrt-llm-pytorch")
    assert result.exit_code == 4
    assert "TensorRT-LLM 1.2.1 is used through the engines that it builds" in result.stderr
    assert not list((tmp_path / "store").glob("*/*/*/manifest.json"))


def test_a_checkpoint_engine_does_not_open_with_1_2(
    engine: Path, use_trtllm: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use_trtllm(monkeypatch, tmp_path, version="1.2.1")
    for command in (["chat", engine, "--prompt", "hello"], ["verify", engine]):
        result = run(*command)
        assert result.exit_code == 5
        assert "TensorRT-LLM 1.3.0, here 1.2.1" in result.stderr
        # what is real with the version that is here
        assert "--backend tensorrt-llm`" in result.stderr
        assert "or name TensorRT-LLM 1.3.0 with `--trtllm-python`" in result.stderr


def test_a_checkpoint_engine_does_not_open_on_another_generation(
    engine: Path, use_trtllm: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use_trtllm(monkeypatch, tmp_path, card="rtx-3070", version="1.3.0")
    result = run("chat", engine, "--prompt", "hi")
    assert result.exit_code == 5
    assert "sm_89, here sm_86" in result.stderr
    assert "--backend tensorrt-llm-pytorch`" in result.stderr


def test_the_dry_run_is_of_what_the_version_has(
    build: Callable[..., Result], use_trtllm: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    plan = ok(build("--dry-run"))
    assert plan["backend"] == "tensorrt-llm-pytorch"
    assert "commands" not in plan  # nothing is compiled
    asked = build("--dry-run", "--backend", "tensorrt-llm")
    assert asked.exit_code == 4
    assert "builds and runs no engines any more" in asked.stderr
    assert "use `--backend tensorrt-llm-pytorch`" in asked.stderr
    use_trtllm(monkeypatch, tmp_path, version="1.2.1")
    plan = ok(build("--dry-run"))
    assert plan["backend"] == "tensorrt-llm"
    assert len(plan["commands"]) == 1


def test_a_cache_that_it_has_not_is_refused(build: Callable[..., Result]) -> None:
    result = build("--kv", "int8", "--backend", "tensorrt-llm-pytorch")
    assert result.exit_code == 2
    assert "tensorrt-llm-pytorch has no such cache" in result.stderr
    result = build("--kv", "int8")  # the one that has it is not real with this version
    assert result.exit_code == 4
    assert "TensorRT-LLM 1.3.0 builds and runs no engines any more" in result.stderr


def test_the_doctor_says_what_the_version_is_for(
    interpreter: Path, use_trtllm: Callable[..., Path], monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    def advice() -> list[str]:
        told: list[str] = json.loads(run("doctor", "--json").stdout)["advice"]
        return told

    said = f"TensorRT-LLM 1.3.0 is in {interpreter}, for the backend tensorrt-llm-pytorch"
    assert said in advice()
    use_trtllm(monkeypatch, tmp_path, version="1.2.1")
    assert any(line.endswith("for the backend tensorrt-llm") for line in advice())


def test_what_computes_something_else_is_no_engine(
    compile_stage: Callable[..., Result], interpreter: Path, tmp_path: Path
) -> None:
    interpreter.write_text(interpreter.read_text().replace("env ", "env STANDIN_BREAKS=spread ", 1))
    result = compile_stage()
    assert result.exit_code == 4
    assert "mean KL divergence from ModelOpt's simulation is" in result.stderr
    assert not list((tmp_path / "store").glob("*/*/*/manifest.json"))
