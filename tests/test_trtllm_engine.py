"""From a checkpoint to answers through TensorRT-LLM, with a stand-in for its packages.

The stand-in (tests/data/trtllm/standin) takes the real builder's flags and has the real LLM API's
names; its answers are computed from the file that was built. Interpreter, pipes, worker and
processes are real; a GPU is recorded, not here.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from edgekit.backends.tensorrt_llm import compiler
from tests.commands import ok, run

SHAPE = {"hidden_size": 128, "intermediate_size": 192, "num_key_value_heads": 2}


@pytest.fixture(autouse=True)
def interpreter(
    use_trtllm: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Path:
    """This machine has an RTX 4090, and a Python of its own for TensorRT-LLM 1.2.1."""
    return use_trtllm(monkeypatch, tmp_path)


def build_in(store: Path, model: Path, *more: object, precision: str = "int8") -> Result:
    return run(
        "build", "--model", model, "--store", store, "--profile", "rtx-4090",
        "--backend", "tensorrt-llm", "--precision", precision, "--context", 256,
        "--calibration-tokens", 64, *more, "--json",
    )  # fmt: skip


@pytest.fixture
def build(make_tiny: Callable[..., Path], tmp_path: Path) -> Callable[..., Result]:
    return partial(build_in, tmp_path / "store", make_tiny("llama", **SHAPE))


@pytest.fixture(scope="module")
def store(
    make_tiny: Callable[..., Path], use_trtllm: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Path]:  # fmt: skip
    """Of the stage of an int8 engine, and of the engine: to be opened, not changed."""
    directory = tmp_path_factory.mktemp("built")
    with pytest.MonkeyPatch.context() as patch:
        use_trtllm(patch, directory)
        model = make_tiny("llama", **SHAPE)
        ok(build_in(directory / "store", model, "--stage", "checkpoint"))
        ok(build_in(directory / "store", model))
        yield directory / "store"


@pytest.fixture(scope="module")
def engine(store: Path) -> Path:
    [found] = store.glob("*/rtx-4090/int8-tensorrt-llm")
    return found


@pytest.fixture
def compile_stage(store: Path, tmp_path: Path) -> Callable[[], Result]:
    [stage] = store.glob("*/rtx-4090/int8-tensorrt-llm.stage")
    return lambda: run("compile", stage, "--store", tmp_path / "store", "--json")


def test_an_engine_is_built_checked_and_answers(build: Callable[..., Result]) -> None:
    made = ok(build(precision="int4_awq"))
    engine = Path(made["engine"])
    assert made["backend"] == {"name": "tensorrt-llm", "version": "1.2.1"}
    assert made["quality"]["measured_on"] == "engine"
    assert made["quality"]["mean_kl_simulated"] <= 1e-3
    assert made["device"]["gpu"] == "NVIDIA GeForce RTX 4090"
    assert (made["device"]["sm"], made["device"]["tensorrt"]) == (89, "10.14.1")
    names = {p.name for p in (engine / "backend").iterdir()}
    assert names == {"config.json", "rank0.engine", "engine.json"}
    asked = json.loads((engine / "backend" / "config.json").read_text())["build_config"]
    sizes = [asked[n] for n in ("max_batch_size", "max_input_len", "max_seq_len", "max_num_tokens")]
    assert sizes == ["1", "255", "256", "256"]
    assert json.loads(build(precision="int4_awq").stdout)["engine"] == str(engine)  # reused

    checked = ok(run("verify", engine, "--json"))
    assert {name: checked[name] for name in made["quality"]} == made["quality"]
    first = run("chat", engine, "--prompt", "hello", "--max-new-tokens", 8, "--temperature", 0)
    assert first.exit_code == 0, first.stderr
    again = run("chat", engine, "--prompt", "hello", "--max-new-tokens", 8, "--temperature", 0)
    assert first.stdout.strip()
    assert first.stdout == again.stdout


def test_a_stage_from_elsewhere_becomes_the_same_engine(
    compile_stage: Callable[[], Result], engine: Path
) -> None:
    made, built = ok(compile_stage()), json.loads((engine / "manifest.json").read_text())
    assert made["model"] == built["model"]
    assert made["quality"] == built["quality"]
    assert Path(made["engine"]).relative_to(Path(made["engine"]).parents[2]) == engine.relative_to(
        engine.parents[2]
    )
    assert not (Path(made["engine"]) / "source").exists()


@pytest.mark.parametrize(
    ("breaks", "words"),
    [
        ("answers", "does not answer as its checkpoint does"),
        # its likeliest tokens are right, how likely they are is not
        ("spread", "mean KL divergence from ModelOpt's simulation is"),
    ],
)
def test_an_engine_that_computes_something_else_is_none(
    breaks: str, words: str, compile_stage: Callable[[], Result], interpreter: Path, tmp_path: Path
) -> None:
    interpreter.write_text(interpreter.read_text().replace("env ", f"env STANDIN_BREAKS={breaks} "))
    result = compile_stage()
    assert result.exit_code == 4
    assert words in result.stderr
    assert not list((tmp_path / "store").glob("*/*/*/manifest.json"))


def test_where_no_logits_come_the_known_answer_is_checked(
    compile_stage: Callable[[], Result], interpreter: Path
) -> None:
    interpreter.write_text(interpreter.read_text().replace("env ", "env STANDIN_BREAKS=logits "))
    made = ok(compile_stage())
    assert made["quality"]["measured_on"] == "twin, and the engine's known answer"
    assert made["quality"]["mean_kl_simulated"] <= 1e-3


def test_a_build_that_fails_says_why_and_keeps_its_log(
    build: Callable[..., Result], interpreter: Path, tmp_path: Path
) -> None:
    interpreter.write_text(interpreter.read_text().replace("env ", "env STANDIN_BREAKS=build "))
    result = build()
    assert result.exit_code == 3
    assert "memory" in result.stderr
    assert "CUDA out of memory" in next((tmp_path / "cache").rglob("*.log")).read_text()
    assert not list((tmp_path / "store").glob("*/*/*/manifest.json"))
    assert list((tmp_path / "store").glob(".work/quantized-*"))  # the next build goes on here


def test_an_engine_of_another_version_is_refused_with_the_command_that_helps(
    engine: Path, interpreter: Path, tmp_path: Path
) -> None:
    own = interpreter.read_text()
    for version in ("1.1.0", "1.3.0"):  # older; and one that has no engines at all
        other = tmp_path / version
        for name, number in (("tensorrt_llm", version), ("tensorrt", "10.14.1")):
            (other / f"{name}-{number}.dist-info").mkdir(parents=True)
            text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n"
            (other / f"{name}-{number}.dist-info" / "METADATA").write_text(text)
        interpreter.write_text(own.replace("PYTHONPATH=", f"PYTHONPATH={other}:"))
        result = run("chat", engine, "--prompt", "hello")
        assert result.exit_code == 5
        assert f"TensorRT-LLM 1.2.1, here {version}" in result.stderr
        assert "edgekit build --model" in result.stderr
        assert "or name TensorRT-LLM 1.2.1 with `--trtllm-python`" in result.stderr


def test_an_engine_of_another_card_is_refused(
    engine: Path, use_trtllm: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use_trtllm(monkeypatch, tmp_path, card="rtx-3070")
    for command in (["chat", engine, "--prompt", "hi"], ["verify", engine], ["bench", engine]):
        result = run(*command, *(["-p", 8, "-n", 8] if command[0] == "bench" else []))
        assert result.exit_code == 5, command
        assert "GeForce RTX 4090, here NVIDIA GeForce RTX 3070" in result.stderr
        assert "sm_89, here sm_86" in result.stderr
        assert "build it again here: `edgekit build --model" in result.stderr


def test_the_command_that_rebuilds_it_is_for_the_card_that_is_here(
    engine: Path, make_tiny: Callable[..., Path], use_trtllm: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    model = make_tiny("llama", **SHAPE)
    use_trtllm(monkeypatch, tmp_path, card="rtx-3070")
    told = run("chat", engine, "--prompt", "hi").stderr
    command = told.partition("build it again here: `edgekit ")[2].partition("`")[0]
    assert f"--model {model.name} " in command  # where it lies is not written down
    pasted = shlex.split(
        command.replace(f"--model {model.name}", f"--model {shlex.quote(str(model))}")
    )
    made = ok(run(*pasted, "--store", tmp_path / "store", "--calibration-tokens", 64, "--json"))
    assert (made["profile"], made["precision"], made["device"]["sm"]) == ("rtx-3070", "int8", 86)


def test_without_a_gpu_nothing_is_built_again_here(
    engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgekit.device.read_record", lambda root: None)
    result = run("chat", engine, "--prompt", "hi")
    assert result.exit_code == 5
    assert "RTX 4090, here none" in result.stderr
    assert "hint: open it where that GPU is, or build for this machine: `edgekit" in result.stderr
    assert "tensorrt-llm`" not in result.stderr


PROBED = """#!/bin/sh
echo 'edgekit-runtime:{"tensorrt_llm": %s, "python": "3.11", "machine": "x86_64",' \
     '"system": "Linux"}'
