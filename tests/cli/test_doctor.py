from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from edgekit import __version__
from edgekit.device import Device, read_device
from edgekit.doctor import Diagnosis, diagnose

Run = Callable[..., Result]
Recorded = Callable[[str], Device]

INSTALLED = {
    "edgekit": __version__,
    "onnxruntime": "1.32.0",
    "onnxruntime-gpu": None,
    "nvidia-ml-py": "13.0",
    "nvidia-modelopt": "0.47.0",
    "torch": "2.12.0",
    "transformers": "5.0",
    "onnx": "1.19",
}
"""What the machine of a test has."""


FOREIGN = "not for `cpu`"


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> dict[str, str | None]:
    """Change what is installed."""
    installed: dict[str, str | None] = dict(INSTALLED)

    def version(name: str) -> str:
        if (found := installed.get(name)) is None:
            from importlib.metadata import PackageNotFoundError

            raise PackageNotFoundError(name)
        return found

    monkeypatch.setattr("importlib.metadata.version", version)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.delenv("EDGEKIT_PROFILE_PATH", raising=False)
    monkeypatch.delenv("EDGEKIT_EDGELLM_PYTHON", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", "/nowhere")
    return installed


@pytest.fixture
def examine(
    recorded: Recorded, packages: dict[str, str | None], tmp_path: Path
) -> Callable[[str], Diagnosis]:
    return lambda name: diagnose(recorded(name), tmp_path / "no" / "store")


def real(diagnosis: Diagnosis) -> list[tuple[str, str]]:
    return [(s.name, s.profile) for s in diagnosis.backends if s.reason is None]


def test_a_machine_without_a_gpu_runs_on_its_processor(
    examine: Callable[[str], Diagnosis],
) -> None:
    diagnosis = examine("container")
    assert diagnosis.profile == "cpu"
    assert real(diagnosis) == [("onnxruntime", "cpu")]
    assert {s.name for s in diagnosis.backends} == {
        "onnxruntime", "tensorrt-llm", "tensorrt-llm-pytorch", "tensorrt-rtx", "edge-llm"
    }  # fmt: skip
    reasons = {s.name: s.reason for s in diagnosis.backends}
    assert "compiles here for RTX cards" in str(reasons.pop("tensorrt-rtx"))
    assert reasons == {
        "onnxruntime": None,
        "tensorrt-llm": FOREIGN,
        "tensorrt-llm-pytorch": FOREIGN,
        "edge-llm": FOREIGN,
    }
    assert (diagnosis.install, diagnosis.advice) == ((), ())


def test_a_card_needs_the_gpu_package(
    examine: Callable[[str], Diagnosis], packages: dict[str, str | None]
) -> None:
    diagnosis = examine("rtx-3070")
    assert diagnosis.profile == "rtx-3070"
    assert real(diagnosis) == [("tensorrt-rtx", "rtx-3070"), ("onnxruntime", "cpu")]
    gpu, llm = diagnosis.install
    assert gpu.startswith("pip uninstall -y onnxruntime && pip install 'onnxruntime-gpu[")
    # the profile's first choice, of a version that makes engines
    assert "trtllm/bin/pip install tensorrt-llm==1.2.1 " in llm
    assert llm.endswith("  # then `--trtllm-python trtllm`")

    packages.update({"onnxruntime-gpu": "1.32.0", "onnxruntime": None})
    diagnosis = examine("rtx-3070")
    assert real(diagnosis)[:2] == [("tensorrt-rtx", "rtx-3070"), ("onnxruntime", "rtx-3070")]
    assert diagnosis.install == (llm,)


def test_both_builds_of_onnxruntime_at_once_are_a_trap(
    examine: Callable[[str], Diagnosis], packages: dict[str, str | None]
) -> None:
    packages["onnxruntime-gpu"] = "1.32.0"
    assert "overwrite each other's files" in examine("rtx-3070").advice[0]


def test_what_quantizing_needs_is_named(
    examine: Callable[[str], Diagnosis], packages: dict[str, str | None]
) -> None:
    packages.update({"torch": None, "nvidia-ml-py": None})
    commands = examine("container").install
    assert commands[0].startswith("pip install 'edgekit[build]'")
    assert commands[1].startswith("pip install nvidia-ml-py")


def test_a_thor_in_its_default_mode_is_told_how_to_run_at_full_speed(
    examine: Callable[[str], Diagnosis],
) -> None:
    diagnosis = examine("agx-thor-jetpack-7")
    assert diagnosis.profile == "jetson-thor"
    [advice] = diagnosis.advice
    assert "120W" in advice
    assert "`sudo nvpmodel -m 0 && sudo jetson_clocks`" in advice
    assert diagnosis.backends[0].name == "edge-llm"
    assert "needs Edge-LLM in a Python of its own" in str(diagnosis.backends[0].reason)
    assert "edgekit doctor --install edge-llm" in diagnosis.install


def test_an_orin_at_full_speed_needs_no_advice_but_for_an_old_jetpack(
    examine: Callable[[str], Diagnosis],
) -> None:
    assert examine("agx-orin-jetpack-7").advice == ()
    old = "jetson-orin needs JetPack 7.2 or later, this is 6.1"
    diagnosis = examine("agx-orin-jetpack-6")
    assert diagnosis.advice == (old,)
    assert diagnosis.backends[0].reason == old


def test_a_driver_without_a_gpu_is_said(examine: Callable[[str], Diagnosis]) -> None:
    diagnosis = examine("driver-without-gpu")
    assert diagnosis.profile == "cpu"
    assert "finds no GPU" in diagnosis.advice[0]


def test_a_gpu_that_is_too_old_leaves_the_processor(
    packages: dict[str, str | None], tmp_path: Path
) -> None:
    old = {"gpus": [{"name": "NVIDIA GeForce GTX 1080", "capability": [6, 1]}]}
    diagnosis = diagnose(read_device(root=tmp_path, nvml=old), tmp_path)
    assert diagnosis.profile == "cpu"
    assert diagnosis.can_run
    assert "older than sm_75" in diagnosis.advice[0]


NAMES = [
    "rtx-3070", "rtx-4090", "two-gpus", "agx-orin-jetpack-6", "agx-orin-jetpack-7",
    "agx-thor-jetpack-7", "driver-without-gpu", "container",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_the_command_says_it_in_words_and_in_json(
    run_cli: Run,
    recorded: Recorded,
    packages: dict[str, str | None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    name: str,
) -> None:
    device = recorded(name)
    monkeypatch.setattr("edgekit.cli.doctor.read_device", lambda **_: device)
    said = run_cli("doctor", "--store", tmp_path)
    assert (said.exit_code, said.stderr) == (0, "")
    lines = said.stdout.splitlines()
    assert lines[0].startswith("cpu      ")
    assert ["edgekit", __version__] in [line.split() for line in lines]
    names = ("tensorrt-rtx-cu13-bindings", "cuda-bindings")  # none runs into its version
    assert all(any(line.split()[:1] == [name] for line in lines) for name in names)
    for gpu in device.gpus:
        assert any(line.startswith(f"gpu {gpu.index}") and gpu.name in line for line in lines)
    data = json.loads(run_cli("doctor", "--json", "--store", tmp_path).stdout)
    assert data["device"] == device.to_dict()
    assert data["can_run"] is True
    assert data["store"]["free_bytes"] > 0
    assert {row["name"] for row in data["backends"]} >= {"onnxruntime", "edge-llm"}


def test_a_machine_where_nothing_runs_ends_with_4(
    run_cli: Run,
    recorded: Recorded,
    packages: dict[str, str | None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device = recorded("container")
    monkeypatch.setattr("edgekit.cli.doctor.read_device", lambda **_: device)

    def missing(name: str) -> list[str]:
        return ["onnxruntime"]

    monkeypatch.setattr("edgekit.choice.missing_packages", missing)
    monkeypatch.setattr("edgekit.doctor.missing_packages", missing)
    result = run_cli("doctor")
    assert result.exit_code == 4
    assert "onnxruntime for cpu: no: needs onnxruntime, which is not installed" in result.stdout
    assert "error: no backend of edgekit can run on this machine" in result.stderr
    assert "hint: pip install 'onnxruntime" in result.stderr


def test_nothing_large_is_imported(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom edgekit.cli import main\n"
        "try:\n    main(['doctor', '--json'])\n"
        "except SystemExit as exc:\n    assert exc.code == 0, exc.code\n"
        "print(sorted({'numpy', 'onnx', 'onnxruntime', 'torch', 'transformers', 'modelopt'}"
        " & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "[]\n")
    data: dict[str, Any] = json.loads(done.stdout)
    assert data["device"]["memory_bytes"] > 0
