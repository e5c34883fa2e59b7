from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from click.testing import Result
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.cli.plan_text import describe_plan
from edgekit.errors import BudgetError, InputError
from edgekit.footprint import FOOTPRINTS
from edgekit.model import ModelSpec
from edgekit.models import find_model
from edgekit.plan import Context, Plan, largest_context, make_plan, require_fit
from edgekit.profile import KvStorage, Profile, Storage, find_profile
from edgekit.question import Question
from edgekit.steps import Budget
from edgekit.units import GIB, MIB

NEMOTRON = find_model("Llama-3.1-Nemotron-Nano-8B-v1").spec
NORM_BYTES = 532_480  # 65 norms x 4096, fp16
CPU = FOOTPRINTS["onnxruntime"]


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
        "precisions": ("fp16", "int8", "int4_awq"), "storage": storage,
        "kv": MappingProxyType({"fp32": KvStorage(bits=16), "fp16": KvStorage(bits=16)}),
    }  # fmt: skip
    return Profile(**{**fields, **changes})  # type: ignore[arg-type]  # tests name the fields


def question(budget_bytes: int, spec: ModelSpec = NEMOTRON, **changes: Any) -> Question:
    budget = Budget(bytes=budget_bytes, where="a card")
    fields: dict[str, Any] = {
        "model": "8b", "spec": spec, "profile": profile_with(), "backend": "onnxruntime",
        "budget": budget, "host": budget,
    }  # fmt: skip
    return Question(**{**fields, **changes})


def plan_8b(
    budget_bytes: int, *, precision: str = "auto", context: Context = None, **changes: Any
) -> Plan:
    return make_plan(question(budget_bytes, **changes), precision=precision, context=context)


@pytest.mark.parametrize(
    ("gib", "precision"),
    # weights at fp16 14.96 GiB, int8 8.46, int4 5.31; 4096 tokens of KV are 0.5 GiB more,
    # the workspace 0.19, the runtime 0.11
    [(23, "fp16"), (15, "int8"), (7, "int4_awq")],
)
def test_auto_takes_the_first_precision_that_fits(gib: int, precision: str) -> None:
    plan = plan_8b(gib * GIB)
    assert (plan.precision, plan.fits) == (precision, True)
    # without a wish for the context, the default is cut only when it must be
    assert plan.context_tokens == 4096


def test_where_nothing_fits_auto_explains_the_smallest() -> None:
    plan = plan_8b(3 * GIB)
    assert (plan.precision, plan.fits, plan.max_context_tokens) == ("int4_awq", False, 0)
    with pytest.raises(BudgetError) as caught:
        require_fit(plan)
    assert "the weights alone are 5.31 GiB, there are 3.00 GiB (a card)" in str(caught.value)
    assert caught.value.hint is not None
    assert "no precision of this profile fits" in caught.value.hint


def test_a_plan_adds_up() -> None:
    plan = plan_8b(23 * GIB, context=8192)
    # fp16 weights as above, 1 GiB of KV, 4 x (256 x 65,536 + 128,256)
    assert plan.weights_bytes == 16_059_990_016 + NORM_BYTES
    assert plan.kv_cache_bytes == GIB
    work = 67_621_888 + CPU.fixed_workspace_bytes
    assert plan.workspace_bytes == work
    assert plan.total_bytes == 16_060_522_496 + GIB + work + CPU.runtime_bytes
    assert plan.weights == {
        "linears": 13_958_643_712, "head": 1_050_673_152, "embedding": 1_050_673_152,
        "norms": NORM_BYTES, "packing": 0, "prompts": 0,
    }  # fmt: skip
    assert plan.headroom_bytes == 23 * GIB - plan.total_bytes


def test_the_decode_bound_is_bandwidth_over_bytes_read() -> None:
    # 448 GB/s / (4,649,385,984 + 532,480 bytes) = 96.3 tokens/s
    plan = plan_8b(7 * GIB, bandwidth_bytes_per_s=448e9, context=4096)
    assert plan.decode_bound_tokens_per_s == pytest.approx(96.35, abs=0.01)
    # 0.5 GiB of cache more: 448 / (4.649918464 + 0.536870912) = 86.37
    assert plan.decode_bound_full_tokens_per_s == pytest.approx(86.37, abs=0.01)
    assert plan_8b(8 * GIB).decode_bound_tokens_per_s is None


