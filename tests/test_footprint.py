from __future__ import annotations

from dataclasses import replace

import pytest

from edgekit.backends import list_backends
from edgekit.errors import InputError
from edgekit.footprint import (
    FOOTPRINTS,
    find_footprint,
    fitting_group,
    kept_layers,
    kv_cache_bytes,
    loading_bytes,
    read_bytes,
    table_bytes,
    weights_by_class,
    weights_bytes,
    workspace_bytes,
)
from edgekit.models import find_model
from edgekit.profile import Storage, find_profile
from edgekit.units import GIB, MIB

NEMOTRON = find_model("Llama-3.1-Nemotron-Nano-8B-v1").spec
SMOLLM2 = find_model("SmolLM2-135M-Instruct").spec

# of the 8B, by hand:
#   attention  4096 x (4096 + 4096 + 1024 + 1024) x 32 layers = 1,342,177,280
#   MLP        3 x 4096 x 14336 x 32                          = 5,637,144,576
LINEAR_PARAMS = 6_979_321_856
TABLE_PARAMS = 525_336_576  # 128256 x 4096, embedding and head each
NORM_BYTES = 532_480  # 65 norms x 4096, fp16


def test_linear_and_table_weights_of_the_8b_are_those_of_the_model_card() -> None:
    assert NEMOTRON.linear_params == LINEAR_PARAMS
    assert NEMOTRON.embedding_params == TABLE_PARAMS
    assert NEMOTRON.small_params * 2 == NORM_BYTES


@pytest.mark.parametrize(
    ("storage", "expected"),
    [
        # 2 bytes each: (6,979,321,856 + 2 x 525,336,576) x 2
        (Storage(linear_bits=16), 16_059_990_016),
        # 1 byte each; 43,008 output channels a layer (4096 q + 2 x 1024 kv + 4096 o + 2 x 14336
        # gate, up + 4096 down) x 32 layers x 2-byte scale = 2,752,512; both tables at fp16
        (Storage(linear_bits=8), 6_979_321_856 + 2_752_512 + 2_101_346_304),
        # half a byte each, a 2-byte scale per 128 (1/64 byte each): x 33 / 64
        (Storage(linear_bits=4, group_size=128), 3_598_712_832 + 2_101_346_304),
        # 4 bits and an fp8 scale per 16: 4.5 bits each
        (Storage(linear_bits=4, group_size=16, scale_bits=8), 3_925_868_544 + 2_101_346_304),
        # head at 8 bits, 2-byte scale per 32: 8.5 bits each; embedding stays at fp16
        (
            Storage(linear_bits=4, group_size=128, head_bits=8, head_group_size=32),
            3_598_712_832 + 558_170_112 + 1_050_673_152,
        ),
        # head at 8 bits, one 2-byte scale for each of 128,256 rows
        (
            Storage(linear_bits=4, group_size=128, head_bits=8),
            3_598_712_832 + 525_336_576 + 256_512 + 1_050_673_152,
        ),
    ],
    ids=["fp16", "int8", "int4-g128", "nvfp4", "int4-head-int8-g32", "int4-head-int8"],
)
def test_weights_bytes_of_the_8b(storage: Storage, expected: int) -> None:
    assert weights_bytes(NEMOTRON, storage) == expected + NORM_BYTES


def test_a_token_reads_all_but_the_embedding() -> None:
    # 3,598,712,832 linears + 1,050,673,152 fp16 head: the 4.649 GB of INT4 with an fp16 head
    storage = Storage(linear_bits=4, group_size=128)
    assert read_bytes(NEMOTRON, storage) == 3_598_712_832 + 1_050_673_152 + NORM_BYTES


def test_weights_bytes_of_smollm2_on_a_cpu() -> None:
    # linears 30 x (576 x 1536 + 3 x 576 x 1536) = 106,168,320 at 4 + (32 + 4) / 64 bits, which is
    # 4.5625: 60,549,120. Head, 49152 x 576 = 28,311,552, as well: 16,146,432; embedding at 8 + 1:
    # 31,850,496; norms 61 x 576 x 4 = 140,544
    storage = find_profile("cpu").storage_for("int4_awq", SMOLLM2.num_params)
    # and 8 bytes for each of (106,168,320 + 28,311,552) / 64 groups that the kernels packed
    tensors = 60_549_120 + 16_146_432 + 31_850_496 + 140_544
    # prompts have q/k/v of 30 layers, 576 x 960, and of 29 the others at 8 bits, 331,776 +
    # 1,769,472 weights: 77,524,992 bytes and 134,592 outputs x 4; 29 x 884,736 of down_proj at
    # 4.5625 bits once more, and 8 bytes for each of 400,896 groups
    parts = weights_by_class(SMOLLM2, storage)
    assert parts["prompts"] == 77_524_992 + 538_368 + 14_632_704 + 3_207_168
    assert weights_bytes(SMOLLM2, storage) == tensors + 16_809_984 + parts["prompts"]
    several = find_profile("cpu").storage_for("int4_awq", SMOLLM2.num_params, batch=2)
    assert several == replace(storage, prompt_bits=None)
    assert weights_by_class(SMOLLM2, several)["prompts"] == 0
    assert read_bytes(SMOLLM2, storage) == 60_549_120 + 16_146_432 + 140_544


