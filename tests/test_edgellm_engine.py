"""From a checkpoint to answers through Edge-LLM, with a stand-in for its wheel.

The stand-in (tests/data/edgellm/standin) has the real builder's flags and the names of the real
bindings; its answers are computed from the checkpoint that it was built of. Interpreter, pipes,
worker and processes are real; an AGX Thor is recorded, not here.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import Result

import edgekit
from edgekit.device import Jetson
from tests.backends.edgellm import STANDIN, write_direct_builder
from tests.commands import ok, run

SHAPE = {"hidden_size": 128, "intermediate_size": 256, "num_key_value_heads": 2}
slow = pytest.mark.slow
DEVICES = Path(__file__).parent / "data" / "devices"
BOARD = Jetson(
    board="NVIDIA Jetson AGX Thor Developer Kit", l4t="38.2.0", jetpack="7.0", power_mode="120W"
)


def use_thor(patch: pytest.MonkeyPatch, directory: Path, board: Jetson = BOARD) -> Path:
    """This machine is a Thor, with a Python of its own for Edge-LLM in `directory`; that Python."""
    record = json.loads((DEVICES / "agx-thor-jetpack-7" / "device.json").read_text())["nvml"]
    patch.setattr("edgekit.device.read_record", lambda root: record)
    patch.setattr("edgekit.device.read_jetson", lambda root, run: board)
    patch.setattr("edgekit.device.read_memory", lambda root, cgroup: (131_881_062_400, 10**11))
    patch.setattr("edgekit.bench.watch.find_power_meter", lambda root: None)
    python = directory / "bin" / "python"
    python.parent.mkdir(parents=True, exist_ok=True)
    paths = f"{STANDIN}:{Path(edgekit.__file__).parents[1]}"
    python.write_text(f'#!/bin/sh\nexec env PYTHONPATH={paths} {sys.executable} "$@"\n')
    python.chmod(0o755)
    write_direct_builder(python.with_name("tensorrt-edgellm-build"))
    patch.setenv("EDGEKIT_EDGELLM_PYTHON", str(python))
    patch.setenv("XDG_CACHE_HOME", str(directory / "cache"))
    return python


@pytest.fixture(autouse=True)
def interpreter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    return use_thor(monkeypatch, tmp_path / "own")


@pytest.fixture(scope="module")
def model(make_tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("models") / "wide"
    shutil.copytree(make_tiny("llama", **SHAPE), path)
    return path


def build(store: Path, model: Path, *more: object) -> Result:
    return run(
        "build", "--model", model, "--store", store, "--profile", "jetson-thor",
        "--precision", "fp8", "--context", 256, "--calibration-tokens", 64, *more, "--json",
    )  # fmt: skip


@pytest.fixture(scope="module")
def store(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Of the stage of an engine and the engine: to be opened, not changed."""
    directory = tmp_path_factory.mktemp("built")
    with pytest.MonkeyPatch.context() as patch:
        use_thor(patch, directory)
        ok(build(directory / "store", model, "--stage", "checkpoint"))
        ok(build(directory / "store", model))
        yield directory / "store"


@pytest.fixture(scope="module")
def engine(store: Path) -> Path:
    [found] = store.glob("*/jetson-thor/fp8-edge-llm")
    return found


@pytest.fixture
def compile_stage(store: Path, tmp_path: Path) -> Callable[[], Result]:
    [stage] = store.glob("*/jetson-thor/fp8-edge-llm.stage")
    return lambda: run("compile", stage, "--store", tmp_path / "store", "--json")