def test_the_default_context_is_cut_to_what_fits_and_says_so() -> None:
    # 5.61 GiB - 5.31 GiB weights - 0.11 runtime: room for some KV, not for 4096 tokens of it
    plan = plan_8b(6 * GIB - 300 * MIB, precision="int4_awq")
    assert plan.fits
    assert 0 < plan.context_tokens < 4096
    assert plan.context_tokens == plan.max_context_tokens
    assert f"context cut from 4096 to {plan.context_tokens}" in plan.reason


def test_a_context_that_was_asked_for_is_never_cut() -> None:
    plan = plan_8b(6 * GIB, precision="int4_awq", context=131_072)
    assert (plan.context_tokens, plan.fits) == (131_072, False)
    with pytest.raises(BudgetError) as caught:
        require_fit(plan)
    assert caught.value.hint is not None
    assert caught.value.hint.startswith(f"use `--context {plan.max_context_tokens}`")


@pytest.mark.parametrize(
    "order",
    [
        ("fp16", "int8", "int4_awq"),
        ("int4_awq", "int8", "fp16"),
        ("int8", "int4_awq", "fp16"),
    ],
)
def test_what_fits_at_no_precision_is_explained_by_the_nearest(order: tuple[str, ...]) -> None:
    profile = profile_with(precisions=order)
    plan = plan_8b(7 * GIB, profile=profile, context=65_536)
    assert (plan.precision, plan.fits) == ("int4_awq", False)
    assert "the nearest to fit" in plan.reason
    with pytest.raises(BudgetError) as caught:
        require_fit(plan)
    assert caught.value.hint == f"use `--context {plan.max_context_tokens}`"
    with pytest.raises(BudgetError) as caught:
        require_fit(plan_8b(7 * GIB, profile=profile, precision="fp16", context=65_536))
    assert caught.value.hint == f"use `--precision int4_awq --context {plan.max_context_tokens}`"


def test_auto_does_not_settle_for_a_context_of_no_use() -> None:
    # 15.3 GiB hold fp16's 14.96 and a few hundred tokens: int8 has room for its whole default
    plan = plan_8b(int(15.3 * GIB))
    assert (plan.precision, plan.context_tokens) == ("int8", 4096)
    assert plan_8b(int(15.3 * GIB), precision="fp16").fits


def test_auto_does_not_take_what_the_device_cannot_compile() -> None:
    # trtllm-build: 1.1 x 14.96 + 1 GiB for fp16, on the card
    device = Budget(bytes=int(17 * GIB), where="a card", is_device=True)
    plan = plan_8b(0, budget=device, backend="tensorrt-llm")
    assert plan.precision == "int8"
    assert plan_8b(0, budget=device, backend="tensorrt-llm", precision="fp16").fits


def test_what_runs_and_compiles_nowhere_keeps_the_order_and_says_so() -> None:
    # edge-llm: 4 x the weights to compile; 20 GiB run everything and compile nothing
    board = Budget(bytes=20 * GIB, where="a board's memory")
    plan = plan_8b(0, budget=board, backend="edge-llm", kv_precision="auto")
    assert (plan.precision, plan.fits) == ("fp16", True)
    assert "the first of card's order (fp16, int4_awq) that runs; none compiles" in plan.reason


def test_the_building_machine_does_not_choose_the_precision_of_another() -> None:
    device = Budget(bytes=24 * GIB, where="a card", is_device=True)
    for gib in (4, 64):
        host = Budget(bytes=gib * GIB, where="RAM")
        plan = plan_8b(0, budget=device, host=host, backend="tensorrt-rtx")
        assert plan.precision == "fp16"


