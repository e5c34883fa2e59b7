"""`edgekit build --stage checkpoint`: proved here, compiled on the device."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from edgekit.cli import main
from edgekit.engine import STAGE_FILE, open_manifest
from edgekit.errors import EngineError
from tests.commands import ok

SHAPE = {"hidden_size": 128, "intermediate_size": 192, "num_key_value_heads": 2}
PRECISIONS = {
    "rtx-3070": ["int4_awq", "int8", "fp16"],  # the last two for models smaller than an 8B
    "rtx-3080-10gb": ["int4_awq", "int8", "fp16"],
    "rtx-3080-12gb": ["int4_awq", "int8", "fp16"],
    "rtx-4090": ["fp16", "int8", "fp8", "int4_awq"],
    "rtx-5090": ["fp16", "int8", "fp8", "int4_awq"],
    "a100-80gb": ["fp16", "int8", "int4_awq"],
    "h100-80gb": ["fp16", "int8", "fp8", "int4_awq"],
}


@pytest.fixture(scope="module")
def model(make_tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("models") / "wide"
    shutil.copytree(make_tiny("llama", **SHAPE), path)
    return path


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


def build(model: Path, store: Path, profile: str, precision: str, *more: str) -> Result:
    words = ["build", "--model", str(model), "--store", str(store), "--profile", profile]
    words += ["--precision", precision, "--context", "256", "--calibration-tokens", "64"]
    return CliRunner().invoke(main, [*words, "--stage", "checkpoint", *more], prog_name="edgekit")


@pytest.mark.parametrize(
    ("profile", "precision"), [(p, each) for p, names in PRECISIONS.items() for each in names]
)
def test_a_stage_is_proved_without_the_device(
    profile: str, precision: str, model: Path, store: Path
) -> None:
    made = ok(build(model, store, profile, precision, "--json"))
    stage = Path(made["engine"])
    assert stage == store / "wide" / profile / f"{precision}-tensorrt-llm.stage"
    assert made["quality"]["mean_kl_simulated"] <= 1e-3
    assert made["quality"]["measured_on"] == "twin"
    assert made["backend"] == {"name": "tensorrt-llm", "version": ""}
    names = {path.relative_to(stage).as_posix() for path in stage.rglob("*") if path.is_file()}
    assert names == {STAGE_FILE, *made["files"]}
    assert {"source/config.json", "source/rank0.safetensors", "tokenizer/tokenizer.json"} <= names


@pytest.mark.parametrize("precision", ["fp16", "int8", "int8_sq", "int4_awq"])
def test_a_stage_for_a_processor_becomes_an_engine_without_the_checkpoint(
    precision: str, model: Path, store: Path, tmp_path: Path, run_cli: Callable[..., Result]
) -> None:
    made = ok(build(model, store, "cpu", precision, "--json"))
    stage = Path(made["engine"])
    assert stage == store / "wide" / "cpu" / f"{precision}-onnxruntime.stage"
    assert made["quality"]["measured_on"] == "twin"
    assert {"source/model.onnx", "source/model.data", "tokenizer/tokenizer.json"} <= set(
        made["files"]
    )
    compiled = ok(run_cli("compile", stage, "--store", tmp_path, "--json"))
    figures = ("mean_kl", "perplexity_ratio", "top1_agreement")
    for name in figures:
        assert compiled["quality"][name] == pytest.approx(made["quality"][name], rel=1e-3)
    assert compiled["quality"]["measured_on"] == "engine"
    assert not (Path(compiled["engine"]) / "source").exists()
    assert (stage / "source" / "model.data").is_file()


@pytest.mark.parametrize("kv", ["int8", "fp8"])
@pytest.mark.parametrize("precision", PRECISIONS["rtx-4090"])
def test_a_stage_with_a_quantized_cache_is_proved_too(
    precision: str, kv: str, model: Path, store: Path
) -> None:
    made = ok(build(model, store, "rtx-4090", precision, "--kv", kv, "--force", "--json"))
    assert made["kv_precision"] == kv
    assert made["quality"]["mean_kl_simulated"] <= 1e-3
    config = json.loads((Path(made["engine"]) / "source" / "config.json").read_text())
    assert config["quantization"]["kv_cache_quant_algo"] == kv.upper()


def test_it_is_compiled_for_as_many_conversations_as_it_was_made_for(
    model: Path, store: Path, tmp_path: Path, run_cli: Callable[..., Result]
) -> None:
    stage = ok(build(model, store, "cpu", "fp16", "--batch", "2", "--json"))["engine"]
    compiled = ok(run_cli("compile", stage, "--store", tmp_path, "--json"))
    assert (compiled["batch"], compiled["context_tokens"]) == (2, 256)
    fewer = ok(run_cli("compile", stage, "--store", tmp_path, "--batch", "1", "--json"))
    assert fewer["batch"] == 1


def test_it_says_how_to_go_on_and_is_made_once(model: Path, store: Path) -> None:
    first = build(model, store, "rtx-4090", "fp16")
    assert "to go on: copy" in first.stderr
    *_, install, compiles = first.stderr.splitlines()
    assert "trtllm/bin/pip install tensorrt-llm==1.2.1 " in install
    assert compiles == "  edgekit compile fp16-tensorrt-llm.stage --trtllm-python trtllm"
    again = build(model, store, "rtx-4090", "fp16")
    assert "this checkpoint is there already; nothing to do" in again.stderr
    assert "quantize:" not in again.stderr


def test_what_the_model_s_widths_decide_is_said_once(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    result = build(model, tmp_path, "rtx-4090", "int4_awq")
    assert result.exit_code == 0, result.stderr
    assert caplog.text.count("groups of 64, not 128: the layer widths do not divide") == 1


def test_a_stage_is_no_engine(model: Path, store: Path, run_cli: Callable[..., Result]) -> None:
    ok(build(model, store, "rtx-4090", "fp16", "--json"))
    listed = run_cli("engines", "--store", str(store))
    assert ".stage" not in listed.stdout
    stage = store / "wide" / "rtx-4090" / "fp16-tensorrt-llm.stage"
    assert run_cli("chat", str(stage), "--prompt", "hi").exit_code == 5


def test_compiling_it_where_the_gpu_is_not_says_what_is_missing(
    model: Path, store: Path, run_cli: Callable[..., Result]
) -> None:
    stage = Path(ok(build(model, store, "rtx-4090", "fp16", "--json"))["engine"])
    result = run_cli("compile", str(stage), "--store", str(store))
    assert result.exit_code == 4
    assert "no rtx-4090 is here" in result.stderr


def test_a_changed_stage_is_found(model: Path, store: Path, tmp_path: Path) -> None:
    stage = Path(ok(build(model, store, "rtx-4090", "fp16", "--json"))["engine"])
    copied = tmp_path / "copied.stage"
    shutil.copytree(stage, copied)
    open_manifest(copied, full=True, file=STAGE_FILE)
    weights = bytearray((copied / "source" / "rank0.safetensors").read_bytes())
    weights[-1] ^= 1
    (copied / "source" / "rank0.safetensors").write_bytes(weights)
    with pytest.raises(EngineError, match="rank0"):
        open_manifest(copied, full=True, file=STAGE_FILE)


@pytest.mark.parametrize(
    ("family", "shape", "words", "message"),
    [
        (
            "qwen2",
            SHAPE,
            ["--backend", "tensorrt-llm"],
            "tensorrt-llm takes llama models, not qwen2",
        ),
        ("llama", {**SHAPE, "intermediate_size": 160}, [], "no layer of width 160"),
        ("llama", SHAPE, ["--backend", "tensorrt-rtx"], "no stage before the engine"),
    ],
)
def test_what_it_cannot_hold_is_refused_before_any_work(
    family: str, shape: dict[str, int], words: list[str], message: str,
    make_tiny: Callable[..., Path], tmp_path: Path,
) -> None:  # fmt: skip
    result = build(make_tiny(family, **shape), tmp_path / "store", "rtx-4090", "int8", *words)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.glob("store/.work/quantized-*"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "kv"),
    [("fp16", "int8"), ("fp8", "fp8"), ("int4_awq", "fp16")],
)
def test_a_real_model_s_checkpoint_gives_modelopt_s_answers(
    precision: str, kv: str, smollm2_gguf: Path, store: Path
) -> None:
    words = ["build", "--model", str(smollm2_gguf), "--profile", "rtx-4090", "--stage"]
    words += ["checkpoint", "--precision", precision, "--kv", kv, "--calibration-tokens", "64"]
    words += ["--store", str(store), "--json"]
    made = ok(CliRunner().invoke(main, words, prog_name="edgekit"))
    assert made["quality"]["mean_kl_simulated"] <= 1e-3
    assert "Paris" in made["quality"]["known_answer"]
