from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType

import pytest
from click.testing import Result
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.errors import BudgetError, InputError
from edgekit.model import ModelSpec
from edgekit.models import find_model
from edgekit.plan import (
    RUNTIME_BYTES,
    Plan,
    kv_cache_bytes,
    largest_context,
    make_plan,
    read_bytes,
    require_fit,
    table_bytes,
    weights_bytes,
    workspace_bytes,
)
from edgekit.profile import Profile, Storage, find_profile
from edgekit.units import GIB, MIB

NEMOTRON = find_model("Llama-3.1-Nemotron-Nano-8B-v1").spec
SMOLLM2 = find_model("SmolLM2-135M-Instruct").spec

# of the 8B, by hand:
#   attention  4096 x (4096 + 4096 + 1024 + 1024) x 32 layers = 1,342,177,280
#   MLP        3 x 4096 x 14336 x 32                          = 5,637,144,576
LINEAR_PARAMS = 6_979_321_856
TABLE_PARAMS = 525_336_576  # 128256 x 4096, embedding and head each
NORM_BYTES = 1_064_960  # 65 norms x 4096, kept at fp32


def test_linear_and_table_weights_of_the_8b_are_those_of_the_model_card() -> None:
    assert NEMOTRON.linear_params == LINEAR_PARAMS
    assert NEMOTRON.embedding_params == TABLE_PARAMS
    assert NEMOTRON.small_params * 4 == NORM_BYTES


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
    # linears 30 x (576 x 1536 + 3 x 576 x 1536) = 106,168,320 at 4 + 32/32 = 5 bits: 66,355,200
    # head, 49152 x 576 = 28,311,552, at 5 bits as well: 17,694,720; embedding at 8 + 1: 31,850,496
    # norms 61 x 576 x 4 = 140,544
    storage = find_profile("cpu").storage_for("int4_awq", SMOLLM2.num_params)
    assert weights_bytes(SMOLLM2, storage) == 66_355_200 + 17_694_720 + 31_850_496 + 140_544


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
    # 4 bytes x (256 x 65,536 + scores 256 x 4096 x 32 heads + 128,256 logits)
    assert workspace_bytes(NEMOTRON, context_tokens=4096) == 201_839_616
    # a context shorter than the chunk: 4 x (100 x 65,536 + 100 x 100 x 32 + 2 x 128,256)
    assert workspace_bytes(NEMOTRON, context_tokens=100, batch=2) == 28_520_448


def test_the_chunk_that_is_planned_is_the_chunk_that_runs() -> None:
    from edgekit import plan
    from edgekit.backends.onnxruntime import session

    assert plan._PREFILL_CHUNK_TOKENS == session.PREFILL_CHUNK_TOKENS


def test_table_bytes_rounds_up() -> None:
    # 3 values of 4 bits are 12 bits, one scale of 16 bits for the group of 4 begun: 3 / 4 of it
    assert table_bytes(3, 4, None, 16) == 2
    assert table_bytes(3, 4, 4, 16) == 3


def profile_with(**changes: object) -> Profile:
    storage = MappingProxyType(
        {
            "fp16": Storage(linear_bits=16),
            "int8": Storage(linear_bits=8),
            "int4_awq": Storage(linear_bits=4, group_size=128),
        }
    )
    fields: dict[str, object] = {
        "name": "card", "summary": "", "backends": ("onnxruntime",),
        "precisions": ("fp16", "int8", "int4_awq"), "storage": storage, "reserved_bytes": 1 * GIB,
    }  # fmt: skip
    return Profile(**{**fields, **changes})  # type: ignore[arg-type]  # tests name the fields


def plan_8b(available_bytes: int, **options: object) -> Plan:
    return make_plan(
        "8b", NEMOTRON, profile_with(), available_bytes=available_bytes, **options  # type: ignore[arg-type]
    )  # fmt: skip


@pytest.mark.parametrize(
    ("gib", "precision"),
    # weights at fp16 14.96 GiB, int8 8.46, int4 5.31; 4096 tokens of KV are 0.5 GiB more,
    # the workspace 0.19, the runtime 0.11, the reserve 1
    [(24, "fp16"), (16, "int8"), (8, "int4_awq")],
)
def test_auto_takes_the_first_precision_that_fits(gib: int, precision: str) -> None:
    plan = plan_8b(gib * GIB)
    assert (plan.precision, plan.fits) == (precision, True)
    # without a wish for the context, the default is cut only when it must be
    assert plan.context_tokens == 4096


def test_where_nothing_fits_auto_explains_its_first_choice() -> None:
    plan = plan_8b(4 * GIB)
    assert (plan.precision, plan.fits, plan.max_context_tokens) == ("fp16", False, 0)
    with pytest.raises(BudgetError) as caught:
        require_fit(plan)
    assert "card has 3.00 GiB for it" in str(caught.value)
    assert caught.value.hint is not None
    assert "no precision of this profile fits" in caught.value.hint