def test_a_smaller_batch_is_a_way_out_only_where_it_fits() -> None:
    # 512 tokens x 64 KiB x 2 x 100 conversations, of which one would fit
    with pytest.raises(BudgetError) as caught:
        require_fit(plan_8b(6 * GIB, precision="int4_awq", context=512, batch=100))
    assert caught.value.hint is not None
    assert "`--batch 1`" in caught.value.hint
    with pytest.raises(BudgetError) as caught:
        require_fit(plan_8b(4 * GIB, precision="int4_awq", context=512, batch=100))
    assert (caught.value.hint or "").startswith("no precision of this profile fits")


def test_one_conversation_has_weights_for_its_prompts_and_several_have_not() -> None:
    spec, profile = find_model("SmolLM2-135M-Instruct").spec, find_profile("cpu")
    profile = replace(profile, precisions=("int4_awq",))

    def planned(budget_bytes: int, batch: int) -> Plan:
        asked = question(budget_bytes, spec, profile=profile, batch=batch)
        return make_plan(asked, precision="int4_awq", context=512)

    one, four = planned(GIB, 1), planned(GIB, 4)
    # test_footprint works it out; both say what one has more
    assert one.weights["prompts"] == 95_903_232
    assert (four.weights["prompts"], four.prompt_weights_bytes) == (0, 95_903_232)
    assert one.weights_bytes - four.weights_bytes == one.prompt_weights_bytes
    # four caches of 22.5 MiB need less than one and the weights for prompts: one is no way out
    assert one.total_bytes > four.total_bytes
    with pytest.raises(BudgetError) as caught:
        require_fit(planned(four.total_bytes - MIB, 4))
    assert "--batch 1" not in (caught.value.hint or "")
    with pytest.raises(BudgetError) as caught:
        require_fit(planned(one.total_bytes + 4 * MIB, 16))  # and logits of 16
    assert "`--batch 1`" in (caught.value.hint or "")


def test_loading_counts_where_it_is_the_peak() -> None:
    wide = Storage(linear_bits=32, head_bits=32, embedding_bits=16, is_widened=True)
    profile = profile_with(precisions=("fp16",), storage=MappingProxyType({"fp16": wide}))
    short = plan_8b(64 * GIB, profile=profile, context=512)
    # 525,336,576 x (2 + 4 - 2) bytes, more than the cache and workspace of 512 tokens
    assert short.loading_bytes == 2_101_346_304
    assert short.total_bytes == short.weights_bytes + short.runtime_bytes + 2_101_346_304
    long = plan_8b(64 * GIB, profile=profile, context=65_536)
    used = long.kv_cache_bytes + long.workspace_bytes
    assert long.total_bytes == long.weights_bytes + long.runtime_bytes + used
    assert "▞ loading" in describe_plan(short)
    assert "loading" not in describe_plan(long)


def test_a_backend_has_its_own_precisions() -> None:
    profile = profile_with(precisions=("int8", "fp16"), name="card")
    assert plan_8b(24 * GIB, profile=profile, backend="edge-llm").precision == "fp16"
    with pytest.raises(InputError, match="int8 is not possible on `card`: edge-llm has no such"):
        plan_8b(24 * GIB, profile=profile, backend="edge-llm", precision="int8")


def test_unified_memory_is_a_place_to_quantize() -> None:
    device = Budget(bytes=100 * GIB, where="a board's memory")
    plan = plan_8b(0, budget=device, host=Budget(bytes=8 * GIB, where="RAM"))
    assert (plan.steps["quantize"].where, plan.steps["quantize"].fits) == ("a board's memory", True)


def test_another_precision_is_the_hint_where_no_context_helps() -> None:
    plan = plan_8b(7 * GIB, precision="fp16")
    with pytest.raises(BudgetError) as caught:
        require_fit(plan)
    assert caught.value.hint == "use `--precision int4_awq`"


def test_more_context_than_the_model_knows_is_refused() -> None:
    with pytest.raises(InputError, match="trained for 131072 tokens of context, asked for 131073"):
        plan_8b(24 * GIB, context=131_073)