def test_layers_that_fixed_groups_do_not_divide_are_counted_at_fp16() -> None:
    # only down_proj's 1536 inputs have groups of 128: 30 x 576 x 1536 = 26,542,080 weights at
    # 4 + 16/128 bits, 13,685,760 bytes; the other 79,626,240 at 2 bytes; the tied table at fp16;
    # norms 61 x 576 x 2
    storage = find_profile("jetson-thor").storage_for("int4_awq", SMOLLM2.num_params)
    parts = weights_by_class(SMOLLM2, storage)
    assert parts["linears"] == 13_685_760 + 159_252_480
    assert weights_bytes(SMOLLM2, storage) == 172_938_240 + 56_623_104 + 70_272
    kept = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj")
    assert kept_layers(SMOLLM2, storage) == kept
    assert kept_layers(NEMOTRON, storage) == ()
    # other kernels have smaller groups, for all layers
    anywhere = replace(storage, keeps_undivided=False)
    assert kept_layers(SMOLLM2, anywhere) == ()


def test_on_a_jetson_a_tied_table_lies_in_memory_twice() -> None:
    # as the head in the engine, and as embedding.safetensors beside it: 49,152 x 576 x 2 bytes
    profile = find_profile("jetson-thor")
    shares = find_footprint("edge-llm", profile).shares_tied_tables
    parts = weights_by_class(SMOLLM2, profile.storage["fp16"], shares_tied_tables=shares)
    assert (parts["head"], parts["embedding"]) == (56_623_104, 56_623_104)


def test_engines_of_other_backends_are_named_as_before() -> None:
    """The text of a row is in the names of what was built from it."""
    row = find_profile("jetson-thor").storage["int4_awq"]
    assert row.keeps_undivided
    assert repr(row) == repr(replace(row, keeps_undivided=False))


@pytest.mark.parametrize(
    ("wanted", "free", "fixed"), [(128, 64, 128), (64, 64, 64), (1024, 64, None), (512, 64, 512)]
)
def test_a_fixed_group_needs_one_layer_that_it_divides(
    wanted: int, free: int, fixed: int | None
) -> None:
    # inputs of 576 = 9 x 64 and 1536 = 3 x 512
    assert fitting_group(SMOLLM2, wanted) == free
    assert fitting_group(SMOLLM2, wanted, is_fixed=True) == fixed


def test_kv_cache_of_the_8b_is_128_kib_a_token_at_fp16() -> None:
    # 2 (K and V) x 32 layers x 8 KV heads x 128 x 2 bytes
    assert kv_cache_bytes(NEMOTRON, context_tokens=1) == 131_072
    assert kv_cache_bytes(NEMOTRON, context_tokens=8192) == 1 * GIB
    assert kv_cache_bytes(NEMOTRON, context_tokens=131_072) == 16 * GIB
    assert kv_cache_bytes(NEMOTRON, context_tokens=131_072, kv_bits=8) == 8 * GIB


def test_kv_cache_counts_kv_heads_only_and_every_conversation() -> None:
    # 2 x 30 layers x 3 KV heads (of 9) x 64 x 4 bytes = 46,080; 4096 tokens: 180 MiB
    assert kv_cache_bytes(SMOLLM2, context_tokens=4096, kv_bits=32) == 180 * MIB
    assert kv_cache_bytes(SMOLLM2, context_tokens=4096, kv_bits=32, batch=3) == 540 * MIB


