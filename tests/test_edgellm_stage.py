"""`edgekit build --profile jetson-thor`: a stage is proved here, the device is told the rest."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from edgekit import dry_run
from edgekit.backends.edge_llm.preflight import require_loadable
from edgekit.cli import main
from edgekit.device import Device
from edgekit.engine import STAGE_FILE
from edgekit.pipeline import BuildOptions
from edgekit.planning import Request, request_plan
from edgekit.quantize.recipe import RECIPE_FILE
from tests.commands import ok

SHAPE = {"hidden_size": 128, "intermediate_size": 256, "num_key_value_heads": 2}
NARROW = {**SHAPE, "hidden_size": 192, "num_attention_heads": 6}
"""192 inputs have no groups of 128, the 256 of down_proj have."""
THOR = ["nvfp4", "int4_awq", "fp8", "int8_sq", "fp16"]
STAGES = [
    *(("jetson-thor", precision, "fp16") for precision in THOR),
    *(("jetson-thor", precision, "fp8") for precision in ("nvfp4", "fp8", "int8_sq", "fp16")),
    *(("jetson-orin", precision, "fp16") for precision in ("int4_awq", "int8_sq", "fp16")),
]


@pytest.fixture(autouse=True)
def no_edge_llm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """None is installed, whatever this machine has."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.delenv("EDGEKIT_EDGELLM_PYTHON", raising=False)


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
    words += ["--precision", precision, "--context", "256", "--calibration-tokens", "64", *more]
    if "--dry-run" not in more:
        words += ["--stage", "checkpoint"]
    return CliRunner().invoke(main, words, prog_name="edgekit")


@pytest.mark.parametrize(("profile", "precision", "kv"), STAGES)
def test_a_stage_is_proved_without_the_device(
    profile: str, precision: str, kv: str, model: Path, store: Path
) -> None:
    made = ok(build(model, store, profile, precision, "--kv", kv, "--force", "--json"))
    stage = Path(made["engine"])
    assert stage == store / "wide" / profile / f"{precision}-edge-llm.stage"
    assert made["quality"]["mean_kl_simulated"] <= 1e-3
    assert made["quality"]["measured_on"] == "twin"
    assert (made["kv_precision"], made["backend"]["version"]) == (kv, "")
    names = {path.relative_to(stage).as_posix() for path in stage.rglob("*") if path.is_file()}
    assert names == {STAGE_FILE, *made["files"]}
    assert {"source/config.json", "source/model.safetensors", "source/tokenizer.json"} <= names
    require_loadable(stage / "source", precision=precision, kv_precision=kv)


def test_int8_means_smoothquant_there(model: Path, store: Path) -> None:
    made = ok(build(model, store, "jetson-thor", "int8", "--json"))
    assert made["precision"] == "int8_sq"


def test_int4_layers_keep_input_scales_of_their_own(model: Path, store: Path) -> None:
    stage = Path(ok(build(model, store, "jetson-thor", "int4_awq", "--json"))["engine"])
    from edgekit.checkpoint.safetensors import read_header
    from edgekit.checkpoint.tensors import read_tensor

    tensors = read_header(stage / "source" / "model.safetensors")
    scales = [name for name in tensors if name.endswith(".pre_quant_scale")]
    assert len(scales) == 14  # seven layers in each of two blocks
    q, k = (
        read_tensor(tensors[f"model.layers.0.self_attn.{x}_proj.pre_quant_scale"]) for x in "qk"
    )
    assert (q != k).any()
    recipes = [json.loads(p.read_text()) for p in store.glob(f".work/quantized-*/{RECIPE_FILE}")]
    [own] = [each for each in recipes if each["precision"] == "int4_awq"]
    assert own["target_backend"] == "edge-llm"