def test_a_precision_that_the_profile_lacks_is_refused() -> None:
    with pytest.raises(InputError, match="the profile `card` has no nvfp4") as caught:
        plan_8b(24 * GIB, precision="nvfp4")
    assert caught.value.hint == "use `--precision int4_awq`; it has fp16, int8, int4_awq"
    with pytest.raises(InputError, match="unknown precision: int3"):
        plan_8b(24 * GIB, precision="int3")


def test_alternatives_are_the_other_precisions_at_the_same_wish_nearest_first() -> None:
    plan = plan_8b(24 * GIB, context=8192)
    assert [(a.precision, a.context_tokens) for a in plan.alternatives] == [
        ("int8", 8192), ("int4_awq", 8192),
    ]  # fmt: skip
    # 6,979,321,856 + 2,752,512 + 2,101,346,304 + norms, and KV, workspace and runtime as above
    assert plan.alternatives[0].total_bytes == plan.total_bytes - 16_059_990_016 + 9_083_420_672


def test_largest_context_ends_at_the_model_or_on_a_step() -> None:
    assert largest_context(lambda _: True, 1000, step=256) == 1000
    assert largest_context(lambda c: c <= 999, 1000, step=256) == 768
    assert largest_context(lambda c: c <= 767, 1000, step=256) == 512
    assert largest_context(lambda _: False, 1000, step=256) == 0


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
    backend=st.sampled_from(["onnxruntime", "tensorrt-llm", "tensorrt-llm-pytorch", "edge-llm"]),
)  # fmt: skip
def test_the_largest_context_fits_and_one_page_more_does_not(
    spec: ModelSpec, budget: int, batch: int, share: float | None, precision: str, backend: str
) -> None:
    limit = spec.max_context_tokens
    wanted = None if share is None else max(1, int(share * limit))

    def plan_at(context: Context, precision: str) -> Plan:
        asked = question(budget, spec, batch=batch, backend=backend)
        return make_plan(asked, precision=precision, context=context)

    plan = plan_at(wanted, precision)
    largest = plan.max_context_tokens
    if largest:
        assert plan_at(largest, plan.precision).fits
    if largest < limit:
        page = FOOTPRINTS[backend].page_tokens
        assert not plan_at(min(largest + page, limit), plan.precision).fits
    if wanted is None:
        assert plan.fits == (largest > 0)
    assert set(plan.to_dict()) == PLAN_KEYS
    assert describe_plan(plan)
    if largest:
        assert plan_at("auto", plan.precision).context_tokens == largest
    if not plan.fits:
        with pytest.raises(BudgetError) as caught:
            require_fit(plan)
        hint = caught.value.hint or ""
        for flags in re.findall(r"`(--[^`]*)`", hint):
            if "batch" in flags:
                continue
            found = dict(re.findall(r"--(\w+) (\S+)", flags))
            name = found.get("precision", plan.precision)
            context = int(found["context"]) if "context" in found else wanted
            asked = question(budget, spec, batch=batch, backend=backend,
                             kv_precision=found.get("kv", "auto"))  # fmt: skip
            assert make_plan(asked, precision=name, context=context).fits, hint


PLAN_KEYS = {
    "model", "profile", "backend", "precision", "kv_precision", "context_tokens", "batch",
    "weights_bytes", "kv_cache_bytes", "workspace_bytes", "runtime_bytes", "total_bytes",
    "budget_bytes", "headroom_bytes", "fits", "max_context_tokens", "bytes_per_token_read",
    "decode_bound_tokens_per_s", "decode_bound_full_tokens_per_s", "steps", "reason",
    "alternatives", "weights", "budget_where", "loading_bytes", "engine_bytes", "capabilities",
    "devices", "speculation", "kept_layers", "prompt_weights_bytes",
}  # fmt: skip


