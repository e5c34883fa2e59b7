from __future__ import annotations

import json
from dataclasses import replace

import pytest

from edgekit.errors import CheckpointError, InputError
from edgekit.model import BlockSpec, ModelSpec, RopeScaling
from edgekit.models import DEFAULT_MODEL, find_model, list_models


@pytest.mark.parametrize("name", list_models())
def test_every_known_model_loads_and_is_named_after_its_file(name: str) -> None:
    model = find_model(name)
    assert model.name == name
    assert model.hub_id.rpartition("/")[2].replace("_", ".") == name
    assert find_model(model.hub_id) == model
    assert model.source
    assert ModelSpec.from_dict(model.spec.to_dict()) == model.spec
    assert ModelSpec.from_dict(json.loads(json.dumps(model.spec.to_dict()))) == model.spec


def test_nemotron_is_the_default_and_has_the_parameters_of_its_card() -> None:
    # embedding and head 2 x 128256 x 4096 = 1,050,673,152
    # a layer: q, o 4096^2 each, k, v 1024 x 4096 each, MLP 3 x 4096 x 14336 = 218,103,808; x 32
    # norms 65 x 4096 = 266,240
    spec = find_model(DEFAULT_MODEL).spec
    assert DEFAULT_MODEL == "Llama-3.1-Nemotron-Nano-8B-v1"
    assert spec.num_params == 1_050_673_152 + 6_979_321_856 + 266_240 == 8_030_261_248
    assert spec.rope_scaling == RopeScaling(kind="llama3", factor=8.0)


def test_smollm2_counts_its_tied_table_once() -> None:
    # table 49152 x 576 = 28,311,552; a layer 576 x (2 x 576 + 2 x 192 + 3 x 1536) = 3,538,944; x 30
    # norms 61 x 576 = 35,136
    spec = find_model("SmolLM2-135M-Instruct").spec
    assert spec.num_params == 28_311_552 + 106_168_320 + 35_136 == 134_515_008


def test_llama_8b_has_the_shape_of_the_model_made_from_it() -> None:
    model = find_model("meta-llama/Llama-3.1-8B-Instruct")
    assert model.spec == find_model(DEFAULT_MODEL).spec
    assert (model.convention, model.why_not_built) == (None, None)


def test_super_has_the_parameters_of_its_checkpoint() -> None:
    # 49 of 80 blocks have attention: 8192 x (2 x 8192 + 2 x 1024) = 150,994,944 each
    # MLP sizes: 49 blocks with attention, one of them 14336 wide and 48 28672;
    #   of the others 14336 x 5, 17920, 28672, 7168 x 10, 5632 x 8, 2816 x 6: 1,642,496 in all
    # norms: 49 before attention, 80 before MLPs, 1 at the end
    spec = find_model("Llama-3.3-Nemotron-Super-49B-v1").spec
    attention = 49 * 150_994_944
    mlp = 3 * 8192 * (14336 + 48 * 28672 + 71_680 + 17_920 + 28_672 + 71_680 + 45_056 + 16_896)
    assert spec.linear_params == attention + mlp == 7_398_752_256 + 40_365_981_696
    assert spec.embedding_params == 128256 * 8192 == 1_050_673_152
    assert spec.small_params == 130 * 8192
    assert spec.num_params == 49_867_145_216
    assert spec.kv_values_per_token == 2 * 49 * 8 * 128


def test_ultra_has_the_parameters_of_its_checkpoint() -> None:
    # 64 of 162 blocks have attention: 16384 x (2 x 16384 + 2 x 1024) = 570,425,344 each
    # 81 have an MLP: 34 of size 53248, 19 of 26624, 10 of 21504, 6 of 16128, 4 of 37376, 2 of
    #   32000, and 5376, 10752, 399360, 425984, 343040, 301056
    # norms: 64 + 81 + 1; 81 blocks are empty
    spec = find_model("Llama-3.1-Nemotron-Ultra-253B-v1").spec
    sizes = 34 * 53248 + 19 * 26624 + 10 * 21504 + 6 * 16128 + 4 * 37376 + 2 * 32000
    sizes += 5376 + 10752 + 399360 + 425984 + 343040 + 301056
    assert spec.linear_params == 64 * 570_425_344 + 3 * 16384 * sizes
    assert spec.embedding_params == 128256 * 16384 == 2_101_346_304
    assert spec.small_params == 146 * 16384
    assert spec.num_params == 253_401_268_224
    assert spec.kv_values_per_token == 2 * 64 * 8 * 128
    empty = BlockSpec(attention="none", mlp="none")
    assert (len(spec.blocks), spec.blocks.count(empty)) == (162, 81)
    # layers 9 to 12 and 18 to 23 have no parameters (ModelCloud/GPTQModel#1518)
    assert {*spec.blocks[9:13], *spec.blocks[18:24]} == {empty}


@pytest.mark.parametrize("name", ["Super-49B", "Ultra-253B"])
def test_the_siblings_are_planned_but_not_built_and_think_as_nano_does(name: str) -> None:
    (full,) = (known for known in list_models() if name in known)
    model = find_model(full)
    assert model.spec.family == "nemotron-nas"
    assert model.why_not_built is not None
    assert model.why_not_built.startswith("its blocks differ in shape")
    assert model.convention == find_model(DEFAULT_MODEL).convention
    assert model.convention is not None
    assert find_model(DEFAULT_MODEL).why_not_built is None