def test_an_engine_was_built_checked_and_answers(engine: Path) -> None:
    made = json.loads((engine / "manifest.json").read_text())
    assert made["backend"] == {"name": "edge-llm", "version": "0.11.0"}
    assert made["quality"]["measured_on"] == "engine, by its likeliest tokens"
    assert made["quality"]["mean_kl_simulated"] <= 0.06
    assert made["quality"]["top1_agreement"] >= 0.5
    known = {"gpu": "NVIDIA Thor", "sm": 110, "jetpack": "7.0", "l4t": "38.2.0", "cuda": "13.0",
             "driver": "580.00", "tensorrt": "10.16.0", "edge_llm": "0.11.0"}  # fmt: skip
    assert known.items() <= made["device"].items()
    # weights stay in the checkpoint, so it is in the engine's directory, and hashed with it
    assert {"backend/llm/llm.engine", "backend/llm/tokenizer.json", "backend/engine.json",
            "backend/checkpoint/model.safetensors"} <= set(made["files"])  # fmt: skip
    layout = json.loads((engine / "backend" / "engine.json").read_text())
    assert (layout["max_input_tokens"], layout["kv_capacity_tokens"]) == (256, 256)
    checked = ok(run("verify", engine, "--json"))
    assert {name: checked[name] for name in made["quality"]} == made["quality"]
    words = ["chat", engine, "--prompt", "hello", "--max-new-tokens", 8, "--temperature", 0]
    first, again = run(*words), run(*words)
    assert first.exit_code == 0, first.stderr
    assert first.stdout.strip()
    assert first.stdout == again.stdout


def test_what_its_sampler_lacks_is_said(engine: Path) -> None:
    words = ["chat", engine, "--prompt", "hello", "--max-new-tokens", 2, "--temperature", 1]
    result = run(*words, "--min-p", 0.1)
    assert result.exit_code == 2
    assert "min_p" in result.stderr


@slow
def test_a_stage_from_elsewhere_becomes_the_same_engine(
    compile_stage: Callable[[], Result], engine: Path
) -> None:
    made, built = ok(compile_stage()), json.loads((engine / "manifest.json").read_text())
    assert (made["model"], made["quality"]) == (built["model"], built["quality"])
    again = ok(compile_stage())
    assert again["files"] == made["files"]  # reused


@pytest.mark.parametrize(
    ("breaks", "words"),
    [
        pytest.param("answers", "does not answer as its checkpoint does", marks=slow),
        # its likeliest tokens are right, how likely they are is not
        pytest.param("spread", "mean KL divergence from ModelOpt's simulation is", marks=slow),
        ("unread", "finds no token in the prompt"),
    ],
)
def test_an_engine_that_computes_something_else_is_none(
    breaks: str, words: str, compile_stage: Callable[[], Result], interpreter: Path, tmp_path: Path
) -> None:
    interpreter.write_text(interpreter.read_text().replace("env ", f"env STANDIN_BREAKS={breaks} "))
    result = compile_stage()
    assert result.exit_code == 4, result.stderr
    assert words in result.stderr
    assert not list((tmp_path / "store").glob("*/*/*/manifest.json"))


@slow
def test_an_engine_of_another_jetpack_does_not_open_and_is_built_again(
    engine: Path, compile_stage: Callable[[], Result], monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    ok(compile_stage())
    use_thor(monkeypatch, tmp_path / "own", replace(BOARD, l4t="39.2.0", jetpack="7.2"))
    result = run("chat", engine, "--prompt", "hello", "--max-new-tokens", 2)
    assert result.exit_code == 5
    assert "JetPack 7.0, here 7.2" in result.stderr
    assert "edgekit build --model wide --profile jetson-thor --precision fp8" in result.stderr
    assert ok(compile_stage())["device"]["jetpack"] == "7.2"


def test_bench_measures_what_streams_and_says_how_the_board_is_set(engine: Path) -> None:
    words = ["-p", 16, "-n", 8, "-r", 2, "--json"]
    result = run("bench", engine, *words)
    data = ok(result)
    assert [test["name"] for test in data["tests"]] == ["pp16", "tg8"]
    assert (data["timing"], data["energy"]) == ("stream", None)
    assert data["conditions"]["power_mode"] == "120W"
    assert "the power mode is 120W, not the fastest, MAXN: `sudo nvpmodel -m 0`" in result.stderr