def test_plan_json_has_the_fixed_shape(run_cli: Callable[..., Result]) -> None:
    result = run_cli("plan", "--model", "SmolLM2-135M-Instruct", "--profile", "cpu", "--json")
    assert result.exit_code == 0
    plan = json.loads(result.stdout)
    assert set(plan) == PLAN_KEYS
    assert set(plan["steps"]) == {"quantize", "compile", "run"}
    for step in plan["steps"].values():
        assert set(step) == {"peak_bytes", "fits", "where", "how", "seconds"}
    for alternative in plan["alternatives"]:
        assert set(alternative) == {
            "precision", "kv_precision", "context_tokens", "max_context_tokens", "fits",
            "total_bytes", "decode_bound_tokens_per_s",
        }  # fmt: skip
    assert plan.pop("engine_bytes") is None  # not measured for this backend
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
    assert result.stderr.startswith(
        "error: Llama-3.1-Nemotron-Nano-8B-v1 at int4_awq does not fit card: the engine needs "
    )
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
command = ["plan", "--profile", "cpu", "--context", "512",
           "--model", "Llama-3.1-Nemotron-Nano-8B-v1"]
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
    assert "\nLlama-3.1-Nemotron-Nano-8B-v1 on cpu: " in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["card.toml"]


NANO = "Llama-3.1-Nemotron-Nano-8B-v1"
RunCli = Callable[..., Result]


def plan_of(run_cli: RunCli, profile: str, *flags: str) -> tuple[int, dict[str, Any]]:
    result = run_cli("plan", "--model", NANO, "--profile", profile, *flags, "--json")
    return result.exit_code, json.loads(result.stdout) if result.stdout else {}


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_an_8b_on_8_gb_is_refused_above_4_bits(run_cli: RunCli, precision: str) -> None:
    result = run_cli("plan", "--model", NANO, "--profile", "rtx-3070", "--precision", precision)
    assert result.exit_code == 3
    assert "the weights alone are" in result.stderr
    assert "--precision int4_awq" in result.stderr


def test_an_8b_on_8_gb_fits_at_4_bits(run_cli: RunCli) -> None:
    for flags in ((), ("--headless",)):
        code, plan = plan_of(run_cli, "rtx-3070", "--precision", "int4_awq", *flags)
        assert (code, plan["kv_precision"]) == (0, "fp16")
        assert plan["weights_bytes"] == 5_700_591_616
        assert 8192 <= plan["max_context_tokens"] <= 15_360


def test_half_the_cache_is_no_larger_context_where_prompts_cannot_be_cut(run_cli: RunCli) -> None:
    words = ("--precision", "int4_awq", "--context", "4096")
    _, whole = plan_of(run_cli, "rtx-3070", *words, "--kv", "fp16")
    _, half = plan_of(run_cli, "rtx-3070", *words, "--kv", "int8")
    assert half["kv_cache_bytes"] * 2 == whole["kv_cache_bytes"]
    # 3 F + 4 H + Hq D + 2 Hkv D = 65,536 values of a token, twice at 16 bits; 1024 tokens or all
    assert half["workspace_bytes"] - whole["workspace_bytes"] == (4096 - 1024) * 65_536 * 2 * 2
    assert half["max_context_tokens"] < whole["max_context_tokens"]
    shown = run_cli(
        "plan", "--model", NANO, "--profile", "rtx-3070", *words, "--kv", "int8", "--step", "run"
    ).stdout
    assert "all 4096 tokens at once (with such a cache no prompt is cut)" in shown
    # fp8 weights over an fp8 cache have the kernel
    _, fp8 = plan_of(run_cli, "rtx-4090", "--precision", "fp8", "--kv", "fp8")
    _, fp16 = plan_of(run_cli, "rtx-4090", "--precision", "fp8", "--kv", "fp16")
    assert fp8["workspace_bytes"] == fp16["workspace_bytes"]
    assert fp8["max_context_tokens"] == 131_072 > fp16["max_context_tokens"]


def test_an_8b_on_24_gb(run_cli: RunCli) -> None:
    for flags in ((), ("--headless",)):
        code, plan = plan_of(run_cli, "rtx-4090", "--precision", "fp16", *flags)
        assert (code, plan["weights_bytes"]) == (0, 16_060_522_496)
        assert 40_000 <= plan["max_context_tokens"] <= 62_000
        whole = ("--context", "131072", *flags)
        assert plan_of(run_cli, "rtx-4090", "--precision", "fp16", *whole)[0] == 3
        assert plan_of(run_cli, "rtx-4090", "--precision", "fp16", "--kv", "fp8", *whole)[0] == 3
        assert plan_of(run_cli, "rtx-4090", "--precision", "int4_awq", *whole)[0] == 0