def test_the_reserve_is_taken_off_the_budget() -> None:
    assert plan_8b(8 * GIB).budget_bytes == 7 * GIB
    assert plan_8b(GIB // 2).budget_bytes == 0


def test_a_plan_adds_up() -> None:
    plan = plan_8b(24 * GIB, context_tokens=8192)
    # fp16 weights as above, 1 GiB of KV, 4 x (256 x 65,536 + 256 x 8192 x 32 + 128,256)
    assert plan.weights_bytes == 16_059_990_016 + NORM_BYTES
    assert plan.kv_cache_bytes == GIB
    assert plan.workspace_bytes == 336_057_344
    assert plan.total_bytes == 16_061_054_976 + GIB + 336_057_344 + RUNTIME_BYTES
    assert plan.headroom_bytes == 23 * GIB - plan.total_bytes


def test_the_decode_bound_is_bandwidth_over_bytes_read() -> None:
    # 448 GB/s / (4,649,385,984 + 1,064,960 bytes) = 96.3 tokens/s
    plan = plan_8b(8 * GIB, bandwidth_bytes_per_s=448e9)
    assert plan.decode_bound_tokens_per_s == pytest.approx(96.33, abs=0.01)
    assert plan_8b(8 * GIB).decode_bound_tokens_per_s is None


def test_the_default_context_is_cut_to_what_fits_and_says_so() -> None:
    # 6 GiB - 5.31 GiB weights - 0.11 runtime: room for some KV, not for 4096 tokens of it
    plan = plan_8b(7 * GIB - 400 * MIB, precision="int4_awq")
    assert plan.fits
    assert 0 < plan.context_tokens < 4096
    assert plan.context_tokens == plan.max_context_tokens
    assert f"context cut from 4096 to {plan.context_tokens}" in plan.reason


def test_a_context_that_was_asked_for_is_never_cut() -> None:
    plan = plan_8b(7 * GIB, precision="int4_awq", context_tokens=131_072)
    assert (plan.context_tokens, plan.fits) == (131_072, False)
    with pytest.raises(BudgetError) as caught:
        require_fit(plan)
    assert caught.value.hint is not None
    assert caught.value.hint.startswith(f"use `--context {plan.max_context_tokens}`")


def test_another_precision_is_the_hint_where_no_context_helps() -> None:
    plan = plan_8b(8 * GIB, precision="fp16")
    with pytest.raises(BudgetError) as caught:
        require_fit(plan)
    assert caught.value.hint == "use `--precision int4_awq`"


def test_more_context_than_the_model_knows_is_refused() -> None:
    with pytest.raises(InputError, match="trained for 131072 tokens of context, asked for 131073"):
        plan_8b(24 * GIB, context_tokens=131_073)


def test_a_precision_that_the_profile_lacks_is_refused() -> None:
    with pytest.raises(InputError, match="the profile `card` has no nvfp4") as caught:
        plan_8b(24 * GIB, precision="nvfp4")
    assert caught.value.hint == "it has fp16, int8, int4_awq"
    with pytest.raises(InputError, match="unknown precision: int3"):
        plan_8b(24 * GIB, precision="int3")


def test_alternatives_are_the_other_precisions_at_the_same_wish() -> None:
    plan = plan_8b(24 * GIB, context_tokens=8192)
    assert [(a.precision, a.context_tokens) for a in plan.alternatives] == [
        ("int8", 8192), ("int4_awq", 8192),
    ]  # fmt: skip
    # 6,979,321,856 + 2,752,512 + 2,101,346,304 + norms, and KV, workspace and runtime as above
    assert plan.alternatives[0].total_bytes == plan.total_bytes - 16_059_990_016 + 9_083_420_672


def test_largest_context_ends_at_the_model_or_on_a_step() -> None:
    assert largest_context(lambda _: True, 1000) == 1000
    assert largest_context(lambda c: c <= 999, 1000) == 768
    assert largest_context(lambda c: c <= 767, 1000) == 512
    assert largest_context(lambda _: False, 1000) == 0


heads = st.tuples(st.integers(1, 16), st.integers(1, 8), st.sampled_from([32, 64, 128]))
specs = st.builds(
    lambda layers, width, mlp, heads, vocab, context, tied: ModelSpec(
        family="llama", num_layers=layers, hidden_size=width * 16, intermediate_size=mlp * 16,
        num_kv_heads=heads[0], num_query_heads=heads[0] * heads[1], head_dim=heads[2],
        vocab_size=vocab, max_context_tokens=context, rms_norm_eps=1e-5, rope_theta=1e4,
        has_tied_embeddings=tied,
    ),
    st.integers(1, 128), st.integers(1, 1024), st.integers(1, 4096), heads,
    st.integers(1, 300_000), st.integers(1, 2_000_000), st.booleans(),
)  # fmt: skip


@settings(deadline=None)  # CI machines pause
@given(
    spec=specs, budget=st.integers(0, 512 * GIB), batch=st.integers(1, 64),
    share=st.none() | st.floats(0, 1), precision=st.sampled_from(["auto", "fp16", "int4_awq"]),
)  # fmt: skip
def test_the_largest_context_fits_and_one_step_more_does_not(
    spec: ModelSpec, budget: int, batch: int, share: float | None, precision: str
) -> None:
    limit = spec.max_context_tokens
    wanted = None if share is None else max(1, int(share * limit))

    def plan_at(context: int | None, precision: str) -> Plan:
        return make_plan(
            "any", spec, profile_with(), available_bytes=budget, precision=precision,
            context_tokens=context, batch=batch,
        )  # fmt: skip

    plan = plan_at(wanted, precision)
    largest = plan.max_context_tokens
    if largest:
        assert plan_at(largest, plan.precision).fits
    if largest < limit:
        assert not plan_at(min(largest + 256, limit), plan.precision).fits
    if wanted is None:
        assert plan.fits == (largest > 0)
    assert set(plan.to_dict()) == PLAN_KEYS
    assert plan.describe()
    if not plan.fits:
        with pytest.raises(BudgetError) as caught:
            require_fit(plan)
        if f"`--context {largest}`" in (caught.value.hint or ""):
            assert largest > 0


PLAN_KEYS = {
    "model", "profile", "backend", "precision", "kv_precision", "context_tokens", "batch",
    "weights_bytes", "kv_cache_bytes", "workspace_bytes", "runtime_bytes", "total_bytes",
    "budget_bytes", "headroom_bytes", "fits", "max_context_tokens", "bytes_per_token_read",
    "decode_bound_tokens_per_s", "steps", "reason", "alternatives",
}  # fmt: skip


def test_plan_json_has_the_fixed_shape(run_cli: Callable[..., Result]) -> None:
    result = run_cli("plan", "--model", "SmolLM2-135M-Instruct", "--profile", "cpu", "--json")
    assert result.exit_code == 0
    plan = json.loads(result.stdout)
    assert set(plan) == PLAN_KEYS
    assert set(plan["steps"]) == {"quantize", "compile", "run"}
    for step in plan["steps"].values():
        assert set(step) == {"peak_bytes", "fits", "where"}
    for alternative in plan["alternatives"]:
        assert set(alternative) == {
            "precision", "context_tokens", "fits", "total_bytes", "decode_bound_tokens_per_s",
        }  # fmt: skip
    assert all(type(value) is int for key, value in plan.items() if key.endswith("_bytes"))


@pytest.fixture
def card(tmp_path: Path) -> Path:
    """A profile of 8 GiB: the same plan on every machine."""
    path = tmp_path / "card.toml"
    path.write_text(
        'name = "card"\nsummary = "a card"\nbackends = ["onnxruntime"]\n'
        'precisions = ["fp16", "int4_awq"]\nmemory_bytes = 8_589_934_592\n'
        "[storage.fp16]\nlinear_bits = 16\n[storage.int4_awq]\nlinear_bits = 4\ngroup_size = 128\n"
    )
    return path


def test_plan_over_budget_exits_3_and_names_the_largest_context(
    run_cli: Callable[..., Result], card: Path
) -> None:
    result = run_cli("plan", "--profile", card, "--precision", "int4_awq", "--context", "131072")
    assert result.exit_code == BudgetError.exit_code
    assert result.stderr.startswith("error: the engine needs 2")
    largest = int(result.stderr.partition("`--context ")[2].partition("`")[0])
    fits = run_cli("plan", "--profile", card, "--precision", "int4_awq", "--context", str(largest))
    assert fits.exit_code == 0
    more = str(largest + 256)
    assert run_cli("plan", "--profile", card, "--context", more).exit_code == 3


def test_plan_json_over_budget_still_prints_the_plan(
    run_cli: Callable[..., Result], card: Path
) -> None:
    result = run_cli("plan", "--profile", card, "--precision", "fp16", "--json")
    assert result.exit_code == 3
    assert json.loads(result.stdout)["fits"] is False


def test_plan_beyond_the_models_context_exits_2(run_cli: Callable[..., Result]) -> None:
    result = run_cli("plan", "--model", "SmolLM2-135M-Instruct", "--context", "8193")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "trained for 8192 tokens of context, asked for 8193" in result.stderr


_LIGHT = """
import sys
events = []
def audit(event, args):
    if event.startswith("socket.") or event == "subprocess.Popen":
        events.append(event)
    elif event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+"):
        events.append(f"write {args[0]}")
sys.addaudithook(audit)
from edgekit.cli import main
command = ["plan", "--model", "Llama-3.1-Nemotron-Nano-8B-v1", "--context", "512"]
main(command, standalone_mode=False)
heavy = {"numpy", "torch", "transformers", "modelopt", "onnx", "onnxruntime", "gguf", "tokenizers",
         "huggingface_hub", "safetensors", "jinja2", "ssl", "asyncio"}
print(sorted(heavy & set(sys.modules)), events, file=sys.stderr)
"""


def test_plan_of_a_known_model_needs_no_file_no_network_and_no_large_library(
    tmp_path: Path, card: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _LIGHT], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) in [(0, "[] []\n"), (3, "[] []\n")]
    assert done.stdout.startswith("Llama-3.1-Nemotron-Nano-8B-v1 on cpu: ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["card.toml"]


def test_a_plan_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan_8b(24 * GIB).batch = 2  # type: ignore[misc]  # the point of the test
