"""The real wheel: TensorRT Edge-LLM 0.11.0 exports what edgekit makes, and each trap is real.

Takes `EDGEKIT_EDGELLM_PYTHON` where it is set; otherwise `edgekit doctor --install edge-llm` makes
the environment, which downloads about 500 MB. No GPU is needed: no engine is built here.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from edgekit.backends.edge_llm import rounding
from edgekit.backends.edge_llm.command import export_command
from edgekit.backends.edge_llm.environment import child_environment
from edgekit.backends.edge_llm.exporter import GRAPH_DIR, ONNX_DIR, export_onnx, exported_by
from edgekit.backends.edge_llm.graph import find_graph_problems
from edgekit.backends.edge_llm.payload import ROWS, rows_of
from edgekit.backends.edge_llm.preflight import find_problems
from edgekit.backends.edge_llm.runtime import VARIABLE, VERSION, Runtime, find_runtime
from edgekit.cli import main
from edgekit.errors import CheckpointError
from edgekit.families import read_spec

pytestmark = [pytest.mark.slow, pytest.mark.network]

SHAPE = {"hidden_size": 128, "intermediate_size": 256, "num_key_value_heads": 2}
MADE = [
    *((precision, "fp16") for precision in ("fp16", "int8_sq", "int4_awq", "fp8", "nvfp4")),
    *((precision, "fp8") for precision in ("fp16", "int8_sq", "fp8", "nvfp4")),
]


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Runtime:
    """The real one; installed by edgekit where none is named."""
    if os.environ.get(VARIABLE):
        return find_runtime(None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data")))
        words = ["doctor", "--install", "edge-llm", "--yes"]
        result = CliRunner().invoke(main, words, prog_name="edgekit")
        assert result.exit_code == 0, result.stderr
        assert f"Edge-LLM {VERSION} is in" in result.stdout
        return find_runtime(None)


@pytest.fixture(scope="module")
def model(make_tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("models") / "wide"
    shutil.copytree(make_tiny("llama", **SHAPE), path)
    return path


@pytest.fixture(scope="module")
def make_stage(
    model: Path, runtime: Runtime, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """`make("int4_awq", "fp16")`: the stage of `edgekit build`, with this Edge-LLM at hand."""
    store, made = tmp_path_factory.mktemp("store"), {}

    def make(precision: str, kv: str = "fp16", source: Path = model) -> Path:
        key = (precision, kv, source)
        if key not in made:
            words = ["build", "--model", str(source), "--store", str(store / kv), "--json"]
            words += ["--profile", "jetson-thor", "--precision", precision, "--kv", kv]
            words += ["--context", "256", "--calibration-tokens", "256", "--stage", "checkpoint"]
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv(VARIABLE, runtime.python[0])
                result = CliRunner().invoke(main, words, prog_name="edgekit")
            made[key] = Path(ok(result)["engine"])
        return made[key]

    return make


def ok(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.stderr
    data: dict[str, Any] = json.loads(result.stdout)
    assert data["quality"]["mean_kl_simulated"] <= 1e-3
    return data


def export(runtime: Runtime, source: Path, out: Path) -> subprocess.CompletedProcess[bytes]:
    """Edge-LLM's own export, with nothing looked at before or after."""
    command = export_command(runtime, checkpoint=source, out=out, precision="int4_awq")
    environment = child_environment(os.environ, is_own=False)
    return subprocess.run(
        command, env=environment, capture_output=True, check=False, cwd=out.parent
    )


@pytest.mark.parametrize(("precision", "kv"), MADE)
def test_what_is_proved_here_is_exported_there(
    precision: str, kv: str, make_stage: Callable[..., Path], runtime: Runtime, tmp_path: Path
) -> None:
    source = make_stage(precision, kv) / "source"
    folder = export_onnx(
        runtime, source, tmp_path / "out", precision=precision, kv_precision=kv,
        log_file=tmp_path / "log", report=lambda *_: None,
    )  # fmt: skip
    spec = read_spec(json.loads((source / "config.json").read_text()))
    assert list(find_graph_problems(folder, spec, precision=precision, kv_precision=kv)) == []
    assert exported_by(tmp_path / "out") == runtime.version
    others = [(p, k) for p, k in MADE if (p, k) != (precision, kv)]
    for other, cache in others:  # nothing passes for something else
        assert list(find_graph_problems(folder, spec, precision=other, kv_precision=cache))