def test_workspace_is_one_prefill_chunk() -> None:
    # widest: 3 x 14336 + 4 x 4096 + 4096 + 2 x 1024 = 65,536 values a token
    # 4 bytes x (256 x 65,536 + 128,256 logits)
    cpu = FOOTPRINTS["onnxruntime"]
    fixed = cpu.fixed_workspace_bytes
    assert workspace_bytes(NEMOTRON, cpu, context_tokens=4096) == fixed + 67_621_888
    # a context shorter than the chunk: 4 x (100 x 65,536 + 2 x 128,256)
    assert workspace_bytes(NEMOTRON, cpu, context_tokens=100, batch=2) == fixed + 27_240_448
    # fp16, two layers' activations: 2 x 2 x 1024 x 65,536 + 4 x 128,256 + 64 MiB
    gpu = FOOTPRINTS["tensorrt-llm"]
    assert workspace_bytes(NEMOTRON, gpu, context_tokens=4096) == 268_435_456 + 513_024 + 64 * MIB


def test_the_chunk_that_is_planned_is_the_chunk_that_runs() -> None:
    from edgekit.backends.onnxruntime import session

    row = FOOTPRINTS["onnxruntime"]
    assert row.chunk_tokens == session.PREFILL_CHUNK_TOKENS


def test_a_paged_cache_takes_whole_pages() -> None:
    # 130 tokens in pages of 128 are 256; each of 3 conversations has pages of its own
    assert kv_cache_bytes(NEMOTRON, context_tokens=130, batch=3, page_tokens=128) == (
        3 * 256 * 131_072
    )


def test_every_backend_and_every_backend_of_a_profile_has_a_footprint() -> None:
    assert {info.name for info in list_backends()} <= set(FOOTPRINTS)
    assert all(row.source for row in FOOTPRINTS.values())
    with pytest.raises(InputError, match="nothing is known of the memory"):
        find_footprint("abacus", find_profile("cpu"))


def test_a_tied_head_that_is_stored_like_the_embedding_is_counted_once() -> None:
    same = Storage(linear_bits=8, group_size=32, head_bits=8, head_group_size=32, embedding_bits=8)
    parts = weights_by_class(SMOLLM2, same)
    # 28,311,552 at 8 + 16/32 bits
    assert (parts["head"], parts["embedding"]) == (30_081_024, 0)
    packed = weights_by_class(SMOLLM2, same, shares_tied_tables=False)
    assert packed["embedding"] == 30_081_024
    assert weights_by_class(NEMOTRON, same)["embedding"] > 0
    apart = Storage(linear_bits=4, group_size=32, head_bits=4, embedding_bits=8, head_group_size=32,
                    is_head_calibrated=True)  # fmt: skip
    assert weights_by_class(SMOLLM2, apart)["embedding"] == 30_081_024


def test_an_8b_on_the_cpu_profile_has_groups_of_256_with_zero_points() -> None:
    storage = find_profile("cpu").storage_for("int4_awq", NEMOTRON.size_params)
    classes = weights_by_class(NEMOTRON, storage)
    # 4 bits each, and 32 + 4 for each 256
    assert classes["linears"] == LINEAR_PARAMS // 2 + LINEAR_PARAMS // 256 * 36 // 8
    assert classes["head"] == TABLE_PARAMS // 2 + TABLE_PARAMS // 256 * 36 // 8
    assert classes["packing"] == (LINEAR_PARAMS + TABLE_PARAMS) // 256 * 8
    # the embedding: 8 bits, a scale of 32 for each 32
    assert classes["embedding"] == TABLE_PARAMS + TABLE_PARAMS // 32 * 4


def test_table_bytes_rounds_up() -> None:
    # 3 values of 4 bits are 12 bits, one scale of 16 bits for the group of 4 begun: 3 / 4 of it
    assert table_bytes(3, 4, None, 16) == 2
    assert table_bytes(3, 4, 4, 16) == 3


def test_widening_holds_the_largest_matrix_twice() -> None:
    wide = Storage(linear_bits=32, head_bits=32, embedding_bits=16, is_widened=True)
    # 28,311,552 x (2 + 4) bytes of the head, less the embedding's 2: it is not read by then
    assert loading_bytes(SMOLLM2, wide) == 113_246_208
    assert loading_bytes(SMOLLM2, Storage(linear_bits=16)) == 0


def test_a_head_of_its_own_does_not_make_a_small_model_large() -> None:
    # quantization parts a tied head from the embedding: 135M weights become 163M
    untied = replace(SMOLLM2, has_tied_embeddings=False)
    assert untied.num_params - SMOLLM2.num_params == 28_311_552
    assert untied.size_params == SMOLLM2.size_params == SMOLLM2.num_params
