"""Each trap of Edge-LLM 0.11.0 is refused from headers alone, with its reason."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgekit.backends.edge_llm.formats import (
    FORMATS,
    layer_precision,
    linear_layers,
    linear_parts,
)
from edgekit.backends.edge_llm.labels import read_labels
from edgekit.backends.edge_llm.preflight import find_problems, require_loadable
from edgekit.checkpoint.safetensors import DTYPE_BYTES, encode_header
from edgekit.errors import CheckpointError
from edgekit.families import read_spec
from edgekit.footprint import kept_layers
from edgekit.models import find_model
from edgekit.profile import find_profile

CONFIG: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 384, "rms_norm_eps": 1e-5,
    "max_position_embeddings": 2048, "rope_theta": 10000.0, "hidden_act": "silu",
    "tie_word_embeddings": False,
}  # fmt: skip
PRECISIONS = sorted(FORMATS)
Tensors = dict[str, tuple[str, tuple[int, ...]]]
Q = "model.layers.0.self_attn.q_proj"
NARROW = {"hidden_size": 192, "intermediate_size": 256, "num_attention_heads": 6}
"""192 inputs have no groups of 128, the 256 of down_proj have."""
LEFT = ["lm_head", "*self_attn*", "*gate_proj", "*up_proj"]


def write(
    directory: Path,
    precision: str,
    *,
    kv: bool = False,
    config: dict[str, Any] | None = None,
    labels: dict[str, Any] | None = None,
    change: Callable[[Tensors], object] = lambda tensors: None,
) -> Path:
    """A checkpoint of zeros, as ModelOpt lays it out."""
    whole = {**CONFIG, **(config or {})}
    spec = read_spec(whole)
    tensors: Tensors = {}
    for layer, rows, columns in linear_layers(spec):
        own = layer_precision(precision, layer, columns)
        for suffix, part in linear_parts(own, rows, columns).items():
            tensors[f"{layer}.{suffix}"] = (part.dtypes[0], part.shape)
    if kv:
        for index in range(spec.num_layers):
            for scale in ("k_proj.k_scale", "v_proj.v_scale"):
                tensors[f"model.layers.{index}.self_attn.{scale}"] = ("F32", ())
    change(tensors)
    directory.mkdir(exist_ok=True)
    header = encode_header(
        {name: shape for name, (_, shape) in tensors.items()},
        {name: kind for name, (kind, _) in tensors.items()},
    )
    size = sum(DTYPE_BYTES[kind] * math.prod(shape) for kind, shape in tensors.values())
    (directory / "model.safetensors").write_bytes(header + bytes(size))
    (directory / "config.json").write_text(json.dumps(whole))
    (directory / "chat_template.jinja").write_text("{{ messages }}")
    said: dict[str, Any] = {
        "quant_algo": FORMATS[precision].quant_algo,
        "kv_cache_quant_algo": "FP8" if kv else None,
        "exclude_modules": ["lm_head"],
    }
    if precision == "int4_awq":
        said["group_size"] = 128
    said |= labels or {}
    (directory / "hf_quant_config.json").write_text(json.dumps({"quantization": said}))
    return directory


def problems(directory: Path, precision: str, kv: str = "fp16") -> list[str]:
    return list(find_problems(directory, precision=precision, kv_precision=kv))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_edgekit_writes_is_loadable(precision: str, tmp_path: Path) -> None:
    assert problems(write(tmp_path, precision), precision) == []


@pytest.mark.parametrize("device", ["jetson-thor", "jetson-orin"])
@pytest.mark.parametrize("model", ["SmolLM2-135M-Instruct", "Llama-3.1-Nemotron-Nano-8B-v1"])
def test_what_is_planned_to_stay_at_fp16_is_what_stays(model: str, device: str) -> None:
    spec, profile = find_model(model).spec, find_profile(device)
    for precision in profile.precisions:
        storage = profile.storage_for(precision, spec.num_params)
        stays = {
            name.rpartition(".")[2]: None
            for name, _, columns in linear_layers(spec)
            if layer_precision(precision, name, columns) != precision
        }
        assert kept_layers(spec, storage) == tuple(stays)


@pytest.mark.parametrize("precision", ["fp16", "int8_sq", "fp8", "nvfp4"])
def test_with_an_fp8_cache_too(precision: str, tmp_path: Path) -> None:
    assert problems(write(tmp_path, precision, kv=True), precision, "fp8") == []


def test_weight_only_int8_would_be_exported_without_its_scales(tmp_path: Path) -> None:
    made = write(tmp_path, "int8_sq", labels={"quant_algo": "W8A16"})
    with pytest.raises(
        CheckpointError, match=r"weight-only int8 \(W8A16\).*without a word"
    ) as told:
        require_loadable(made, precision="int8_sq", kv_precision="fp16")
    assert told.value.hint is not None
    assert "edgekit quantize --profile jetson-thor" in told.value.hint


@pytest.mark.parametrize("algo", ["W4A8_AWQ", "NVFP4_AWQ", "MIXED_PRECISION", "INT3"])
def test_an_unknown_algorithm_would_be_fp16(algo: str, tmp_path: Path) -> None:
    made = write(tmp_path, "int8_sq", labels={"quant_algo": algo})
    with pytest.raises(CheckpointError, match="Edge-LLM cannot be given"):
        read_labels(made)


@pytest.mark.parametrize("method", ["compressed-tensors", "awq", "gptq", "bitsandbytes"])
def test_checkpoints_of_other_tools_are_refused(method: str, tmp_path: Path) -> None:
    made = write(tmp_path, "fp16", config={"quantization_config": {"quant_method": method}})
    with pytest.raises(CheckpointError, match="Edge-LLM cannot be given"):
        read_labels(made)


def test_an_fp8_cache_beside_int4_would_be_dropped(tmp_path: Path) -> None:
    made = write(tmp_path, "int4_awq", kv=True)
    assert any("dropped by its export" in each for each in problems(made, "int4_awq", "fp8"))


def test_an_fp8_cache_goes_by_its_scales_not_by_its_label(tmp_path: Path) -> None:
    unlabelled = write(tmp_path / "a", "fp8", kv=True, labels={"kv_cache_quant_algo": None})
    told = problems(unlabelled, "fp8")
    assert any("its cache would be FP8, asked or not" in each for each in told)

    def lose(tensors: Tensors) -> None:
        del tensors["model.layers.1.self_attn.v_proj.v_scale"]

    lost = write(tmp_path / "b", "fp8", kv=True, change=lose)
    assert any(
        "v_scale is missing: its cache would be FP16" in e for e in problems(lost, "fp8", "fp8")
    )


@pytest.mark.parametrize("precision", ["int8_sq", "int4_awq", "fp8", "nvfp4"])
def test_a_layer_without_its_scale_would_stay_at_fp16(precision: str, tmp_path: Path) -> None:
    made = write(tmp_path, precision, change=lambda tensors: tensors.pop(f"{Q}.weight_scale"))
    assert f"{Q}.weight_scale is missing" in problems(made, precision)[0]


def test_an_excluded_layer_would_stay_at_fp16(tmp_path: Path) -> None:
    made = write(tmp_path, "fp8", labels={"exclude_modules": ["lm_head", "*mlp.down_proj"]})
    told = problems(made, "fp8")
    assert len(told) == 2  # one in each layer
    assert "down_proj is excluded from quantization: it would stay at FP16" in told[0]


@pytest.mark.parametrize(
    ("name", "kind", "shape", "message"),
    [
        (f"{Q}.weight", "I8", (128, 128), "is I8, not U8"),
        (f"{Q}.weight", "U8", (128, 64), r"is [128, 64], not [64, 128]"),
        (f"{Q}.weight_scale", "F32", (1, 128), r"is [1, 128], not [128, 1]"),
        (f"{Q}.pre_quant_scale", "F32", (128,), "is F32, not F16"),
    ],
)
def test_a_tensor_of_another_form_is_named(
    name: str, kind: str, shape: tuple[int, ...], message: str, tmp_path: Path
) -> None:
    made = write(tmp_path, "int4_awq", change=lambda t: t.update({name: (kind, shape)}))
    assert any(f"{name} {message}" in each for each in problems(made, "int4_awq"))


def test_int4_kernels_have_groups_of_128_alone(tmp_path: Path) -> None:
    small = write(tmp_path / "a", "int4_awq", labels={"group_size": 64})
    assert "in groups of 64" in problems(small, "int4_awq")[0]
    none = {**NARROW, "intermediate_size": 320}
    told = problems(write(tmp_path / "b", "int4_awq", config=none), "int4_awq")
    assert told == ["no layer has inputs in whole groups of 128, which its INT4 kernels take alone"]


def test_layers_without_such_groups_stay_at_fp16_and_no_other_may(tmp_path: Path) -> None:
    made = write(tmp_path / "a", "int4_awq", config=NARROW, labels={"exclude_modules": LEFT})
    assert problems(made, "int4_awq") == []
    more = [*LEFT, "model.layers.1.mlp.down_proj"]
    made = write(tmp_path / "b", "int4_awq", config=NARROW, labels={"exclude_modules": more})
    assert problems(made, "int4_awq") == [
        "model.layers.1.mlp.down_proj is excluded from quantization: it would stay at FP16"
    ]


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("weight", "is U8, not F16 or BF16 or F32"),
        ("weight_scale", f"{Q} has a weight_scale, but stays at FP16 in int4_awq"),
        ("pre_quant_scale", f"{Q} has a pre_quant_scale, but stays at FP16 in int4_awq"),
    ],
)
def test_a_layer_without_such_groups_may_not_be_quantized(
    part: str, message: str, tmp_path: Path
) -> None:
    added = {f"{Q}.{part}": ("U8" if part == "weight" else "F16", (96, 192))}
    made = write(tmp_path, "int4_awq", config=NARROW, change=lambda t: t.update(added))
    assert message in problems(made, "int4_awq")[0]


def test_int4_kernels_take_multiples_of_64(tmp_path: Path) -> None:
    odd = write(tmp_path, "int4_awq", config={"head_dim": 48, "num_key_value_heads": 1})
    assert any("multiples of 64 alone" in each for each in problems(odd, "int4_awq"))


def test_links_are_read_and_links_to_nothing_are_not(tmp_path: Path) -> None:
    made = write(tmp_path / "blobs", "fp8")
    linked = tmp_path / "snapshot"
    linked.mkdir()
    for path in made.iterdir():
        (linked / path.name).symlink_to(path)
    assert problems(linked, "fp8") == []
    (made / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors is a link to nothing.*cp -rL"):
        require_loadable(linked, precision="fp8", kv_precision="fp16")


def test_pickles_are_not_checked(tmp_path: Path) -> None:
    pickled = write(tmp_path, "fp16")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="pickled"):
        require_loadable(pickled, precision="fp16", kv_precision="fp16")


@pytest.mark.parametrize(
    ("file", "template", "message"),
    [
        ("tokenizer_config.json", "x", None),
        ("tokenizer_config.json", [{"name": "default", "template": "x"}], None),
        ("chat_template.json", {"default": "x"}, None),
        (
            "tokenizer_config.json",
            [{"name": "default", "template": "x"}, {"name": "tool_use", "template": "x"}],
            "tokenizer_config.json has named chat templates, at which its export ends",
        ),
        ("tokenizer_config.json", [{"name": "rag", "template": "x"}], "has named chat templates"),
        ("tokenizer_config.json", None, "it has no chat template"),
    ],
)
def test_one_chat_template_is_needed(
    file: str, template: Any, message: str | None, tmp_path: Path
) -> None:
    made = write(tmp_path, "fp8")
    (made / "chat_template.jinja").unlink()
    (made / file).write_text(json.dumps({"chat_template": template}))
    told = problems(made, "fp8")
    assert len(told) == (message is not None)
    assert (message or "") in "".join(told)


def test_further_chat_templates_are_refused(tmp_path: Path) -> None:
    made = write(tmp_path, "fp8")
    (made / "additional_chat_templates").mkdir()
    assert "additional_chat_templates" in problems(made, "fp8")[0]


def test_a_checkpoint_of_another_precision_is_not_what_was_asked(tmp_path: Path) -> None:
    assert "labelled fp8, wanted is nvfp4" in problems(write(tmp_path, "fp8"), "nvfp4")[0]
