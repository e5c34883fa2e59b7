"""The real wheel: TensorRT Edge-LLM 0.11.0 exports what edgekit makes, and each trap is real.

Takes `EDGEKIT_EDGELLM_PYTHON` where it is set; otherwise `edgekit doctor --install edge-llm` makes
the environment, which downloads about 500 MB. No GPU is needed: no engine is built here.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result

from edgekit.backends.edge_llm import rounding
from edgekit.backends.edge_llm.command import export_command
from edgekit.backends.edge_llm.environment import child_environment
from edgekit.backends.edge_llm.exporter import GRAPH_DIR, ONNX_DIR, export_onnx, exported_by
from edgekit.backends.edge_llm.graph import find_graph_problems
from edgekit.backends.edge_llm.payload import ROWS, rows_of
from edgekit.backends.edge_llm.preflight import find_problems, require_loadable
from edgekit.backends.edge_llm.runtime import VARIABLE, VERSION, Runtime, find_runtime
from edgekit.checkpoint.safetensors import DTYPE_BYTES, encode_header, read_header
from edgekit.cli import main
from edgekit.errors import CheckpointError
from edgekit.families import read_spec
from edgekit.footprint import weights_bytes
from edgekit.model import ModelSpec
from edgekit.profile import find_profile

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
def narrow(make_tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """192 inputs have no groups of 128, the 256 of down_proj have."""
    path: Path = tmp_path_factory.mktemp("models") / "narrow"
    shutil.copytree(
        make_tiny("llama", **SHAPE | {"hidden_size": 192, "num_attention_heads": 6}), path
    )
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


class Exporter:
    """Edge-LLM's own export, with nothing looked at before or after.

    One process calls the script's `main` for every checkpoint: most of a run is importing torch.
    """

    PROGRAM = (
        "import json, sys, traceback\n"
        "from tensorrt_edgellm.scripts.export import main\n"
        "for line in sys.stdin:\n"
        "    sys.argv, code = json.loads(line), 0\n"
        "    try:\n"
        "        main()\n"
        "    except SystemExit as ended:\n"
        "        code = ended.code or 0\n"
        "    except BaseException:\n"
        "        traceback.print_exc()\n"
        "        code = 1\n"
        "    sys.stderr.flush()\n"
        "    print('ENDED', code, flush=True)\n"
    )

    def __init__(self, runtime: Runtime, log: Path) -> None:
        self._runtime, self._log = runtime, log
        self._said = log.open("w")
        self._process = subprocess.Popen(
            [*runtime.python, "-c", self.PROGRAM], cwd=log.parent, text=True,
            env=child_environment(os.environ, is_own=False),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said,
        )  # fmt: skip

    def __call__(self, source: Path, out: Path) -> tuple[str, str]:
        """What it ended with, and its log."""
        command = export_command(self._runtime, checkpoint=source, out=out, precision="int4_awq")
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        before = self._log.stat().st_size
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("ENDED"):
                with self._log.open() as file:
                    file.seek(before)
                    return line.split()[1], file.read()
        raise AssertionError(self._log.read_text()[-2000:])

    def close(self) -> None:
        self._process.communicate()
        self._said.close()


@pytest.fixture(scope="module")
def export(runtime: Runtime, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exporter]:
    made = Exporter(runtime, tmp_path_factory.mktemp("exports") / "log")
    yield made
    made.close()


def spec_of(source: Path) -> ModelSpec:
    return read_spec(json.loads((source / "config.json").read_text()))


def exported(runtime: Runtime, source: Path, precision: str, kv: str, out: Path) -> Path:
    """Its graph: what the stage carries, made in the same way, or a new one."""
    if (source / ONNX_DIR).is_dir():
        out = source / ONNX_DIR
    else:
        export_onnx(
            runtime, source, out, precision=precision, kv_precision=kv,
            log_file=out.with_suffix(".log"), report=lambda *_: None,
        )  # fmt: skip
    assert exported_by(out) == runtime.version
    return out / GRAPH_DIR


@pytest.mark.parametrize(("precision", "kv"), MADE)
def test_what_is_proved_here_is_exported_there(
    precision: str, kv: str, make_stage: Callable[..., Path], runtime: Runtime, tmp_path: Path
) -> None:
    source = make_stage(precision, kv) / "source"
    folder = exported(runtime, source, precision, kv, tmp_path / "out")
    spec = spec_of(source)
    assert list(find_graph_problems(folder, spec, precision=precision, kv_precision=kv)) == []
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


@pytest.mark.parametrize("precision", ["fp16", "int8_sq", "int4_awq", "fp8", "nvfp4"])
def test_a_real_model_goes_through(
    precision: str,
    smollm2_gguf: Path,
    make_stage: Callable[..., Path],
    runtime: Runtime,
    tmp_path: Path,
) -> None:
    """SmolLM2: of its layers only down_proj, with 1536 inputs, has the groups of INT4."""
    source = make_stage(precision, source=smollm2_gguf) / "source"
    folder = exported(runtime, source, precision, "fp16", tmp_path / "out")
    spec = spec_of(source)
    assert list(find_graph_problems(folder, spec, precision=precision, kv_precision="fp16")) == []
    if precision == "int4_awq":
        size = sum(info.num_bytes for info in read_header(source / "model.safetensors").values())
        storage = find_profile("jetson-thor").storage_for(precision, spec.num_params)
        # beside the plan 30 x 1536 input scales; a scale per group has 2 bytes more in the file
        assert size == weights_bytes(spec, storage) + 30 * 1536 * 2 + 30 * 576 * 12 * 2


def test_layers_that_have_no_groups_of_128_stay_at_fp16(
    narrow: Path, make_stage: Callable[..., Path], runtime: Runtime, tmp_path: Path
) -> None:
    """Of `exclude_modules`, where ModelOpt writes patterns, it makes FP16 layers; q, k and v become
    one matrix."""
    source = make_stage("int4_awq", source=narrow) / "source"
    labels = json.loads((source / "hf_quant_config.json").read_text())["quantization"]
    assert "model.layers.0.self_attn*" in labels["exclude_modules"]
    folder = exported(runtime, source, "int4_awq", "fp16", tmp_path / "out")
    found = onnx.load(str(folder / "model.onnx"), load_external_data=False).graph
    kinds = Counter(node.op_type for node in found.node)
    # of each of two blocks: qkv, o, gate and up; down
    assert (kinds["MatMul"], kinds["Int4GroupwiseGemmPluginV2"]) == (8, 2)
    assert [*tensor_sizes(found, 320)] == [(192, 320)] * 2


def tensor_sizes(graph: Any, width: int) -> Iterator[tuple[int, ...]]:
    for tensor in graph.initializer:
        if width in tensor.dims:
            yield tuple(tensor.dims)


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
    algo: str, make_stage: Callable[..., Path], export: Exporter, tmp_path: Path
) -> None:
    wrong = relabel(make_stage("int8_sq") / "source", tmp_path / "wrong", quant_algo=algo)
    code, log = export(wrong, tmp_path / "out")
    assert code == "0", log
    told = graph_problems(tmp_path / "out", spec_of(wrong), "int8_sq")
    assert any("is stored as plain" in each for each in told)
    with pytest.raises(CheckpointError, match="without a word"):
        list(find_problems(wrong, precision="int8_sq", kv_precision="fp16"))


def test_an_fp8_cache_beside_int4_is_dropped_and_refused_before(
    make_stage: Callable[..., Path], model: Path, export: Exporter, tmp_path: Path
) -> None:
    from edgekit.checkpoint import read_checkpoint
    from edgekit.export import export_edge_llm_checkpoint

    store = make_stage("int4_awq").parents[2]
    [quantized] = [
        path.parent
        for path in store.glob(".work/quantized-*/edgekit_quantization.json")
        if json.loads(path.read_text())["precision"] == "int4_awq"
        and read_checkpoint(path.parent).name == model.name
    ]
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    checkpoint = read_checkpoint(quantized)
    storage = find_profile("jetson-thor").storage_for("int4_awq", checkpoint.spec.num_params)
    export_edge_llm_checkpoint(checkpoint, storage, source, context_tokens=256, kv_precision="fp8")
    code, log = export(source, out)
    assert code == "0", log
    told = graph_problems(out, checkpoint.spec, "int4_awq", "fp8")
    assert told[-1] == "its cache is not fp8: config.json says fp16"
    before = list(find_problems(source, precision="int4_awq", kv_precision="fp8"))
    assert before == ["an FP8 cache beside INT4 weights is dropped by its export without a word"]


def test_a_layer_without_scales_stays_at_fp16_and_is_refused_before(
    make_stage: Callable[..., Path], export: Exporter, tmp_path: Path
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
    code, log = export(source, out)
    assert code == "0", log
    told = graph_problems(out, spec_of(source), "int4_awq")
    assert any("is stored as plain fp16" in each for each in told)
    before = list(find_problems(source, precision="int4_awq", kv_precision="fp16"))
    assert f"{layer}.weight_scale is missing" in " ".join(before)


def test_groups_of_64_are_exported_and_refused_before(
    make_stage: Callable[..., Path], export: Exporter, tmp_path: Path
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
    code, log = export(source, out)
    assert code == "0", log
    told = graph_problems(out, spec_of(source), "int4_awq")
    assert all("has groups of 64, its kernels are compiled for 128" in each for each in told)
    assert len(told) == 14
    before = list(find_problems(source, precision="int4_awq", kv_precision="fp16"))
    assert "in groups of 64" in before[0]


def copied(source: Path, out: Path, **config: Any) -> Path:
    """The checkpoint of a stage without its graph, with other words in config.json."""
    shutil.copytree(source, out, ignore=shutil.ignore_patterns(ONNX_DIR))
    path = out / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return out


def graph_problems(out: Path, spec: ModelSpec, precision: str, kv: str = "fp16") -> list[str]:
    found = find_graph_problems(out / GRAPH_DIR, spec, precision=precision, kv_precision=kv)
    return list(found)


def problems(source: Path, precision: str) -> list[str]:
    return list(find_problems(source, precision=precision, kv_precision="fp16"))


def test_links_are_read_since_0_11_and_links_to_nothing_end_it(
    make_stage: Callable[..., Path], export: Exporter, tmp_path: Path
) -> None:
    """Hugging Face's cache is links; 0.10.0 refused them (NVIDIA/TensorRT-Edge-LLM#184)."""
    blobs, source = make_stage("fp16") / "source", tmp_path / "snapshot"
    source.mkdir()
    for path in blobs.iterdir():
        (source / path.name).symlink_to(path)
    code, log = export(source, tmp_path / "out")
    assert code == "0", log
    assert graph_problems(tmp_path / "out", spec_of(source), "fp16") == []
    assert problems(source, "fp16") == []

    (source / "model.safetensors").unlink()
    (source / "model.safetensors").symlink_to(tmp_path / "nowhere")
    code, log = export(source, tmp_path / "none")
    assert code == "1"
    assert "No checkpoint files found" in log
    with pytest.raises(CheckpointError, match="is a link to nothing"):
        require_loadable(source, precision="fp16", kv_precision="fp16")


