"""From a precision to ModelOpt's configuration, and the sidecar that says how it was done."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgekit.errors import CheckpointError
from edgekit.model import ModelSpec
from edgekit.models import find_model
from edgekit.precision import PRECISIONS, find_precision
from edgekit.quantize.recipe import (
    RECIPE_FILE,
    Recipe,
    choose_group_size,
    modelopt_config,
    read_recipe,
)


def spec(hidden: int, intermediate: int, *, heads: int = 4, head_dim: int = 16) -> ModelSpec:
    return ModelSpec(
        family="llama",
        num_layers=1,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_query_heads=heads,
        num_kv_heads=heads,
        head_dim=head_dim,
        vocab_size=8,
        max_context_tokens=8,
        rms_norm_eps=1e-5,
        rope_theta=1e4,
    )


@pytest.mark.parametrize(
    ("hidden", "intermediate", "heads", "head_dim", "wanted", "expected"),
    [
        (4096, 14336, 32, 128, 128, 128),  # Llama 8B: 14336 = 112 x 128
        (4096, 14336, 32, 128, 32, 32),  # never more than wanted
        (576, 1536, 9, 64, 128, 64),  # SmolLM2: 576 = 9 x 64
        (64, 160, 4, 16, 128, 32),  # 160 = 5 x 32
        (64, 48, 4, 16, 128, 16),  # 48 = 3 x 16
        (128, 128, 3, 16, 128, 16),  # o_proj reads 3 x 16 = 48 inputs
    ],
)
def test_the_group_is_the_largest_that_divides_every_width(
    hidden: int, intermediate: int, heads: int, head_dim: int, wanted: int, expected: int
) -> None:
    found = choose_group_size(spec(hidden, intermediate, heads=heads, head_dim=head_dim), wanted)
    assert found == expected


def test_widths_without_a_group_are_refused_with_a_way_out() -> None:
    # 72 = 9 x 8: no group of 16
    with pytest.raises(CheckpointError, match="divides the layer widths 64, 72, 160") as caught:
        choose_group_size(spec(72, 160), 128)
    assert caught.value.hint is not None
    assert "--precision int8" in caught.value.hint


def test_fixed_groups_are_refused_where_no_layer_has_them() -> None:
    assert choose_group_size(spec(192, 256), 128, is_fixed=True) == 128
    with pytest.raises(CheckpointError, match="no group of 128 weights divides the layer widths"):
        choose_group_size(spec(192, 320), 128, is_fixed=True)


@pytest.mark.parametrize("kept", [(), ("down_proj",), ("q_proj", "up_proj")])
def test_modelopt_is_told_to_leave_layers_alone(kept: tuple[str, ...]) -> None:
    config = modelopt_config(find_precision("int4_awq"), 128, kept=kept)
    # the last that fits decides
    after = config["quant_cfg"][len(config["quant_cfg"]) - len(kept) :]
    assert after == [{"quantizer_name": f"*{name}*", "enable": False} for name in kept]


def test_the_default_model_keeps_groups_of_128() -> None:
    assert choose_group_size(find_model("Llama-3.1-Nemotron-Nano-8B-v1").spec, 128) == 128


@pytest.mark.parametrize("group", [16, 32, 128])
def test_the_group_reaches_modelopt(group: int) -> None:
    config = modelopt_config(find_precision("int4_awq"), group)
    rows = [r for r in config["quant_cfg"] if r["quantizer_name"] == "*weight_quantizer"]
    assert [row["cfg"]["block_sizes"] for row in rows] == [{-1: group, "type": "static"}]


def test_modelopt_s_own_configuration_is_not_changed() -> None:
    import modelopt.torch.quantization as mtq

    before = repr(mtq.INT4_AWQ_CFG)
    modelopt_config(find_precision("int4_awq"), 16)
    assert repr(mtq.INT4_AWQ_CFG) == before


@pytest.mark.parametrize("name", [n for n, p in PRECISIONS.items() if p.modelopt_config])
def test_every_precision_names_a_configuration_of_modelopt(name: str) -> None:
    assert modelopt_config(find_precision(name), None)["quant_cfg"]


def test_there_is_nothing_to_quantize_at_fp16() -> None:
    with pytest.raises(ValueError, match="fp16"):
        modelopt_config(find_precision("fp16"), None)


def recipe() -> Recipe:
    return Recipe(
        precision="int8",
        group_size=None,
        includes_head=False,
        calibration_source="bundled",
        calibration_sha256="0",
        calibration_samples=1,
        calibration_tokens=2,
        seed=3,
        algorithm="max",
        versions={"torch": "2"},
        checkpoint_sha256="1",
    )


def test_the_sidecar_is_read_back_as_written(tmp_path: Path) -> None:
    recipe().write(tmp_path)
    found = read_recipe(tmp_path)
    assert found["precision"] == "int8"
    assert found["seed"] == 3
    assert list(found) == sorted(found)


def test_a_directory_without_a_sidecar_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a checkpoint that edgekit quantized") as caught:
        read_recipe(tmp_path)
    assert caught.value.hint is not None


@pytest.mark.parametrize("text", ["", "{", "\udcff", '"int8"', "{}", "[1]"])
def test_a_damaged_sidecar_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / RECIPE_FILE).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(CheckpointError):
        read_recipe(tmp_path)


def test_keys_of_the_sidecar_are_sorted(tmp_path: Path) -> None:
    recipe().write(tmp_path)
    text = (tmp_path / RECIPE_FILE).read_text()
    assert text == json.dumps(json.loads(text), indent=2, sort_keys=True) + "\n"