@pytest.mark.parametrize("precision", ["int4_awq", "int8_sq"])
def test_a_stage_of_integer_weights_carries_its_graph(
    precision: str, make_stage: Callable[..., Path], runtime: Runtime
) -> None:
    graph = make_stage(precision) / "source" / ONNX_DIR
    assert exported_by(graph) == runtime.version
    assert (graph / GRAPH_DIR / "model.onnx").is_file()


@pytest.mark.parametrize("precision", ["fp16", "int8_sq", "fp8", "nvfp4"])
def test_a_real_model_goes_through(
    precision: str,
    smollm2_gguf: Path,
    make_stage: Callable[..., Path],
    runtime: Runtime,
    tmp_path: Path,
) -> None:
    """SmolLM2: its 576 inputs have no groups of 128, so not at INT4."""
    source = make_stage(precision, source=smollm2_gguf) / "source"
    if precision == "int8_sq":  # it carries its graph
        assert exported_by(source / ONNX_DIR) == runtime.version
        return
    export_onnx(
        runtime, source, tmp_path / precision, precision=precision, kv_precision="fp16",
        log_file=tmp_path / "log", report=lambda *_: None,
    )  # fmt: skip


def relabel(source: Path, out: Path, **changes: Any) -> Path:
    shutil.copytree(source, out, ignore=shutil.ignore_patterns(ONNX_DIR))
    path = out / "hf_quant_config.json"
    labels = json.loads(path.read_text())
    labels["quantization"] |= changes
    path.write_text(json.dumps(labels))
    config = json.loads((out / "config.json").read_text())
    config.pop("quantization_config", None)
    (out / "config.json").write_text(json.dumps(config))
    return out


@pytest.mark.parametrize("algo", ["W8A16", "INT9_OF_NOBODY"])
def test_an_unknown_label_is_exported_as_fp16_and_refused_before(
    algo: str, make_stage: Callable[..., Path], runtime: Runtime, tmp_path: Path
) -> None:
    wrong = relabel(make_stage("int8_sq") / "source", tmp_path / "wrong", quant_algo=algo)
    done = export(runtime, wrong, tmp_path / "out")
    assert done.returncode == 0, done.stderr[-2000:]
    spec = read_spec(json.loads((wrong / "config.json").read_text()))
    told = list(
        find_graph_problems(
            tmp_path / "out" / GRAPH_DIR, spec, precision="int8_sq", kv_precision="fp16"
        )
    )
    assert any("is stored as plain" in each for each in told)
    with pytest.raises(CheckpointError, match="without a word"):
        list(find_problems(wrong, precision="int8_sq", kv_precision="fp16"))


def test_an_fp8_cache_beside_int4_is_dropped_and_refused_before(
    make_stage: Callable[..., Path], runtime: Runtime, tmp_path: Path
) -> None:
    from edgekit.checkpoint import read_checkpoint
    from edgekit.export import export_edge_llm_checkpoint
    from edgekit.profile import find_profile

    store = make_stage("int4_awq").parents[2]
    [quantized] = [
        path.parent
        for path in store.glob(".work/quantized-*/edgekit_quantization.json")
        if json.loads(path.read_text())["precision"] == "int4_awq"
    ]
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    checkpoint = read_checkpoint(quantized)
    storage = find_profile("jetson-thor").storage_for("int4_awq", checkpoint.spec.num_params)
    export_edge_llm_checkpoint(checkpoint, storage, source, context_tokens=256, kv_precision="fp8")
    assert export(runtime, source, out).returncode == 0
    told = list(
        find_graph_problems(
            out / GRAPH_DIR, checkpoint.spec, precision="int4_awq", kv_precision="fp8"
        )
    )
    assert told[-1] == "its cache is not fp8: config.json says fp16"
    before = list(find_problems(source, precision="int4_awq", kv_precision="fp8"))
    assert before == ["an FP8 cache beside INT4 weights is dropped by its export without a word"]