SMALL = ModelSpec(
    family="nemotron-nas", num_layers=4, hidden_size=8, intermediate_size=32, num_query_heads=4,
    num_kv_heads=2, head_dim=4, vocab_size=10, max_context_tokens=64, rms_norm_eps=1e-5,
    rope_theta=1e4,
)  # fmt: skip


def test_every_kind_of_block_is_counted() -> None:
    # a full block: q 8 x 16, k and v 8 x 8 each, o 16 x 8, MLP 3 x 8 x 32 = 1152; outputs
    # 16 + 8 + 8 + 8 + 32 + 32 + 8 = 112; two norms of 8
    full = BlockSpec(num_kv_heads=2, intermediate_size=32)
    # linear halves: 8 x 8 each, 8 outputs and a norm each
    linear = BlockSpec(attention="linear", mlp="linear")
    # one KV head, k and v 8 x 4 each; no MLP, one norm
    narrow = BlockSpec(num_kv_heads=1, mlp="none")
    empty = BlockSpec(attention="none", mlp="none")
    spec = replace(SMALL, blocks=(full, linear, narrow, empty))
    assert spec.linear_params == 1152 + 128 + (128 + 32 + 32 + 128)
    assert spec.linear_outputs == 112 + 16 + (16 + 4 + 4 + 8)
    assert spec.small_params == 16 + 16 + 8 + 0 + 8
    assert spec.kv_values_per_token == 2 * 4 * (2 + 1)
    assert ModelSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_blocks_that_are_alike_count_as_a_model_without_blocks() -> None:
    block = BlockSpec(num_kv_heads=2, intermediate_size=32)
    biased = replace(SMALL, has_qkv_bias=True, has_o_bias=True, has_mlp_bias=True, has_qk_norm=True)
    spec = replace(biased, blocks=(block,) * 4)
    assert spec.linear_params == biased.linear_params == 4 * 1152
    assert spec.linear_outputs == biased.linear_outputs == 4 * 112
    # of a block: norms 2 x 8 + 2 x 4, biases 16 + 8 + 8 of q, k, v, 8 of o, 32 + 32 + 8 of the MLP
    assert spec.small_params == biased.small_params == 4 * (24 + 32 + 8 + 72) + 8
    assert spec.kv_values_per_token == biased.kv_values_per_token == 2 * 4 * 2 * 4
    assert spec.to_dict()["blocks"] == [
        {
            "count": 4,
            "num_kv_heads": 2,
            "intermediate_size": 32,
            "attention": "gqa",
            "mlp": "gated",
        }
    ]
    assert biased.to_dict()["blocks"] == []


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ([{"num_kv_heads": 2, "intermediate_size": 32}], "1 blocks are described, of 4"),
        ([{"count": 4, "num_kv_heads": 1, "intermediate_size": 32}], "up to 1 KV heads"),
        ([{"count": 4, "num_kv_heads": 2, "intermediate_size": 16}], "an MLP size of 16"),
        ([{"num_kv_heads": 0, "intermediate_size": 32}], "attention `gqa` with 0 KV heads"),
        ([{"attention": "none", "num_kv_heads": 1}], "attention `none` with 1 KV heads"),
        ([{"num_kv_heads": 2, "mlp": "linear", "intermediate_size": 8}], "MLP `linear` of size 8"),
        (
            [
                {"num_kv_heads": 2, "intermediate_size": 32},
                {"count": 3, "num_kv_heads": 3, "intermediate_size": 32},
            ],
            "4 query heads cannot share 3 KV heads",
        ),
    ],
)
def test_blocks_that_do_not_make_a_model_are_refused(
    blocks: list[dict[str, object]], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        ModelSpec.from_dict({**SMALL.to_dict(), "blocks": blocks})


@pytest.mark.parametrize(
    "name",
    [
        "Llama-3.1-Nemotron-Nano-8B-v1",
        "nvidia/Llama-3.1-Nemotron-Nano-8B-v1",
        "nvidia/Llama-3.1-Nemotron-Nano-8B-v1@main",
        "a-mirror/Llama-3.1-Nemotron-Nano-8B-v1",
    ],
)
def test_a_model_is_found_by_name_and_by_hub_id(name: str) -> None:
    assert find_model(name).name == DEFAULT_MODEL


@pytest.mark.parametrize(
    "name",
    [
        "llama", "", ".", "nvidia/", "./Llama-3.1-Nemotron-Nano-8B-v1",
        "/models/Llama-3.1-Nemotron-Nano-8B-v1", "~/Llama-3.1-Nemotron-Nano-8B-v1",
        "models/nvidia/Llama-3.1-Nemotron-Nano-8B-v1",
    ],
)  # fmt: skip
def test_what_is_no_known_model_is_refused_and_a_path_is_never_taken_for_one(name: str) -> None:
    with pytest.raises(InputError, match="unknown model: ") as caught:
        find_model(name)
    assert caught.value.hint is not None
    assert "SmolLM2-135M-Instruct" in caught.value.hint
