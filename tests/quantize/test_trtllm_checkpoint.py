"""TensorRT-LLM checkpoints: against ModelOpt's own exporter, and read back as the builder reads."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from edgekit.backends.tensorrt_llm.reader import CheckpointReader
from edgekit.checkpoint import read_checkpoint
from edgekit.errors import CheckpointError
from edgekit.export import export_tensorrt_llm_checkpoint
from edgekit.export.tensorrt_llm import WEIGHTS_FILE
from edgekit.precision import find_precision
from edgekit.profile import find_profile
from edgekit.quantize.calibration import read_calibration
from edgekit.quantize.model import load_model, load_tokenizer
from edgekit.quantize.recipe import modelopt_config
from edgekit.quantize.run import _export, _quantize
from edgekit.reference import CACHE_RANGES_FILE
from tests.quantize.checkpoints import GROUP, SHAPE, Made, Tensors, maker, measure_kl, tensors

PRECISIONS = ["fp16", "int8", "int4_awq", "fp8"]
STORAGE = find_profile("rtx-4090").storage


@pytest.fixture(scope="module")
def model(make_tiny: Callable[..., Path]) -> Path:
    return make_tiny("llama", **SHAPE)


@pytest.fixture(scope="module")
def made(
    make_tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Made]:
    """`made(precision, kv)`: what the quantize step wrote, and the checkpoint of it; read only."""
    return maker(make_tiny, tmp_path_factory, write)


def write(quantized: Path, target: Path, precision: str, kv: str = "fp16") -> None:
    export_tensorrt_llm_checkpoint(
        read_checkpoint(quantized), STORAGE[precision], target, context_tokens=128, kv_precision=kv
    )


kl_to_simulation = partial(measure_kl, CheckpointReader)


# ModelOpt's exporter is the only other writer of this format that runs without a GPU
@pytest.mark.filterwarnings("ignore")  # it says so where it does not find TensorRT-LLM
@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_tensor_is_modelopt_s_own_exporter_s(
    precision: str, model: Path, tmp_path: Path
) -> None:
    import torch
    from modelopt.torch.export import export_tensorrt_llm_checkpoint as modelopt_export

    checkpoint, row = read_checkpoint(model), find_precision(precision)
    texts = read_calibration(load_tokenizer(model), None, path=None, tokens=64)
    network = load_model(checkpoint)
    group = GROUP if precision == "int4_awq" else None
    config = None if row.modelopt_config is None else modelopt_config(row, group)
    _quantize(network, row, group, config, texts, lambda *_: None)
    theirs, quantized, ours = (tmp_path / name for name in ("theirs", "quantized", "ours"))
    quantized.mkdir()
    ours.mkdir()
    modelopt_export(
        copy.deepcopy(network), "llama", dtype=torch.float16, inference_tensor_parallel=1,
        export_dir=theirs,
    )  # fmt: skip
    _export(network, checkpoint, row, quantized, lambda *_: None)
    write(quantized, ours, precision)
    expected, found = tensors(theirs / WEIGHTS_FILE), tensors(ours / WEIGHTS_FILE)
    for name, (_, value) in expected.items():
        if precision == "int8" and name.endswith((".weight", ".weights_scaling_factor")):
            continue  # theirs are codes that 1.2's loader takes for packed ones; see below
        np.testing.assert_array_equal(found[name][1], value.astype(found[name][1].dtype), name)
    # what was folded away, the loader asks for all the same
    folded = {n for n in found if n.endswith("prequant_scaling_factor")} - set(expected)
    assert all((found[name][1] == 1).all() for name in folded)
    assert set(found) - folded == {
        n for n in expected if precision != "int8" or not n.endswith("weights_scaling_factor")
    }
    if precision == "int8":
        require_same_codes(expected, found)


def require_same_codes(expected: dict[str, Any], found: dict[str, Any]) -> None:
    """What `symmetric_quantize_last_axis_of_batched_matrix` makes of our weights, in numpy."""
    names = [n.removesuffix(".weights_scaling_factor") for n in expected if "weights_scaling" in n]
    assert len(names) == 10
    for name in names:
        codes, scales = expected[f"{name}.weight"][1], expected[f"{name}.weights_scaling_factor"][1]
        weight = found[f"{name}.weight"][1].astype(np.float32)
        steps = np.abs(weight).max(axis=1) / 128
        again = np.clip(np.rint(weight / steps[:, None]), -128, 127)
        differs = again != codes
        assert (codes[differs] == -127).all()
        assert (again[differs] == -128).all()
        assert (differs.sum(axis=1) <= 1).all()
        np.testing.assert_allclose(steps, scales, rtol=2**-10)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_reader_finds_modelopt_s_simulation(precision: str, made: Callable[..., Made]) -> None:
    assert kl_to_simulation(made(precision), keeps_activations=precision == "fp8") <= 1e-3


@pytest.mark.parametrize("kv", ["int8", "fp8"])
def test_a_quantized_cache_costs_little_and_is_scaled_by_what_calibration_met(
    kv: str, made: Callable[..., Made]
) -> None:
    files = made("int8", kv)
    ranges = json.loads((files.quantized / CACHE_RANGES_FILE).read_text())
    found = tensors(files.checkpoint / WEIGHTS_FILE)
    for layer in range(2):
        largest = max(ranges["key"][layer], ranges["value"][layer])
        dtype, scale = found[f"transformer.layers.{layer}.attention.kv_cache_scaling_factor"]
        assert (dtype, scale.shape) == ("F32", (1,))
        assert scale[0] == pytest.approx(largest / 127 if kv == "int8" else 1.0)
    config = json.loads((files.checkpoint / "config.json").read_text())
    assert config["quantization"]["kv_cache_quant_algo"] == kv.upper()
    assert kl_to_simulation(files, keeps_activations=True) <= 1e-3
    assert 1e-6 < kl_to_simulation(files) < 0.05


def test_the_ranges_are_those_of_rotated_keys(made: Callable[..., Made], model: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    ids = torch.tensor(
        [read_calibration(load_tokenizer(model), None, path=None, tokens=64).samples[0]]
    )
    with torch.inference_mode():
        cache = network(ids, use_cache=True).past_key_values
    ranges = json.loads((made("fp16").quantized / CACHE_RANGES_FILE).read_text())
    assert ranges["key"] == pytest.approx([float(x.keys.abs().max()) for x in cache.layers])
    assert ranges["value"] == pytest.approx([float(x.values.abs().max()) for x in cache.layers])


def test_slots_chunks_and_single_tokens_give_what_one_pass_gives(
    made: Callable[..., Made],
) -> None:
    session = CheckpointReader(made("int4_awq").checkpoint, context_tokens=64, num_slots=2)
    ids = list(range(5, 45))
    whole = session.prefill(0, ids, num_logits=40)
    session.prefill(1, ids[:17])
    parts = [session.prefill(1, ids[17:30], num_logits=13)]
    parts += [session.decode([1], [token]) for token in ids[30:]]
    np.testing.assert_allclose(np.concatenate(parts), whole[17:], atol=1e-4)


@pytest.mark.parametrize(
    "damage", ["gate and up swapped", "nibbles swapped", "q and k swapped", "rope forgotten"]
)
def test_a_mistake_in_the_layout_is_seen(
    damage: str, made: Callable[..., Made], tmp_path: Path
) -> None:
    files = made("int4_awq")
    copied = tmp_path / "checkpoint"
    shutil.copytree(files.checkpoint, copied)
    values = load_file(copied / WEIGHTS_FILE)
    layer = "transformer.layers.1"
    if damage == "gate and up swapped":
        for part in ("weight", "weights_scaling_factor", "prequant_scaling_factor"):
            one, other = f"{layer}.mlp.fc.{part}", f"{layer}.mlp.gate.{part}"
            values[one], values[other] = values[other], values[one]
    elif damage == "nibbles swapped":
        bits = values[f"{layer}.mlp.proj.weight"].view(np.uint8)
        values[f"{layer}.mlp.proj.weight"] = (bits << 4 | bits >> 4).view(np.int8)
    elif damage == "q and k swapped":
        qkv = values[f"{layer}.attention.qkv.weight"]
        values[f"{layer}.attention.qkv.weight"] = np.roll(qkv, 32, axis=0)
    else:
        config = json.loads((copied / "config.json").read_text())
        (copied / "config.json").write_text(json.dumps({**config, "rotary_scaling": None}))
    save_file(values, copied / WEIGHTS_FILE)
    assert kl_to_simulation(Made(files.quantized, copied)) > 2e-3


WEIGHTS: dict[str, Callable[[int, int], Tensors]] = {
    # rows and columns of a layer; from quantization/layers.py: `WeightOnlyQuantLinear` takes what
    # it is to round, `WeightOnlyGroupwiseQuantLinear` two 4-bit rows in a byte, `FP8Linear` two
    # scales
    "fp16": lambda n, k: {"weight": ("F16", (n, k))},
    "int8": lambda n, k: {"weight": ("F16", (n, k))},
    "int4_awq": lambda n, k: {
        "weight": ("I8", (n // 2, k)),
        "weights_scaling_factor": ("F16", (n, k // GROUP)),
        "prequant_scaling_factor": ("F16", (k,)),
    },
    "fp8": lambda n, k: {
        "weight": ("F8_E4M3", (n, k)),
        "weights_scaling_factor": ("F32", (1,)),
        "activation_scaling_factor": ("F32", (1,)),
    },
}


@pytest.mark.parametrize("kv", ["fp16", "int8", "fp8"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_tensors_are_those_that_the_loader_asks_for(
    precision: str, kv: str, made: Callable[..., Made]
) -> None:
    """By hand from `PretrainedModel.load`, `preprocess_weights` (models/modeling_utils.py), the
    layers of quantization/layers.py and layers/attention.py, of TensorRT-LLM 1.2."""
    found = {
        name: (dtype, value.shape)
        for name, (dtype, value) in tensors(made(precision, kv).checkpoint / WEIGHTS_FILE).items()
    }
    layers: Tensors = {}
    for index in range(2):
        name = f"transformer.layers.{index}"
        layers[f"{name}.input_layernorm.weight"] = ("F16", (128,))
        layers[f"{name}.post_layernorm.weight"] = ("F16", (128,))
        if kv != "fp16":
            layers[f"{name}.attention.kv_cache_scaling_factor"] = ("F32", (1,))
        for layer, rows, columns in (
            ("attention.qkv", 4 * 32 + 2 * 2 * 32, 128),
            ("attention.dense", 128, 128),
            ("mlp.fc", 192, 128),
            ("mlp.gate", 192, 128),
            ("mlp.proj", 128, 192),
        ):
            for part, row in WEIGHTS[precision](rows, columns).items():
                layers[f"{name}.{layer}.{part}"] = row
    vocabulary = found["lm_head.weight"][1][0]
    assert found == {
        "transformer.vocab_embedding.weight": ("F16", (vocabulary, 128)),
        **layers,
        "transformer.ln_f.weight": ("F16", (128,)),
        "lm_head.weight": ("F16", (vocabulary, 128)),
    }


def test_the_config_leaves_nothing_to_the_builder(made: Callable[..., Made]) -> None:
    config = json.loads((made("int4_awq").checkpoint / "config.json").read_text())
    assert config["rotary_base"] == 10000.0
    assert config["rotary_scaling"] == {
        "type": "llama3", "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 256,
    }  # fmt: skip
    assert config["quantization"] == {
        "quant_algo": "W4A16_AWQ", "kv_cache_quant_algo": None, "group_size": 64,
        "has_zero_point": False, "pre_quant_scale": True, "exclude_modules": None,
    }  # fmt: skip
    sizes = ("num_attention_heads", "num_key_value_heads", "head_size", "intermediate_size")
    assert [config[name] for name in sizes] == [4, 2, 32, 192]
    assert config["position_embedding_type"] == "rope_gpt_neox"
    assert (config["architecture"], config["dtype"]) == ("LlamaForCausalLM", "float16")


def test_matrices_of_one_product_with_scales_of_their_own_are_refused(
    made: Callable[..., Made], tmp_path: Path
) -> None:
    old = tmp_path / "old"
    shutil.copytree(made("fp8").quantized, old)
    [shard] = old.glob("*.safetensors")
    import torch
    from safetensors.torch import load_file as load_torch
    from safetensors.torch import save_file as save_torch

    values = load_torch(shard)
    values["model.layers.0.self_attn.k_proj.weight_scale"] *= 2
    save_torch({name: torch.clone(value) for name, value in values.items()}, shard)
    with pytest.raises(CheckpointError, match=r"no single scale for .*q_proj"):
        write(old, tmp_path, "fp8")


@pytest.mark.parametrize("text", [None, "no JSON", '{"key": [1.0]}', '{"key": [1], "value": [2]}'])
def test_a_cache_of_unknown_range_is_refused(
    text: str | None, made: Callable[..., Made], tmp_path: Path
) -> None:
    old = tmp_path / "old"
    shutil.copytree(made("int8").quantized, old)
    (old / CACHE_RANGES_FILE).unlink()
    if text is not None:
        (old / CACHE_RANGES_FILE).write_text(text)
    with pytest.raises(CheckpointError, match=CACHE_RANGES_FILE):
        write(old, tmp_path, "int8", "int8")


@pytest.mark.parametrize("text", [None, "{", '{"quantization": {"quant_algo": "W4A8_AWQ"}}'])
def test_what_is_no_such_checkpoint_is_said(
    text: str | None, made: Callable[..., Made], tmp_path: Path
) -> None:
    shutil.copytree(made("fp16").checkpoint, tmp_path / "damaged")
    (tmp_path / "damaged" / "config.json").unlink()
    if text is not None:
        (tmp_path / "damaged" / "config.json").write_text(text)
    with pytest.raises(CheckpointError):
        CheckpointReader(tmp_path / "damaged", context_tokens=8, num_slots=1)
