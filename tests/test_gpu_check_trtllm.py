"""`scripts/gpu-check --backend tensorrt-llm`, with a stand-in for TensorRT-LLM and a card that is
recorded: the pipeline, worker processes and pipes are real; memory and speed are made up here."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest

from edgekit.bench.measure import BenchTest, TestResult
from edgekit.bench.metrics import Summary
from edgekit.device import Device, read_device
from edgekit.errors import BackendError, MissingBackendError
from gpu_check import __main__ as script
from gpu_check import streamed
from gpu_check.card import find_card
from gpu_check.job import Job, Outcome
from gpu_check.rig import Rig
from gpu_check.streamed import STEPS

SHAPE = {"hidden_size": 128, "intermediate_size": 192, "num_key_value_heads": 2}
GIB, MIB = 1024**3, 1024**2
FREE = (20 * GIB, 20 * GIB - 300 * MIB, 20 * GIB - 400 * MIB, 20 * GIB)
"""Before loading, after it, with a full context, after closing."""


def never(*_: Any) -> NoReturn:
    raise AssertionError("only the other backend has that")


@pytest.fixture
def run_script(
    use_trtllm: Callable[..., Path], make_tiny: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> Callable[..., int]:  # fmt: skip
    """`run(*arguments, backend=, speed=, free=, fails=)`: every step in this process."""
    python = use_trtllm(monkeypatch, tmp_path)
    card = read_device()

    def run(
        *arguments: str,
        backend: str = "tensorrt-llm",
        speed: float = 50_000,
        free: Sequence[int] = FREE,
        fails: Sequence[str] = (),
    ) -> int:
        def speeds(session: Any, tests: Sequence[BenchTest], **_: Any) -> list[TestResult]:
            assert max(test.needed_tokens for test in tests) == session.context_tokens - 1
            return [
                TestResult(test=test, tokens_per_s=Summary((value,)))
                for test, value in zip(tests, (1e6, speed, speed), strict=True)
            ]

        def perform(step: str, job: Job) -> Outcome:
            if step in fails:
                raise BackendError("the GPU fell off the bus")
            values = iter(free)
            rig = Rig(open_card=never, open_twin=never, free_bytes=lambda: next(values))
            # as it comes to another process
            return STEPS[step](Job.from_json(job.to_json()), rig, lambda *_: None)

        monkeypatch.setattr(streamed, "run_stream_tests", speeds)
        common = [
            "--backend", backend, "--trtllm-python", str(python), "--context", "256",
            "--model", str(make_tiny("llama", **SHAPE)), "--store", str(tmp_path / "store"),
            "--json", str(tmp_path / "report.json"),
        ]  # fmt: skip
        return script.main([*common, *arguments], look=lambda: card, perform=perform)

    return run


def row(out: str, check: str) -> str:
    return next(line for line in out.splitlines() if line.startswith(f"| {check} |"))


def test_a_card_is_proved_and_a_broken_one_is_not(
    run_script: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_script("--precisions", "int8") == 0
    out = capsys.readouterr().out
    assert out.startswith("# gpu-check: PASS, ")
    assert "FAIL" not in out
    assert "| TensorRT-LLM 1.2.1, TensorRT 10.14.1 |" in row(out, "built with")
    assert "positions; on the engine" in row(out, "its log-probabilities were compared on the card")
    # the context is 256: 255 tokens and one more
    assert "| PASS | 255 tokens |" in row(out, "tokens after the longest prompt")
    assert "| PASS | 2 at once, the first 4 tokens |" in row(out, "several slots = a single one")
    assert "| 400.00 MiB |" in row(out, "all, after a full context")
    data = json.loads((tmp_path / "report.json").read_text())
    assert [part["step"] for part in data["parts"]] == ["device", *STEPS]

    much = (20 * GIB, 15 * GIB, 15 * GIB, 18 * GIB)
    assert run_script("--precisions", "int8", speed=5, free=much, fails=("verify", "chat")) == 4
    out = capsys.readouterr().out
    assert "was there already" in row(out, "all steps")
    failed = {line.split(" | ")[0][2:] for line in out.splitlines() if "**FAIL**" in line}
    assert failed == {
        "verify", "chat", "all, after a full context", "kept after closing",
        "decode, empty context, 63 tokens", "decode, full context, 63 tokens",
    }  # fmt: skip


def test_the_checkpoint_of_a_later_version_is_proved_in_the_same_way(
    run_script: Callable[..., int], use_trtllm: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    use_trtllm(monkeypatch, tmp_path, version="1.3.0")
    assert run_script("--precisions", "int8", backend="tensorrt-llm-pytorch") == 0
    out = capsys.readouterr().out
    assert "FAIL" not in out
    assert "| TensorRT-LLM 1.3.0 |" in row(out, "built with")
    assert "positions; on the engine" in row(out, "its log-probabilities were compared on the card")
    # its builder is gone, which is said before any work
    assert run_script("--precisions", "int8") == 4
    assert "builds and runs no engines any more" in capsys.readouterr().err


def test_without_tensorrt_llm_nothing_is_begun(
    run_script: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_script("--trtllm-python", str(tmp_path / "absent")) == 4
    out, err = capsys.readouterr()
    assert out == ""
    assert "names an interpreter that is not there" in err
    assert not (tmp_path / "store" / "tiny").exists()


def test_cards_and_precisions_are_those_of_the_backend(
    recorded: Callable[[str], Device],
) -> None:
    found = recorded("rtx-4090")
    assert find_card(found, "tensorrt-llm").precisions == ("fp16", "int8", "fp8", "int4_awq")
    a100 = replace(found.gpus[0], name="NVIDIA A100-SXM4-80GB", sm=80)
    server = replace(found, gpus=(a100,))
    assert find_card(server, "tensorrt-llm").precisions == ("fp16", "int8", "int4_awq")
    with pytest.raises(MissingBackendError, match="TensorRT-RTX does not compile for NVIDIA A100"):
        find_card(server)
    with pytest.raises(MissingBackendError, match="no NVIDIA GPU"):
        find_card(replace(found, gpus=()), "tensorrt-llm")
