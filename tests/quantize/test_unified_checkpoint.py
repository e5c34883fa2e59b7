"""Checkpoints for TensorRT-LLM's PyTorch backend: what its loader asks for, and read back as it
reads them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from edgekit.backends.tensorrt_llm.unified_reader import UnifiedReader
from edgekit.checkpoint import read_checkpoint
from edgekit.checkpoint.safetensors import read_header
from edgekit.checkpoint.tensors import read_tensor
from edgekit.errors import CheckpointError
from edgekit.export import export_unified_checkpoint
from edgekit.export.unified import QUANT_FILE, WEIGHTS_FILE
from edgekit.profile import find_profile
from tests.quantize.checkpoints import GROUP, Made, Tensors, maker, measure_kl

PRECISIONS = ["fp16", "int8", "int4_awq", "fp8"]
STORAGE = find_profile("rtx-4090").storage


@pytest.fixture(scope="module")
def made(
    make_tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Made]:
    """`made(precision, kv, is_tied=False)`: what the quantize step wrote, and the checkpoint of
    it; read only."""
    return maker(make_tiny, tmp_path_factory, write)


def write(quantized: Path, target: Path, precision: str, kv: str = "fp16") -> None:
    export_unified_checkpoint(
        read_checkpoint(quantized), STORAGE[precision], target, context_tokens=128, kv_precision=kv
    )


kl_to_simulation = partial(measure_kl, UnifiedReader)


@pytest.mark.parametrize("is_tied", [False, True])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_reader_finds_modelopt_s_simulation(
    precision: str, is_tied: bool, made: Callable[..., Made]
) -> None:
    files = made(precision, is_tied=is_tied)
    assert kl_to_simulation(files, keeps_activations=precision == "fp8") <= 1e-3


def test_an_fp8_cache_costs_little(made: Callable[..., Made]) -> None:
    files = made("int8", "fp8")
    assert kl_to_simulation(files, keeps_activations=True) <= 1e-3
    assert 1e-6 < kl_to_simulation(files) < 0.05


def test_slots_chunks_and_single_tokens_give_what_one_pass_gives(
    made: Callable[..., Made],
) -> None:
    session = UnifiedReader(made("int4_awq").checkpoint, context_tokens=64, num_slots=2)
    ids = list(range(5, 45))
    whole = session.prefill(0, ids, num_logits=40)
    session.prefill(1, ids[:17])
    parts = [session.prefill(1, ids[17:30], num_logits=13)]
    parts += [session.decode([1], [token]) for token in ids[30:]]
    np.testing.assert_allclose(np.concatenate(parts), whole[17:], atol=1e-4)


WEIGHTS: dict[str, Callable[[int, int], Tensors]] = {
    # by hand from `create_weights` and `load_weights_*` of the methods in _torch/modules/linear.py:
    # `UnquantizedLinearMethod`, `WeightOnlyQuantLinearMethod`, `W4A16_AWQ_LinearMethod` (which asks
    # for pre_quant_scale of layers that are not merged), `FP8QDQLinearMethod`
    "fp16": lambda n, k: {"weight": ("F16", (n, k))},
    "int8": lambda n, k: {"weight": ("I8", (n, k)), "weight_scale": ("F16", (n,))},
    "int4_awq": lambda n, k: {
        "weight": ("U8", (n // 2, k)),
        "weight_scale": ("F16", (n, k // GROUP)),
    },
    "fp8": lambda n, k: {
        "weight": ("F8_E4M3", (n, k)),
        "weight_scale": ("F32", ()),
        "input_scale": ("F32", ()),
    },
}


@pytest.mark.parametrize("is_tied", [False, True])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_tensors_are_those_that_the_loader_asks_for(
    precision: str, is_tied: bool, made: Callable[..., Made]
) -> None:
    header = read_header(made(precision, is_tied=is_tied).checkpoint / WEIGHTS_FILE)
    found = {name: (info.dtype, tuple(info.shape)) for name, info in header.items()}
    layers: Tensors = {}
    for index in range(2):
        name = f"model.layers.{index}"
        layers[f"{name}.input_layernorm.weight"] = ("F16", (128,))
        layers[f"{name}.post_attention_layernorm.weight"] = ("F16", (128,))
        for layer, rows, columns in (
            ("self_attn.q_proj", 128, 128),
            ("self_attn.k_proj", 64, 128),
            ("self_attn.v_proj", 64, 128),
            ("self_attn.o_proj", 128, 128),
            ("mlp.gate_proj", 192, 128),
            ("mlp.up_proj", 192, 128),
            ("mlp.down_proj", 128, 192),
        ):
            for part, row in WEIGHTS[precision](rows, columns).items():
                layers[f"{name}.{layer}.{part}"] = row
            if precision == "int4_awq" and layer in ("self_attn.o_proj", "mlp.down_proj"):
                layers[f"{name}.{layer}.pre_quant_scale"] = ("F16", (columns,))
    table = found["model.embed_tokens.weight"]
    expected = {"model.embed_tokens.weight": table, **layers, "model.norm.weight": ("F16", (128,))}
    # `_load_weights_impl` passes over the head of a tied model (models/modeling_utils.py)
    assert found == expected | ({} if is_tied else {"lm_head.weight": table})


@pytest.mark.parametrize("precision", ["int8", "int4_awq", "fp8"])
def test_the_codes_are_those_that_modelopt_wrote(precision: str, made: Callable[..., Made]) -> None:
    files = made(precision)
    [shard] = files.quantized.glob("*.safetensors")
    theirs, ours = read_header(shard), read_header(files.checkpoint / WEIGHTS_FILE)
    names = [name for name in ours if name.endswith("_proj.weight")]
    assert len(names) == 14
    for name in names:
        assert ours[name].dtype == theirs[name].dtype
        np.testing.assert_array_equal(read_tensor(ours[name]), read_tensor(theirs[name]), name)


@pytest.mark.parametrize(
    "damage",
    ["gate and up swapped", "nibbles swapped", "scales of another layer", "rope forgotten"],
)
def test_a_mistake_in_the_layout_is_seen(
    damage: str, made: Callable[..., Made], tmp_path: Path
) -> None:
    files = made("int4_awq")
    copied = tmp_path / "checkpoint"
    shutil.copytree(files.checkpoint, copied)
    values = load_file(copied / WEIGHTS_FILE)
    layer = "model.layers.1"
    if damage == "gate and up swapped":
        for part in ("weight", "weight_scale"):
            one, other = f"{layer}.mlp.gate_proj.{part}", f"{layer}.mlp.up_proj.{part}"
            values[one], values[other] = values[other], values[one]
    elif damage == "nibbles swapped":
        bits = values[f"{layer}.mlp.down_proj.weight"]
        values[f"{layer}.mlp.down_proj.weight"] = bits << 4 | bits >> 4
    elif damage == "scales of another layer":
        scale = "self_attn.q_proj.weight_scale"
        values[f"{layer}.{scale}"] = values[f"{layer}.{scale}"].flip(0)
    else:
        config = json.loads((copied / "config.json").read_text())
        (copied / "config.json").write_text(json.dumps({**config, "rope_scaling": None}))
    save_file({name: value.contiguous() for name, value in values.items()}, copied / WEIGHTS_FILE)
    assert kl_to_simulation(Made(files.quantized, copied)) > 2e-3


def test_the_configs_say_all_that_the_loader_reads(made: Callable[..., Made]) -> None:
    from transformers import AutoConfig

    files = made("int4_awq", "fp8")
    config = json.loads((files.checkpoint / "config.json").read_text())
    assert (config["architectures"], config["model_type"]) == (["LlamaForCausalLM"], "llama")
    assert (config["torch_dtype"], config["tie_word_embeddings"]) == ("float16", False)
    assert config["rope_scaling"] == {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 256,
    }  # fmt: skip
    said = json.loads((files.checkpoint / QUANT_FILE).read_text())
    assert said["producer"]["name"] == "modelopt"
    assert said["quantization"] == {
        "quant_algo": "W4A16_AWQ", "kv_cache_quant_algo": "FP8", "group_size": 64,
        "has_zero_point": False, "pre_quant_scale": True, "exclude_modules": ["lm_head"],
    }  # fmt: skip
    read = AutoConfig.from_pretrained(files.checkpoint)  # both spellings of rope are one there
    original = AutoConfig.from_pretrained(files.quantized)
    for name in ("rope_parameters", "head_dim", "rms_norm_eps", "num_key_value_heads", "vocab_size",
                 "eos_token_id", "max_position_embeddings"):  # fmt: skip
        assert getattr(read, name) == getattr(original, name), name


@pytest.mark.parametrize(("precision", "kv", "algo"), [
    ("fp16", "fp8", None), ("int8", "fp16", "W8A16"), ("fp8", "fp8", "FP8"),
])  # fmt: skip
def test_the_quantization_is_named(
    precision: str, kv: str, algo: str | None, made: Callable[..., Made]
) -> None:
    said = json.loads((made(precision, kv).checkpoint / QUANT_FILE).read_text())["quantization"]
    assert said["quant_algo"] == algo
    assert said["kv_cache_quant_algo"] == (None if kv == "fp16" else "FP8")
    assert not (made("fp16").checkpoint / QUANT_FILE).exists()


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("config.json", None),
        ("config.json", "{"),
        (QUANT_FILE, '{"quantization": {"quant_algo": "W4A8_AWQ"}}'),
        (QUANT_FILE, '{"quantization": {"kv_cache_quant_algo": "INT8"}}'),
    ],
)
def test_what_is_no_such_checkpoint_is_said(
    file: str, text: str | None, made: Callable[..., Made], tmp_path: Path
) -> None:
    shutil.copytree(made("fp16").checkpoint, tmp_path / "damaged")
    (tmp_path / "damaged" / file).unlink(missing_ok=True)
    if text is not None:
        (tmp_path / "damaged" / file).write_text(text)
    with pytest.raises(CheckpointError):
        UnifiedReader(tmp_path / "damaged", context_tokens=8, num_slots=1)