@pytest.mark.parametrize("precision", ["fp16", "int4_awq"])
def test_pickled_weights_are_exported_and_refused_before(
    precision: str,
    make_stage: Callable[..., Path],
    runtime: Runtime,
    export: Exporter,
    tmp_path: Path,
) -> None:
    """0.9.1 exported a graph without weights, with success (NVIDIA/TensorRT-Edge-LLM#162)."""
    source = copied(make_stage(precision) / "source", tmp_path / "source")
    weights, pickled = source / "model.safetensors", source / "pytorch_model.bin"
    program = (
        "import sys, torch; from safetensors.torch import load_file\n"
        "torch.save(load_file(sys.argv[1]), sys.argv[2])"
    )
    subprocess.run(
        [*runtime.python, "-c", program, str(weights), str(pickled)], check=True,
        env=child_environment(os.environ, is_own=False),
    )  # fmt: skip
    weights.unlink()
    code, log = export(source, tmp_path / "out")
    assert code == "0", log
    assert graph_problems(tmp_path / "out", spec_of(source), precision) == []
    with pytest.raises(CheckpointError, match="pickled"):
        require_loadable(source, precision=precision, kv_precision="fp16")


PACKED = {"format": "pack-quantized", "bits": 4}
CODES = {"format": "int-quantized", "bits": 8}