def test_an_8b_on_thor_is_bound_by_bandwidth_not_by_memory(run_cli: RunCli) -> None:
    for precision in ("fp16", "int8", "int4_awq", "fp8", "nvfp4"):
        code, plan = plan_of(
            run_cli, "jetson-thor", "--precision", precision, "--context", "131072"
        )
        assert code == 0
        bound = plan["decode_bound_tokens_per_s"]
        if precision == "fp16":
            assert bound == pytest.approx(18.2, abs=0.2)
        if precision == "int4_awq":
            assert 55 <= bound <= 59
    _, plan = plan_of(run_cli, "jetson-thor")
    assert plan["precision"] in ("int4_awq", "nvfp4")
    assert "order" in plan["reason"]


@pytest.mark.parametrize(
    ("profile", "precision", "reason"),
    [("rtx-3070", "fp8", "sm_89"), ("rtx-4090", "nvfp4", "Blackwell")],
)
def test_what_the_hardware_cannot_do_is_refused_as_such(
    run_cli: RunCli, profile: str, precision: str, reason: str
) -> None:
    result = run_cli("plan", "--model", NANO, "--profile", profile, "--precision", precision)
    assert result.exit_code == 2
    assert f"{precision} is not possible on `{profile}`" in result.stderr
    assert reason in result.stderr


def test_searching_the_head_takes_copies_of_it() -> None:
    row = Storage(linear_bits=4, group_size=128)
    peaks = []
    for searched in (False, True):
        rows = {"int4_awq": replace(row, is_head_calibrated=searched)}
        profile = profile_with(precisions=("int4_awq",), storage=MappingProxyType(rows))
        plan = plan_8b(64 * GIB, profile=profile, precision="int4_awq")
        peaks.append(plan.steps["quantize"].peak_bytes)
    # two of 128,256 x 4,096 in fp32
    assert peaks[1] - peaks[0] == 4_202_692_608


def test_quantizing_an_8b_does_not_fit_a_24_gb_card() -> None:
    # 8,030,261,248 x 2 bytes x 1.6, logits of 4096 x 128,256 x 4 bytes, and 900 MiB make
    # 28,741,900,697: NVIDIA/TensorRT-LLM#1932
    device = Budget(bytes=24 * GIB, where="a card", is_device=True)
    plan = plan_8b(0, budget=device, host=Budget(bytes=64 * GIB, where="RAM"))
    assert plan.steps["quantize"].where == "RAM"
    assert plan.steps["quantize"].fits
    larger = replace(device, bytes=40 * GIB)
    assert plan_8b(0, budget=larger).steps["quantize"].where == "a card"


def test_a_cache_that_cannot_go_with_the_weights_is_refused_and_auto_works_around_it() -> None:
    kv = {"fp16": KvStorage(bits=16), "fp8": KvStorage(bits=8, not_with=("fp16",), reason="traps")}
    wish: dict[str, Any] = {
        "profile": profile_with(kv=MappingProxyType(kv)), "backend": "tensorrt-llm",
    }  # fmt: skip
    with pytest.raises(InputError, match="fp8 KV cache is not possible with fp16 weights: traps"):
        plan_8b(23 * GIB, kv_precision="fp8", precision="fp16", **wish)
    assert plan_8b(23 * GIB, kv_precision="fp8", **wish).precision == "int8"
    with pytest.raises(InputError, match="int8 KV cache is not possible on `card`"):
        plan_8b(23 * GIB, kv_precision="int8", **wish)
    # the backend has no such cache, whatever the device could do
    with pytest.raises(InputError, match="tensorrt-rtx has no such cache"):
        plan_8b(23 * GIB, kv_precision="fp8", **{**wish, "backend": "tensorrt-rtx"})


def test_a_plan_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan_8b(24 * GIB).batch = 2  # type: ignore[misc]  # the point of the test