def test_a_layer_without_scales_stays_at_fp16_and_is_refused_before(
    make_stage: Callable[..., Path], runtime: Runtime, tmp_path: Path
) -> None:
    """What was left out of quantization is multiplied as it is, with success."""
    from safetensors.numpy import load_file, save_file

    source, out = tmp_path / "source", tmp_path / "out"
    shutil.copytree(
        make_stage("int4_awq") / "source", source, ignore=shutil.ignore_patterns("onnx")
    )
    layer = "model.layers.1.self_attn.v_proj"
    weights = load_file(source / "model.safetensors")
    for part in ("weight_scale", "pre_quant_scale"):
        del weights[f"{layer}.{part}"]
    weights[f"{layer}.weight"] = np.zeros((64, 128), np.float16)
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    assert export(runtime, source, out).returncode == 0
    spec = read_spec(json.loads((source / "config.json").read_text()))
    told = list(
        find_graph_problems(out / GRAPH_DIR, spec, precision="int4_awq", kv_precision="fp16")
    )
    assert any("is stored as plain fp16" in each for each in told)
    before = list(find_problems(source, precision="int4_awq", kv_precision="fp16"))
    assert f"{layer}.weight_scale is missing" in " ".join(before)


def test_groups_of_64_are_exported_and_refused_before(
    make_stage: Callable[..., Path], runtime: Runtime, tmp_path: Path
) -> None:
    """The export ends well; the kernels behind it have 128 compiled in."""
    from safetensors.numpy import load_file, save_file

    source, out = tmp_path / "source", tmp_path / "out"
    relabel(make_stage("int4_awq") / "source", source, group_size=64)
    weights = load_file(source / "model.safetensors")
    for name, value in weights.items():
        if name.endswith("weight_scale"):
            weights[name] = np.repeat(value, 2, axis=1)
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    assert export(runtime, source, out).returncode == 0
    spec = read_spec(json.loads((source / "config.json").read_text()))
    told = list(
        find_graph_problems(out / GRAPH_DIR, spec, precision="int4_awq", kv_precision="fp16")
    )
    assert all("has groups of 64, its kernels are compiled for 128" in each for each in told)
    assert len(told) == 14
    before = list(find_problems(source, precision="int4_awq", kv_precision="fp16"))
    assert "in groups of 64" in before[0]


def test_our_rounding_is_edge_llm_s_own(runtime: Runtime, tmp_path: Path) -> None:
    """Its operators have bodies in torch for checking numbers: `tensorrt_edgellm/models/ops.py`."""
    import torch

    generator = np.random.default_rng(0)
    x = generator.standard_normal((64, 256)).astype(np.float16) * 3
    x[:4] = 0
    # nothing beyond int8: there the graph's QuantizeLinear has -128, that body -127
    scales = {"int8_sq": 0.12, "fp8": 0.03, "nvfp4": 12.0 / (6 * 448)}
    arrays = {"x": x, **{name: np.float32(scale) for name, scale in scales.items()}}
    np.savez(tmp_path / "in.npz", **arrays)  # type: ignore[arg-type]  # its stubs know no names
    program = (
        "import numpy as np, torch; from tensorrt_edgellm.models import ops\n"
        "f = np.load('in.npz'); x = torch.from_numpy(f['x'])\n"
        "s = {n: torch.tensor(float(f[n])) for n in ('int8_sq', 'fp8', 'nvfp4')}\n"
        "half = s['fp8'].half()\n"
        "np.savez('out.npz', int8_sq=ops._int8_sq_act_qdq_eager(x, s['int8_sq']),\n"
        "    fp8=ops._fp8_dequantize_eager(ops._fp8_quantize_eager(x, half), half),\n"
        "    nvfp4=ops._nvfp4_act_qdq_eager(x, s['nvfp4']))\n"
    )
    subprocess.run(
        [*runtime.python, "-c", program], cwd=tmp_path, check=True,
        env=child_environment(os.environ, is_own=False), capture_output=True,
    )  # fmt: skip
    theirs = np.load(tmp_path / "out.npz")
    for precision, scale in scales.items():
        ours = rounding.ENTERING[precision](torch.from_numpy(x).float(), torch.tensor(scale))
        np.testing.assert_array_equal(ours.half().numpy(), theirs[precision], err_msg=precision)


def test_its_wheel_holds_the_libraries_of_our_table(runtime: Runtime) -> None:
    machine = runtime.details["machine"]
    found = {(row.system, row.tensorrt, row.sm) for row in rows_of(runtime.details)}
    ours = {(row.system, row.tensorrt, row.sm) for row in ROWS if row.machine == machine}
    assert found == ours