@pytest.mark.parametrize("kind", [PACKED, CODES], ids=["packed", "codes"])
def test_compressed_tensors_are_exported_as_fp16_and_refused_before(
    kind: dict[str, Any], make_stage: Callable[..., Path], export: Exporter, tmp_path: Path
) -> None:
    from safetensors.numpy import load_file, save_file

    scheme = {"num_bits": kind["bits"], "type": "int", "symmetric": True, "strategy": "channel"}
    config = {
        "quant_method": "compressed-tensors", "format": kind["format"], "ignore": ["lm_head"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": scheme}},
    }  # fmt: skip
    source = copied(make_stage("fp16") / "source", tmp_path / "source", quantization_config=config)
    weights = load_file(source / "model.safetensors")
    for name in [each for each in weights if each.endswith("_proj.weight")]:
        rows, columns = weights.pop(name).shape
        weights[f"{name}_scale"] = np.ones((rows, 1), np.float16)
        if kind is CODES:
            weights[name] = np.ones((rows, columns), np.int8)
        else:
            weights[f"{name}_packed"] = np.ones((rows, columns // 8), np.int32)
            weights[f"{name}_shape"] = np.array([rows, columns])
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    code, log = export(source, tmp_path / "out")
    assert code == "0", log
    told = graph_problems(tmp_path / "out", spec_of(source), "fp16")
    if kind is CODES:
        assert "Loaded 21 tensors, skipped 14" in log  # 14 scales
        assert any("is stored as plain int8" in each for each in told)
    else:
        # what it exports has the shape of what was wanted, and no weight of the checkpoint
        assert "Loaded 7 tensors, skipped 42" in log
        assert told == []
    with pytest.raises(CheckpointError, match="compressed-tensors, which is not read"):
        problems(source, "fp16")


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["default", "tool_use"], "defines named chat templates, which are unsupported"),
        ([], "does not provide a chat template"),
        (["default"], None),
    ],
)
def test_one_chat_template_is_needed(
    names: list[str],
    says: str | None,
    make_stage: Callable[..., Path],
    export: Exporter,
    tmp_path: Path,
) -> None:
    source = copied(make_stage("fp16") / "source", tmp_path / "source")
    template = (source / "chat_template.jinja").read_text()
    (source / "chat_template.jinja").unlink()
    named = [{"name": name, "template": template} for name in names]
    path = source / "tokenizer_config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | ({"chat_template": named} if names else {}))
    )
    code, log = export(source, tmp_path / "out")
    assert code == ("0" if says is None else "1"), log
    assert (says or "") in log
    assert (tmp_path / "out" / GRAPH_DIR / "model.onnx").is_file()  # even so
    assert len(problems(source, "fp16")) == (says is not None)


