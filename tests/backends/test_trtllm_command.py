"""The command for `trtllm-build`: flags and values that it has, for everything that is planned."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.backends.environment import paste
from edgekit.backends.tensorrt_llm.command import (
    KV_PRECISIONS,
    PRECISIONS,
    BuildSizes,
    build_command,
    choices,
    chunks_prompts,
    make_sizes,
)
from edgekit.backends.tensorrt_llm.environment import child_environment, cleared, settings
from edgekit.footprint import FOOTPRINTS
from edgekit.profile import load_profiles

FLAGS_FILE = Path(__file__).parent.parent / "data" / "trtllm" / "build_flags_1.2.json"
FLAGS: dict[str, dict[str, Any]] = json.loads(FLAGS_FILE.read_text(encoding="utf-8"))["flags"]
PYTHON = ("/opt/trtllm/bin/python",)
FOOTPRINT = FOOTPRINTS["tensorrt-llm"]


def planned() -> Iterator[tuple[str, str, str]]:
    """Profile, precision and cache of everything that can be planned for TensorRT-LLM."""
    profiles, problems = load_profiles()
    assert not problems
    for profile in profiles:
        if "tensorrt-llm" not in profile.backends:
            continue
        for precision in profile.precisions:
            for kv, row in profile.kv.items():
                if kv in FOOTPRINT.kv_precisions and precision not in row.not_with:
                    yield profile.name, precision, kv


PLANNED = sorted(planned())


def command(precision: str = "int4_awq", kv: str = "fp16", **changes: Any) -> tuple[str, ...]:
    sizes = make_sizes(
        context_tokens=8192, batch=1, chunk_tokens=FOOTPRINT.chunk_tokens,
        in_parts=chunks_prompts(precision, kv),
    )  # fmt: skip
    words: dict[str, Any] = {
        "checkpoint": Path("/data/checkpoint"),
        "engine": Path("/data/engine"),
        "sizes": sizes,
        "precision": precision,
        "kv_precision": kv,
        "timing_cache_out": Path("/data/engine/timing.cache"),
        **changes,
    }
    return build_command(PYTHON, **words)


def parsed(words: tuple[str, ...]) -> dict[str, str | None]:
    """Flag -> value, read as `trtllm-build` does; fails for what it would refuse."""
    assert words[:3] == (*PYTHON, "-m", "tensorrt_llm.commands.build")
    rest, found = list(words[3:]), dict[str, str | None]()
    while rest:
        flag = rest.pop(0)
        assert flag in FLAGS, flag
        assert flag not in found, flag
        row = FLAGS[flag]
        found[flag] = None
        if row["flag"]:
            assert not rest or rest[0].startswith("--"), f"{flag} has no value"
            continue
        found[flag] = value = rest.pop(0)
        assert not value.startswith("--"), flag
        if row["choices"]:
            assert value in row["choices"], (flag, value)
        if row["type"] == "int":
            assert int(value) >= 0
    return found


def test_everything_that_is_planned_has_flags() -> None:
    assert {precision for _, precision, _ in PLANNED} == set(PRECISIONS)
    assert {kv for _, _, kv in PLANNED} == set(KV_PRECISIONS)
    assert {"rtx-3070", "rtx-4090", "a100-80gb", "h100-80gb"} <= {name for name, _, _ in PLANNED}


@pytest.mark.parametrize(("profile", "precision", "kv"), PLANNED)
def test_every_flag_and_value_exists(profile: str, precision: str, kv: str) -> None:
    plain = parsed(command(precision, kv))
    full = parsed(
        command(precision, kv, timing_cache_in=Path("/cache/a.timing"), gathers_logits=True)
    )
    assert full.items() >= plain.items()
    assert set(full) - set(plain) == {"--input_timing_cache", "--gather_context_logits"}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kv", KV_PRECISIONS)
def test_what_matters_is_never_left_to_a_default(precision: str, kv: str) -> None:
    found = parsed(command(precision, kv))
    assert set(found) >= {
        "--max_batch_size", "--max_input_len", "--max_seq_len", "--max_num_tokens",
        "--opt_num_tokens", "--max_beam_width", "--workers", "--kv_cache_type",
        "--tokens_per_block", "--gemm_plugin", "--gpt_attention_plugin", "--context_fmha",
        "--use_paged_context_fmha", "--use_fp8_context_fmha", "--remove_input_padding",
        "--use_fused_mlp", "--multiple_profiles", "--log_level", "--output_timing_cache",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("precision", "kv", "paged", "fp8", "gemm", "fused"),
    [
        # tensorrt_llm/builder.py, 1.2: no paged context attention over an int8 cache, and over an
        # fp8 cache only for fp8 weights; fp8 attention only with both
        ("fp16", "fp16", "enable", "disable", "auto", "enable"),
        ("fp16", "fp8", "disable", "disable", "auto", "enable"),
        ("fp16", "int8", "disable", "disable", "auto", "enable"),
        ("int8", "fp16", "enable", "disable", "auto", "disable"),
        ("int4_awq", "fp16", "enable", "disable", "auto", "disable"),
        ("int4_awq", "int8", "disable", "disable", "auto", "disable"),
        ("int4_awq", "fp8", "disable", "disable", "auto", "disable"),
        ("fp8", "fp16", "enable", "disable", "disable", "disable"),
        ("fp8", "fp8", "enable", "enable", "disable", "disable"),
        ("fp8", "int8", "disable", "disable", "disable", "disable"),
    ],
)
def test_switches_follow_the_precisions(
    precision: str, kv: str, paged: str, fp8: str, gemm: str, fused: str
) -> None:
    found = parsed(command(precision, kv))
    assert found["--use_paged_context_fmha"] == paged
    assert found["--use_fp8_context_fmha"] == fp8
    assert found["--gemm_plugin"] == gemm
    assert found["--use_fused_mlp"] == fused


def test_every_choice_has_a_reason() -> None:
    assert all(choice.why for choice in choices("fp8", "fp8"))


@pytest.mark.parametrize(("precision", "kv"), [("nvfp4", "fp16"), ("fp16", "fp32")])
def test_what_has_no_engine_has_no_flags(precision: str, kv: str) -> None:
    with pytest.raises(ValueError, match="no engine"):
        choices(precision, kv)


def test_a_plan_gives_the_sizes() -> None:
    sizes = make_sizes(context_tokens=8192, batch=1, chunk_tokens=1024, in_parts=True)
    assert sizes == BuildSizes(
        max_batch_size=1, max_input_len=8191, max_seq_len=8192, max_num_tokens=1024
    )
    found = parsed(command("int4_awq", "fp16", sizes=sizes))
    assert (found["--max_seq_len"], found["--max_num_tokens"]) == ("8192", "1024")
    assert found["--opt_num_tokens"] == "1"


@pytest.mark.parametrize(("precision", "kv"), [("int4_awq", "int8"), ("fp16", "fp8")])
def test_a_prompt_that_cannot_be_cut_goes_through_at_once(precision: str, kv: str) -> None:
    sizes = make_sizes(
        context_tokens=4096, batch=2, chunk_tokens=1024, in_parts=chunks_prompts(precision, kv)
    )
    assert not chunks_prompts(precision, kv)
    assert sizes.max_num_tokens == 4096


@given(
    st.integers(min_value=1, max_value=200_000),
    st.integers(min_value=1, max_value=512),
    st.integers(min_value=1, max_value=8192),
    st.sampled_from(PRECISIONS),
    st.sampled_from(KV_PRECISIONS),
)
def test_sizes_are_ones_that_the_builder_keeps(
    context: int, batch: int, chunk: int, precision: str, kv: str
) -> None:
    sizes = make_sizes(
        context_tokens=context, batch=batch, chunk_tokens=chunk,
        in_parts=chunks_prompts(precision, kv),
    )  # fmt: skip
    # check_max_num_tokens raises what is below a page and cuts what is above all conversations
    assert min(32, context * batch) <= sizes.max_num_tokens <= context * batch
    assert sizes.max_num_tokens >= batch
    assert sizes.max_input_len <= sizes.max_seq_len == context
    if not chunks_prompts(precision, kv):
        assert sizes.max_num_tokens >= sizes.max_input_len


def test_sizes_of_no_engine_are_refused() -> None:
    with pytest.raises(ValueError, match="sizes of no engine"):
        BuildSizes(max_batch_size=0, max_input_len=1, max_seq_len=1, max_num_tokens=1)


def test_a_pasted_line_is_the_same_command() -> None:
    words = (*PYTHON, "--checkpoint_dir", "/data/my model")
    assert shlex.split(paste(words)) == list(words)
    line = paste(words, settings={"A": "1 2"}, cleared=["PYTHONPATH"])
    assert shlex.split(line) == ["env", "-u", "PYTHONPATH", "A=1 2", *words]


def test_variables_that_change_the_build_are_kept_back() -> None:
    environ = {
        "HOME": "/home/a", "PYTHONPATH": "/src", "TLLM_LOG_LEVEL": "error",
        "OMPI_COMM_WORLD_SIZE": "2", "SLURM_JOB_ID": "7", "BUILDER_FORCE_NUM_PROFILES": "2",
    }  # fmt: skip
    child = child_environment(environ, is_own=False, gpu_index=1)
    assert child == {"HOME": "/home/a", **settings(gpu_index=1)}
    assert child["CUDA_VISIBLE_DEVICES"] == "1"
    assert set(cleared(environ, is_own=False)) == set(environ) - {"HOME"}


def test_the_own_interpreter_keeps_its_path() -> None:
    child = child_environment({"PYTHONPATH": "/src"}, is_own=True)
    assert child["PYTHONPATH"] == "/src"
    assert "CUDA_VISIBLE_DEVICES" not in child