"""


@pytest.mark.parametrize(
    ("version", "words"),
    [("null", "there is no TensorRT-LLM for Python 3.11"), ('"0.21.0"', "edgekit needs 1.0")],
)
def test_a_wrong_interpreter_is_refused_before_any_work(
    version: str, words: str, build: Callable[..., Result], interpreter: Path, tmp_path: Path
) -> None:
    interpreter.write_text(PROBED % version)
    result = build()
    assert result.exit_code == 4
    assert words in result.stderr
    assert "python3.12 -m venv trtllm" in result.stderr
    assert not (tmp_path / "store").exists()


def test_the_doctor_tells_of_the_interpreter_and_what_does_not_go_with_it(
    interpreter: Path,
) -> None:
    def advice() -> list[str]:
        told: list[str] = json.loads(run("doctor", "--json").stdout)["advice"]
        return told

    assert f"TensorRT-LLM 1.2.1 is in {interpreter}, for the backend tensorrt-llm" in advice()
    probed = PROBED % '"1.2.1", "modelopt": "0.44.0"'
    interpreter.write_text(probed)
    assert any("ModelOpt 0.44.0 beside TensorRT-LLM 1.2.1 breaks" in line for line in advice())
    interpreter.write_text(PROBED % "null")
    assert any(
        "tensorrt-llm: there is no TensorRT-LLM for Python 3.11" in line for line in advice()
    )


DOCKER = """#!/bin/sh
echo "$@" >> {log}
[ "$1" = image ] && echo sha256:1 && exit 0
while [ "$1" != an-image ]; do shift; done
shift 2
exec {python} "$@"
"""


def test_an_image_builds_and_runs_as_an_interpreter_does(
    build: Callable[..., Result], interpreter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    docker, log = tmp_path / "bin" / "docker", tmp_path / "docker.log"
    docker.write_text(DOCKER.format(log=log, python=interpreter))
    docker.chmod(0o755)
    monkeypatch.setenv("PATH", str(docker.parent), prepend=":")
    made = ok(build("--trtllm-python", "docker:an-image"))
    answered = run("chat", made["engine"], "--prompt", "hello", "--max-new-tokens", 4)
    assert answered.exit_code == 0, answered.stderr
    started = [line for line in log.read_text().splitlines() if line.startswith("run ")]
    assert all("--rm --init --pull=never --gpus all" in line for line in started)
    [built] = [line for line in started if "tensorrt_llm.commands.build" in line]
    assert "/source,readonly" in built
    *_, chatted = [line for line in started if line.endswith("worker.py")]
    backend = Path(made["engine"]) / "backend"
    assert f"--mount type=bind,source={backend},target={backend},readonly" in chatted
    assert " -i " in chatted
    assert "-e CUDA_VISIBLE_DEVICES=0" in chatted
    # what was killed in one of them must not keep the next from starting
    names = [line.split("--name ")[1].split()[0] for line in started if "--name " in line]
    assert len(names) == len(set(names)) > 2
    assert all(name.startswith(("edgekit-build-", "edgekit-worker-")) for name in names)


def test_no_program_of_it_believes_that_it_is_a_part_of_a_larger_job(
    build: Callable[..., Result], interpreter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = tmp_path / "variables"
    own = interpreter.read_text()
    interpreter.write_text(own.replace("#!/bin/sh", f"#!/bin/sh\nenv >> {seen}"))
    monkeypatch.setenv("SLURM_NTASKS", "2")
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.setenv("TLLM_LOG_LEVEL", "error")  # the size of the cache is read in its log
    ok(build())
    told = seen.read_text()
    assert told.count("EDGEKIT_TRTLLM_PYTHON=") >= 4  # asked, built, scored, answered
    assert not {"SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "TLLM_LOG_LEVEL"} & {
        line.partition("=")[0] for line in told.splitlines()
    }


def test_a_benchmark_times_the_stream_and_ends_at_no_stop_token(
    engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, open_engine = [], compiler.open_engine

    def noting(*given: Any, **named: Any) -> Any:
        opened.append(named["stop_ids"])
        return open_engine(*given, **named)

    monkeypatch.setattr(compiler, "open_engine", noting)
    words = ["bench", engine, "-p", 200, "-n", 40, "-d", 0, "-d", 64, "-r", 2]
    data = ok(run(*words, "--json"))
    assert opened == [()]
    assert [test["name"] for test in data["tests"]] == ["pp200", "tg40", "tg40 @ d64"]
    prefill, decode, _ = data["tests"]
    assert prefill["ttft_ms"]["p50"] > 0
    assert prefill["itl_ms"] is None
    assert decode["itl_ms"]["p50"] > 0
    assert data["timing"] == "stream"
    assert "time to the first new one" in data["notes"][0]
    assert data["bound"]["bandwidth_bytes_per_s"] == 1_008_000_000_000

    threads = run("bench", engine, "-p", 8, "-n", 8, "--threads", 2)
    assert threads.exit_code == 2
    assert "leave `--threads` out" in threads.stderr
    # the context is 256: a stream needs a place for the token that ends the prefill
    full = run("bench", engine, "-p", 256, "-n", 0)
    assert full.exit_code == 2
    assert "pp256 needs 257 tokens of context, the engine has 256" in full.stderr


def test_what_needs_logits_is_refused(engine: Path) -> None:
    result = run("chat", engine, "--prompt", "hello", "--schema", '{"type": "object"}')
    assert result.exit_code == 2
    assert "shows no logits" in result.stderr


def test_the_dry_run_prints_what_will_be_run(
    build: Callable[..., Result], interpreter: Path, tmp_path: Path
) -> None:
    data = json.loads(build("--dry-run").stdout)
    [command] = data["commands"]
    assert f"{interpreter} -m tensorrt_llm.commands.build --checkpoint_dir" in command
    assert "--max_seq_len 256" in command
    assert "CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES=0" in command
    assert "--input_timing_cache" not in command
    assert not (tmp_path / "store").exists()
    gpu = "nvidia-geforce-rtx-4090_sm89_tensorrt-10.14.1_tensorrt-llm-1.2.1.timing"
    kept = tmp_path / "cache" / "edgekit" / "tensorrt-llm" / gpu
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"measured")
    [command] = json.loads(build("--dry-run").stdout)["commands"]
    assert f"--input_timing_cache {kept}" in command


@pytest.mark.parametrize(
    "other",
    [{"name": "NVIDIA GeForce RTX 5090", "capability": [12, 0]}, {"name": "NVIDIA L40S"}],
    ids=["another generation", "the same"],
)
def test_of_several_gpus_that_of_the_profile_is_taken(
    other: dict[str, Any], build: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    record = Path(__file__).parent / "data" / "devices" / "rtx-4090" / "device.json"
    found = json.loads(record.read_text(encoding="utf-8"))["nvml"]
    [card] = found["gpus"]
    found["gpus"] = [{**card, **other}, card]
    monkeypatch.setattr("edgekit.device.read_record", lambda root: found)
    [command] = json.loads(build("--dry-run").stdout)["commands"]
    assert "CUDA_VISIBLE_DEVICES=1" in command
    assert ok(build())["device"]["gpu"] == "NVIDIA GeForce RTX 4090"
