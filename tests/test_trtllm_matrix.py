"""`edgekit build --dry-run` for every card, precision and cache that can be asked of TensorRT-LLM,
as engines of 1.2 and as checkpoints for the PyTorch backend of 1.3 and later.

What is possible is written here by hand, from the hardware and from what TensorRT-LLM 1.2 has
(its support matrix: FP8 from sm_89, FP4 from sm_100; ModelOpt's deployment/1_tensorrt_llm.rst: no
INT8 SmoothQuant of LLaMA 3), and not read from the profiles. Flags and values are those of its
`trtllm-build`, transcribed in tests/data/trtllm/build_flags_1.2.json.
"""

from __future__ import annotations

import functools
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from edgekit.cli import main
from edgekit.dry_run import build_commands
from edgekit.pipeline import BuildOptions
from edgekit.planning import Request, request_plan
from edgekit.profile import load_profiles

FLAGS: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parent / "data" / "trtllm" / "build_flags_1.2.json").read_text(encoding="utf-8")
)["flags"]

WITHOUT_FP8 = ("rtx-3070", "rtx-3080-10gb", "rtx-3080-12gb", "a100-80gb")
WITH_FP8 = ("rtx-4090", "rtx-5090", "h100-80gb")
CARDS = (*WITHOUT_FP8, *WITH_FP8)
ASKED = ("fp16", "int8", "int8_sq", "int4_awq", "fp8", "nvfp4")
CACHES = ("fp32", "fp16", "int8", "fp8")

POSSIBLE = {card: {"fp16", "int8", "int4_awq"} for card in WITHOUT_FP8}
POSSIBLE |= {card: {"fp16", "int8", "int4_awq", "fp8"} for card in WITH_FP8}
POSSIBLE_CACHES = {card: {"fp16", "int8"} for card in WITHOUT_FP8}
POSSIBLE_CACHES |= {card: {"fp16", "int8", "fp8"} for card in WITH_FP8}
REFUSED = {
    # precision: the reason, and the nearest in bits that there is
    "int8_sq": ("SmoothQuant engines are not supported for Llama 3", "`--precision int8`"),
    "fp8": ("FP8 arithmetic begins with sm_89", "`--precision int8`"),
    "nvfp4": ("only Blackwell GPUs have NVFP4 arithmetic", "`--precision int4_awq`"),
}
REFUSED_ON_5090 = {"nvfp4": ("no engine of it is proved yet", "`--precision int4_awq`")}
REFUSED_CACHES = {
    "fp32": ("its backends have no such cache", "`--kv fp16`"),
    "fp8": ("an FP8 cache needs FP8 hardware, which begins with sm_89", "`--kv fp16`"),
}
IN_PARTS = {("fp16", "fp16"), ("int8", "fp16"), ("int4_awq", "fp16"), ("fp8", "fp16"),
            ("fp8", "fp8")}  # fmt: skip
"""Precision and cache of prompts that may go through in parts (tensorrt_llm/builder.py turns paged
context attention off elsewhere)."""
FUSED_MLP = {"fp16": "enable", "int8": "disable", "int4_awq": "disable", "fp8": "disable"}
"""`--use_fused_mlp`: TensorRT-LLM's is for weights that are not quantized."""
FITS_8B = {
    # at 4,096 tokens with a desktop; the weights are 14.96 GiB at 16 bits, 8.46 at 8, 5.31 at 4
    "rtx-3070": {"int4_awq"},
    "rtx-3080-10gb": {"int4_awq"},
    "rtx-3080-12gb": {"int4_awq", "int8"},
    "a100-80gb": {"int4_awq", "int8", "fp16"},
    "rtx-4090": {"int4_awq", "int8", "fp8", "fp16"},
    "rtx-5090": {"int4_awq", "int8", "fp8", "fp16"},
    "h100-80gb": {"int4_awq", "int8", "fp8", "fp16"},
}


@functools.cache
def dry_run(
    card: str, *words: str, model: str = "SmolLM2-135M-Instruct", backend: str = "tensorrt-llm"
) -> Result:
    command = ["build", "--model", model, "--profile", card, "--backend", backend]
    return CliRunner().invoke(main, [*command, *words, "--dry-run", "--json"], prog_name="edgekit")


def flags_of(command: str) -> dict[str, str | None]:
    """Flag -> value of a printed command; fails for one that `trtllm-build` would refuse."""
    words = shlex.split(command)
    start = words.index("tensorrt_llm.commands.build")
    assert words[0] == "env"
    assert words[start - 2 : start] == ["$EDGEKIT_TRTLLM_PYTHON", "-m"]
    rest, found = words[start + 1 :], dict[str, str | None]()
    while rest:
        flag = rest.pop(0)
        assert flag in FLAGS, flag
        assert flag not in found, flag
        row = FLAGS[flag]
        found[flag] = value = None if row["flag"] else rest.pop(0)
        if value is not None:
            assert not value.startswith("-"), flag
            assert not row["choices"] or value in row["choices"], (flag, value)
            assert row["type"] != "int" or int(value) >= 0, (flag, value)
    return found


