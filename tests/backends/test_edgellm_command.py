"""The command lines of Edge-LLM, with the sources they are right by.

0.11.0: `--help` of its scripts. 0.11.1 and later: its documentation, user_guide/getting_started/
cli.html (`trtedge COMMAND`, hyphenated long options such as --max-input-len and --model-dir).
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from edgekit.backends.base import Wanted
from edgekit.backends.edge_llm.command import Sizes, export_command, make_sizes
from edgekit.backends.edge_llm.compiler import describe_build, describe_export
from edgekit.backends.edge_llm.runtime import Runtime
from edgekit.backends.edge_llm.way import WAYS, choose_way

OLD = Runtime(python=("/venv/bin/python",), version="0.11.0", has_trtedge=False, details={})
NEW = Runtime(python=("/venv/bin/python",), version="0.11.1", has_trtedge=True, details={})
STAGE = Path("/store/tiny/jetson-thor/int4_awq-edge-llm.stage")
ENGINE = Path("/store/tiny/jetson-thor/int4_awq-edge-llm/backend")
EXPORT, BUILD = "tensorrt_edgellm/scripts/export.py", "experimental/builder/cli.py"
DOCUMENTED = "user_guide/getting_started/cli.html of 0.11.1, Flag spelling"
ASKED = "not read anywhere for 0.11.1: asked for at run time (require_flags)"
SOURCES = {
    "--int4-gemm-plugin-version": (EXPORT, ASKED),
    "--model-dir": (BUILD, DOCUMENTED),
    "--engine-dir": (BUILD, ASKED),
    "--components": (BUILD, ASKED),
    "--spec-type": (BUILD, ASKED),
    "--max-input-len": (BUILD, DOCUMENTED),
    "--max-kv-cache-capacity": (BUILD, ASKED),
    "--max-batch-size": (BUILD, ASKED),
}
"""Flag -> where it is in 0.11.0's wheel (`--help` of the real one: test_edgellm_wheel.py), and in
`trtedge`."""
EXPORT_FLAGS = {flag for flag, (source, _) in SOURCES.items() if source == EXPORT}
BUILD_FLAGS = {flag for flag, (source, _) in SOURCES.items() if source == BUILD}


def wanted(precision: str, **more: Any) -> Wanted:
    return Wanted(precision=precision, context_tokens=1000, batch=2, capabilities=(110,), **more)


def commands(runtime: Runtime | None, precision: str) -> list[list[str]]:
    """The export, where there is one, then the build."""
    asked, source = wanted(precision), STAGE / "source"
    lines = describe_export(runtime, asked, source)
    lines += describe_build(runtime, asked, source, ENGINE)
    return [shlex.split(line) for line in lines if not line.startswith("#")]


def test_sizes_are_of_the_plan_and_never_edge_llm_s_own() -> None:
    # 1000 tokens take 8 pages of 128
    assert make_sizes(context_tokens=1000, batch=2) == Sizes(
        max_input_tokens=1000, kv_capacity_tokens=1024, batch=2
    )


@pytest.mark.parametrize("values", [(0, 96, 1), (97, 96, 1), (32, 96, 0)])
def test_sizes_of_no_engine_are_a_mistake(values: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="sizes of no engine"):
        Sizes(max_input_tokens=values[0], kv_capacity_tokens=values[1], batch=values[2])


def test_the_export_is_a_script_of_its_own_or_a_part_of_trtedge() -> None:
    words = export_command(OLD, checkpoint=Path("/m"), out=Path("/o"), precision="fp8")
    assert words == ("/venv/bin/tensorrt-edgellm-export", "/m", "/o")
    words = export_command(NEW, checkpoint=Path("/m"), out=Path("/o"), precision="int4_awq")
    assert words[:4] == ("/venv/bin/trtedge", "export", "/m", "/o")
    assert words[4:] == ("--int4-gemm-plugin-version", "2")


@pytest.mark.parametrize("precision", sorted(WAYS))
def test_every_precision_has_a_way_and_a_reason(precision: str) -> None:
    way = choose_way(precision)
    # integers go through ONNX: NVIDIA/TensorRT-Edge-LLM#208
    assert way.name == ("onnx" if precision.startswith("int") else "direct")
    assert len(way.why) > 20


@pytest.mark.parametrize("runtime", [OLD, NEW, None], ids=["0.11.0", "trtedge", "none here"])
@pytest.mark.parametrize("precision", sorted(WAYS))
def test_integers_are_exported_and_every_size_is_written_out(
    precision: str, runtime: Runtime | None
) -> None:
    *exports, builds = commands(runtime, precision)
    assert len(exports) == (1 if precision.startswith("int") else 0)
    text = " ".join(builds)
    assert "--max-input-len 1000 --max-kv-cache-capacity 1024 --max-batch-size 2" in text
    assert "experimental" not in text
    if precision.startswith("int"):
        assert str(STAGE / "source" / "onnx" / "llm") in builds
    else:
        tool = "trtedge build" if runtime is NEW else "tensorrt-edgellm-build"
        assert f"{tool} --model-dir" in text


@pytest.mark.parametrize("runtime", [OLD, NEW], ids=["0.11.0", "trtedge"])
@pytest.mark.parametrize("precision", sorted(WAYS))
def test_only_flags_with_a_source_are_used(precision: str, runtime: Runtime) -> None:
    for words in commands(runtime, precision):
        flags = {word for word in words if word.startswith("--")}
        text = " ".join(words)
        if "tensorrt-edgellm-export" in text or "trtedge export" in text:
            assert flags <= EXPORT_FLAGS
        if "tensorrt-edgellm-build" in text or "trtedge build" in text:
            assert flags == BUILD_FLAGS


def test_its_programs_see_no_folder_named_experimental() -> None:
    [export] = [each for each in commands(OLD, "int4_awq") if "PYTHONSAFEPATH=1" in each][:1]
    assert "HF_HUB_OFFLINE=1" in export