def test_a_folder_of_further_templates_ends_it(
    make_stage: Callable[..., Path], export: Exporter, tmp_path: Path
) -> None:
    source = copied(make_stage("fp16") / "source", tmp_path / "source")
    (source / "additional_chat_templates").mkdir()
    code, log = export(source, tmp_path / "out")
    assert code == "1"
    assert "unsupported named chat templates" in log
    assert "additional_chat_templates" in problems(source, "fp16")[0]


def test_int4_inputs_without_whole_groups_are_exported_and_refused_before(
    narrow: Path, make_stage: Callable[..., Path], export: Exporter, tmp_path: Path
) -> None:
    """192 inputs are 1.5 groups; it takes the scales of one."""
    from safetensors.numpy import load_file, save_file

    source = relabel(
        make_stage("int4_awq", source=narrow) / "source", tmp_path / "source",
        exclude_modules=["lm_head"],
    )  # fmt: skip
    weights = load_file(source / "model.safetensors")
    for name in [each for each in weights if each.endswith("_proj.weight")]:
        rows, columns = weights[name].shape
        if weights[name].dtype != np.uint8:
            weights[name] = np.zeros((rows // 2, columns), np.uint8)
            weights[f"{name}_scale"] = np.ones((rows, columns // 128), np.float16)
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    code, log = export(source, tmp_path / "out")
    assert code == "0", log
    told = graph_problems(tmp_path / "out", spec_of(source), "int4_awq")
    assert "q_proj has 192 inputs, its kernels take multiples of 128" in told[0]
    told = problems(source, "int4_awq")
    assert told[0].endswith("q_proj has a weight_scale, but stays at FP16 in int4_awq")


def test_nvfp4_inputs_without_whole_blocks_are_exported_and_refused_before(
    make_stage: Callable[..., Path], export: Exporter, tmp_path: Path
) -> None:
    """264 inputs of down_proj are 16.5 blocks; it takes the scales of 16."""
    source = copied(make_stage("nvfp4") / "source", tmp_path / "source", intermediate_size=264)
    path = source / "model.safetensors"
    tensors = {name: (info.dtype, info.shape) for name, info in read_header(path).items()}
    for name, (kind, shape) in tensors.items():
        if len(shape) == 2 and ("gate_proj" in name or "up_proj" in name):
            tensors[name] = (kind, (264, shape[1]))
        if len(shape) == 2 and "down_proj" in name:
            tensors[name] = (kind, (shape[0], 264 // (2 if name.endswith(".weight") else 16)))
    size = sum(DTYPE_BYTES[kind] * math.prod(shape) for kind, shape in tensors.values())
    header = encode_header(
        {name: shape for name, (_, shape) in tensors.items()},
        {name: kind for name, (kind, _) in tensors.items()},
    )
    path.write_bytes(header + bytes(size))
    code, log = export(source, tmp_path / "out")
    assert code == "0", log
    assert "down_proj is 128 x 264: NVFP4 has blocks of 16 inputs" in problems(source, "nvfp4")[0]


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