def steps_of(lines: list[str]) -> list[str]:
    """The commands, without the remarks that say where each of them runs."""
    return [line for line in lines if not line.startswith("#")]


def test_the_cards_are_all_that_tensorrt_llm_is_for() -> None:
    profiles, problems = load_profiles()
    assert not problems
    assert {p.name for p in profiles if "tensorrt-llm" in p.backends} == set(CARDS)


@pytest.mark.parametrize("kv", CACHES)
@pytest.mark.parametrize("precision", ASKED)
@pytest.mark.parametrize("card", CARDS)
def test_every_combination_has_a_legal_command_or_a_reason(
    card: str, precision: str, kv: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EDGEKIT_TRTLLM_PYTHON", raising=False)
    result = dry_run(card, "--precision", precision, "--kv", kv, "--batch", "3")
    if precision in POSSIBLE[card] and kv in POSSIBLE_CACHES[card]:
        assert result.exit_code == 0, result.stderr
        plan = json.loads(result.stdout)
        makes, carries, install, compiles, command = steps_of(plan["commands"])
        found = flags_of(command)
        stage = f"SmolLM2-135M-Instruct/{card}/{precision}-tensorrt-llm.stage"
        assert carries == f"rsync -a engines/{stage} USER@DEVICE:"
        assert "pip install tensorrt-llm==1.2.1 " in install
        assert compiles == f"edgekit compile {Path(stage).name} --trtllm-python trtllm"
        asked = dict(zip(*[iter(shlex.split(makes)[2:])] * 2, strict=True))
        assert (asked["--precision"], asked["--kv"], asked["--batch"]) == (precision, kv, "3")
        assert (asked["--profile"], asked["--stage"]) == (card, "checkpoint")
        assert (asked["--backend"], asked["--context"]) == ("tensorrt-llm", "8192")
        context = plan["context_tokens"]
        at_once = 1024 if (precision, kv) in IN_PARTS else context
        sizes = {
            "--max_batch_size": 3, "--max_input_len": context - 1, "--max_seq_len": context,
            "--max_num_tokens": at_once, "--opt_num_tokens": 3, "--max_beam_width": 1,
            "--tokens_per_block": 32, "--workers": 1, "--max_draft_len": 0,
        }  # fmt: skip
        assert {flag: int(found[flag] or "") for flag in sizes} == sizes
        is_paged = "enable" if (precision, kv) in IN_PARTS else "disable"
        assert found["--use_paged_context_fmha"] == is_paged
        assert found["--use_fused_mlp"] == FUSED_MLP[precision]
        assert (plan["precision"], plan["kv_precision"], plan["batch"]) == (precision, kv, 3)
        assert str(found["--checkpoint_dir"]).endswith(f"{precision}-tensorrt-llm.stage/source")
        assert str(found["--output_dir"]).endswith(f"{precision}-tensorrt-llm/backend")
        return
    assert result.exit_code == 2
    assert result.stdout == ""
    told, hint = result.stderr.strip().split("\n\nhint: ")
    rows = {**REFUSED, **(REFUSED_ON_5090 if card == "rtx-5090" else {})}
    reason, nearest = REFUSED_CACHES[kv] if precision in POSSIBLE[card] else rows[precision]
    assert told.startswith("error: ")
    assert reason in told
    assert "\n" not in told
    assert hint.startswith(f"use {nearest}")
    instead = shlex.split(nearest.strip("`"))
    first = ("--precision", precision) if precision in POSSIBLE[card] else ()
    assert dry_run(card, *first, *instead).exit_code == 0


@pytest.mark.parametrize(
    ("card", "precision"), [(card, each) for card in CARDS for each in sorted(POSSIBLE[card])]
)
def test_an_8b_has_a_command_only_where_it_fits(card: str, precision: str) -> None:
    words = ("--precision", precision, "--context", "4096")
    result = dry_run(card, *words, model="Llama-3.1-8B-Instruct")
    plan = json.loads(result.stdout)
    assert plan["fits"] == (precision in FITS_8B[card])
    assert result.exit_code == (0 if plan["fits"] else 3)
    assert ("commands" in plan) == plan["fits"]
    if not plan["fits"]:
        assert "hint: use `--precision int" in result.stderr


def test_what_is_to_be_run_here_is_a_command_that_gives_the_same_plan() -> None:
    words = ("--precision", "fp8", "--kv", "fp8", "--speculation", "none", "--context", "4096")
    plan = json.loads(dry_run("rtx-4090", *words).stdout)
    edgekit, *pasted = shlex.split(steps_of(plan["commands"])[0])
    assert edgekit == "edgekit"
    again = CliRunner().invoke(main, [*pasted, "--dry-run", "--offline", "--json"])
    assert again.exit_code == 0, again.stderr
    assert json.loads(again.stdout) | {"commands": []} == plan | {"commands": []}


def test_a_way_to_draft_is_part_of_what_is_to_be_run_here() -> None:
    result = dry_run("rtx-4090", "--speculation", "ngram", backend="tensorrt-llm-pytorch")
    makes, *_ = steps_of(json.loads(result.stdout)["commands"])
    assert "--speculation ngram" in makes


def test_with_on_the_stage_goes_to_that_machine_and_nowhere_else(tmp_path: Path) -> None:
    asked = Request(
        model="SmolLM2-135M-Instruct", profile="rtx-4090", precision="int8", context=256,
        batch=1, backend="tensorrt-llm", store=tmp_path, stage="checkpoint",
    )  # fmt: skip
    plan, profile = request_plan(asked, asks_runtime=True)
    there = ["ssh card mkdir", "rsync to card", "ssh card edgekit compile"]
    lines = build_commands(plan, profile, asked, BuildOptions(), there=there)
    makes, *carried, command = steps_of(lines)
    assert makes.startswith("edgekit build --profile rtx-4090 --precision int8 ")
    assert carried == there  # that machine has its runtime
    assert flags_of(command)["--max_seq_len"] == "256"


PYTORCH_CARDS = tuple(card for card in CARDS if card != "rtx-5090")
POSSIBLE_CACHES_OF_1_3 = {card: POSSIBLE_CACHES[card] - {"int8"} for card in PYTORCH_CARDS}
"""`KvCacheConfig.dtype` of 1.3: auto, fp8, nvfp4."""


def test_the_pytorch_backend_is_for_cards_that_its_kernels_are_for() -> None:
    profiles, _ = load_profiles()
    found = {p.name for p in profiles if "tensorrt-llm-pytorch" in p.backends}
    assert found == set(PYTORCH_CARDS)
    result = dry_run("rtx-5090", backend="tensorrt-llm-pytorch")
    assert result.exit_code == 2
    assert "its 4-bit kernels end before sm_120" in result.stderr
    assert "hint: it has tensorrt-rtx" in result.stderr


@pytest.mark.parametrize("kv", CACHES)
@pytest.mark.parametrize("precision", ASKED)
@pytest.mark.parametrize("card", PYTORCH_CARDS)
def test_every_checkpoint_of_1_3_is_planned_or_refused_with_a_reason(
    card: str, precision: str, kv: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EDGEKIT_TRTLLM_PYTHON", raising=False)
    asked = functools.partial(dry_run, card, backend="tensorrt-llm-pytorch")
    result = asked("--precision", precision, "--kv", kv, "--batch", "3")
    if precision in POSSIBLE[card] and kv in POSSIBLE_CACHES_OF_1_3[card]:
        assert result.exit_code == 0, result.stderr
        plan = json.loads(result.stdout)
        assert (plan["precision"], plan["kv_precision"], plan["batch"]) == (precision, kv, 3)
        assert plan["backend"] == "tensorrt-llm-pytorch"
        *_, install, compiles = steps_of(plan["commands"])  # edgekit's own: nothing is compiled
        assert "pip install tensorrt-llm==1.3.0rc29 " in install
        name = f"{precision}-tensorrt-llm-pytorch.stage"
        assert compiles == f"edgekit compile {name} --trtllm-python trtllm"
        return
    assert result.exit_code == 2
    assert result.stdout == ""
    told, hint = result.stderr.strip().split("\n\nhint: ")
    rows = {**REFUSED_CACHES, "int8": ("tensorrt-llm-pytorch has no such cache", "`--kv fp16`")}
    if precision not in POSSIBLE[card]:
        rows = REFUSED
    reason, nearest = rows[kv if precision in POSSIBLE[card] else precision]
    assert told.startswith("error: ")
    assert reason in told
    assert hint.startswith(f"use {nearest}")
    first = ("--precision", precision) if precision in POSSIBLE[card] else ()
    assert asked(*first, *shlex.split(nearest.strip("`"))).exit_code == 0


@pytest.mark.parametrize("profile", ["jetson-thor", "jetson-orin", "cpu"])
def test_other_devices_have_no_such_engines(profile: str) -> None:
    result = dry_run(profile, "--precision", "int4_awq")
    assert result.exit_code == 2
    assert f"the profile `{profile}` has no backend tensorrt-llm" in result.stderr
    assert "hint: it has" in result.stderr