def test_int4_layers_without_groups_of_128_stay_at_fp16_and_this_is_said(
    make_tiny: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    result = build(make_tiny("llama", **NARROW), tmp_path, "jetson-thor", "int4_awq", "--json")
    made = ok(result)
    kept = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj"]
    assert "left at fp16: q_proj, k_proj, v_proj, o_proj, gate_proj and up_proj" in caplog.text
    assert made["plan"]["kept_layers"] == kept
    assert made["quality"]["mean_kl_simulated"] <= 1e-3
    source = Path(made["engine"]) / "source"
    labels = json.loads((source / "hf_quant_config.json").read_text())["quantization"]
    assert labels["group_size"] == 128
    for name in kept:
        part = "mlp" if name in ("gate_proj", "up_proj") else "self_attn"
        layer = f"model.layers.1.{part}.{name}"
        assert any(fnmatch(layer, pattern) for pattern in labels["exclude_modules"])
    assert not any(fnmatch("x.mlp.down_proj", each) for each in labels["exclude_modules"])
    from edgekit.checkpoint.safetensors import read_header

    tensors = read_header(source / "model.safetensors")
    quantized = {name.split(".")[-2] for name in tensors if name.endswith(".weight_scale")}
    assert quantized == {"down_proj"}
    assert {tensors[f"model.layers.0.self_attn.{x}_proj.weight"].dtype for x in "qkvo"} == {"F16"}
    [recipe] = [
        json.loads(p.read_text()) for p in tmp_path.glob(f".work/quantized-*/{RECIPE_FILE}")
    ]
    assert recipe["kept_layers"] == kept
    result = run_plan(tmp_path)
    assert "stays at fp16    q_proj, k_proj, v_proj, o_proj, gate_proj and up_proj" in result.stdout


def run_plan(store: Path) -> Result:
    words = ["plan", "--model", "SmolLM2-135M-Instruct", "--profile", "jetson-thor"]
    words += ["--precision", "int4_awq", "--store", str(store)]
    return CliRunner().invoke(main, words, prog_name="edgekit")


def test_such_a_checkpoint_is_for_edge_llm_alone(
    model: Path, tmp_path: Path, run_cli: Callable[..., Result]
) -> None:
    words = ["--model", model, "--precision", "int4_awq", "--calibration-tokens", "64"]
    out = tmp_path / "quantized"
    result = run_cli("quantize", *words, "--profile", "jetson-thor", "--out", out)
    assert result.exit_code == 0, result.stderr
    result = run_cli("compile", out, "--profile", "cpu", "--store", tmp_path / "store")
    assert result.exit_code == 2
    assert "quantized for edge-llm alone" in result.stderr
    assert "`--backend onnxruntime`" in result.stderr


def test_other_backends_quantize_as_before(model: Path, store: Path) -> None:
    """The same precision for another backend is another checkpoint."""
    before = set(store.glob(".work/quantized-*"))
    ok(build(model, store, "rtx-4090", "int4_awq", "--backend", "tensorrt-llm", "--json"))
    [new] = set(store.glob(".work/quantized-*")) - before
    recipe = json.loads((new / RECIPE_FILE).read_text())
    assert recipe["target_backend"] == ""


@pytest.mark.parametrize(
    ("shape", "precision", "words", "message"),
    [
        (
            {**NARROW, "intermediate_size": 320},
            "int4_awq",
            [],
            "kernels for groups of 128 weights, this model takes 64",
        ),
        ({**SHAPE, "intermediate_size": 160}, "fp8", [], "no layer of width 160"),
        (
            {"hidden_size": 128, "intermediate_size": 256, "num_key_value_heads": 1},
            "int8",
            [],
            "no layer of width 32",
        ),
        (SHAPE, "int4_awq", ["--kv", "fp8"], "drops an FP8 cache without a word beside int4_awq"),
        (SHAPE, "fp8", ["--profile", "jetson-orin"], "FP8 arithmetic begins with sm_89"),
    ],
)
def test_what_it_would_do_wrong_is_refused_before_any_work(
    shape: dict[str, int], precision: str, words: list[str], message: str,
    make_tiny: Callable[..., Path], tmp_path: Path,
) -> None:  # fmt: skip
    made = make_tiny("llama", **shape)
    said = ["plan", "--model", str(made), "--profile", "jetson-thor", "--precision", precision]
    for result in (
        build(made, tmp_path / "store", "jetson-thor", precision, *words),
        build(made, tmp_path / "store", "jetson-thor", precision, "--dry-run", *words),
        CliRunner().invoke(main, [*said, *words], prog_name="edgekit"),
    ):
        assert result.exit_code == 2
        assert message in result.stderr
        assert "Traceback" not in result.stderr


def test_a_profile_of_one_s_own_is_built_for(model: Path, store: Path, tmp_path: Path) -> None:
    text = (Path(__file__).parents[1] / "profiles" / "jetson-thor.toml").read_text()
    path = tmp_path / "my-thor.toml"
    path.write_text(text.replace('name = "jetson-thor"', 'name = "my-thor"'))
    made = ok(build(model, store, str(path), "fp8", "--json"))
    assert made["profile"] == "my-thor"
    planned = build(model, store, str(path), "fp8", "--dry-run")
    assert f"edgekit build --profile {path} --precision fp8" in planned.stdout
    assert not list(tmp_path.glob("store/.work/quantized-*"))


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_other_families_are_proved_too(
    family: str, make_tiny: Callable[..., Path], tmp_path: Path
) -> None:
    heads = {"head_dim": 64} if family == "qwen3" else {"num_attention_heads": 2}
    shape = {"hidden_size": 128, "intermediate_size": 256, "num_key_value_heads": 1, **heads}
    made = ok(build(make_tiny(family, **shape), tmp_path, "jetson-thor", "int8", "--json"))
    assert made["quality"]["mean_kl_simulated"] <= 1e-3


def test_compiling_it_where_no_thor_is_says_what_is_missing(
    model: Path, store: Path, run_cli: Callable[..., Result]
) -> None:
    stage = Path(ok(build(model, store, "jetson-thor", "fp16", "--json"))["engine"])
    result = run_cli("compile", stage, "--store", store)
    assert result.exit_code == 4
    assert "no jetson-thor is here" in result.stderr
    assert "and run `edgekit compile fp16-edge-llm.stage`" in result.stderr
    chat = run_cli("chat", stage, "--prompt", "hi", "--store", store)
    assert chat.exit_code == 5
    assert f"on its device: edgekit compile {stage}" in chat.stderr


@pytest.mark.parametrize("precision", ["nvfp4", "int4_awq"])
def test_a_dry_run_prints_the_commands_of_both_machines(precision: str, store: Path) -> None:
    words = ["build", "--profile", "jetson-thor", "--dry-run", "--store", str(store)]
    result = CliRunner().invoke(main, [*words, "--precision", precision], prog_name="edgekit")
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    commands = [line for line in lines if not line.startswith("#")]
    assert f"edgekit compile {precision}-edge-llm.stage" in commands
    assert "edgekit doctor --install edge-llm" in commands
    # the profile's 32,768 tokens
    assert "--max-input-len 32768 --max-kv-cache-capacity 32768" in commands[-1]
    assert "EDGELLM_LOG_LEVEL=INFO" in commands[-1]
    assert "__LUNOWUD=-peep:fc_h_fusion=off" in commands[-1]  # one conversation
    assert any("tensorrt-edgellm-export" in line for line in commands) == (precision != "nvfp4")
    assert result.stdout.endswith("\n")
    # a build takes no known name: nothing is downloaded that was not asked for as such
    assert "--model nvidia/Llama-3.1-Nemotron-Nano-8B-v1" in commands[0]


def test_the_commands_of_a_dry_run_make_what_they_carry(model: Path, store: Path) -> None:
    planned = build(model, store, "jetson-thor", "fp16", "--dry-run", "--batch", "2")
    assert planned.exit_code == 0, planned.stderr
    lines = [shlex.split(line) for line in planned.stdout.splitlines() if line[0] != "#"]
    stages, copies, installs, compiles, builds = lines
    result = CliRunner().invoke(main, [*stages[1:], "--json"], prog_name="edgekit")
    made = ok(result)
    assert copies == ["rsync", "-a", made["engine"], "USER@DEVICE:"]
    assert (made["batch"], made["context_tokens"]) == (2, 256)
    assert installs == ["edgekit", "doctor", "--install", "edge-llm"]
    assert compiles == ["edgekit", "compile", "fp16-edge-llm.stage"]
    assert builds[-2:] == ["--max-batch-size", "2"]


def test_on_the_board_itself_a_dry_run_carries_nothing(
    model: Path, store: Path, recorded: Callable[[str], Device], monkeypatch: pytest.MonkeyPatch
) -> None:
    thor = recorded("agx-thor-jetpack-7")
    monkeypatch.setattr(dry_run, "read_device", lambda: thor)
    result = build(model, store, "jetson-thor", "int4_awq", "--dry-run")
    assert result.exit_code == 0, result.stderr
    exports, why, builds = result.stdout.splitlines()
    assert "tensorrt-edgellm-export" in exports
    assert why.startswith("# Edge-LLM 0.11.0, onnx: ")
    assert "onnx_build.py" in builds


def test_the_headline_command_without_a_thor_names_the_stage(
    model: Path, store: Path, run_cli: Callable[..., Result]
) -> None:
    result = run_cli("build", "--profile", "jetson-thor", "--model", model, "--store", store)
    assert result.exit_code == 4
    assert "`--stage checkpoint` makes everything up to there" in result.stderr


def test_with_on_the_stage_goes_to_that_machine_and_nowhere_else(model: Path, store: Path) -> None:
    asked = Request(
        model=str(model), profile="jetson-thor", precision="int4_awq", context=256, batch=1,
        backend="auto", store=store, stage="checkpoint",
    )  # fmt: skip
    plan, profile = request_plan(asked, asks_runtime=True)
    there = ["ssh thor mkdir", "rsync to thor", "ssh thor edgekit compile"]
    lines = dry_run.build_commands(plan, profile, asked, BuildOptions(seed=3), there=there)
    made, exported, *carried, goes_on, built = [line for line in lines if line[0] != "#"]
    assert shlex.split(made)[:4] == ["edgekit", "build", "--profile", "jetson-thor"]
    assert shlex.split(made)[-6:] == ["--model", str(model), "--store", str(store), "--seed", "3"]
    assert "tensorrt-edgellm-export" in exported
    assert [*carried, goes_on] == there
    assert "onnx_build.py" in built
    assert "USER@DEVICE" not in "\n".join(lines)
