"""`edgekit doctor --install edge-llm`: says what it does, asks, does it, finds what is there."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from edgekit.backends.edge_llm import BACKEND, installer
from edgekit.backends.edge_llm.installer import finish_installation, plan_installation
from edgekit.backends.installation import run_installation
from edgekit.backends.interpreter import MARK, Finished
from edgekit.device import Device
from edgekit.errors import BackendError, MissingBackendError
from tests.backends.test_edgellm_runtime import SAID

Recorded = Callable[[str], Device]
BASE = {"python": "3.12", "machine": "aarch64", "system": "Linux", "libc": "2.39"}


def answering(base: Mapping[str, Any] | None, inner: Mapping[str, Any] | None = None) -> Any:
    """Base interpreters say `base`, the environment `inner`."""

    def run(words: Sequence[str], environ: Mapping[str, str]) -> Finished:
        said = inner if "edge-llm" in words[0] else base
        if said is None:
            return Finished(returncode=127, stderr="not found")
        return Finished(returncode=0, stdout=f"{MARK}{json.dumps(dict(said))}")

    return run


def plan(device: Device, tmp_path: Path, run: Any) -> Any:
    environ = {"XDG_DATA_HOME": str(tmp_path), "PATH": "/usr/bin"}
    return plan_installation(device, environ=environ, run=run)


def test_a_thor_sees_jetpack_s_tensorrt(recorded: Recorded, tmp_path: Path) -> None:
    made = plan(recorded("agx-thor-jetpack-7"), tmp_path, answering(BASE))
    venv, pip = made.commands
    assert venv[1:] == ("-m", "venv", "--system-site-packages", str(made.directory))
    assert made.directory == tmp_path / "edgekit" / "edge-llm"
    assert pip[-2:] == ("--only-binary=:all:", "tensorrt-edgellm[export]==0.11.0")
    assert made.notes == (
        "builds and runs engines here with its libraries for JetPack 7.0, sm_110",
    )
    # 447,070,745 bytes of the wheel for aarch64 and 300 MiB beside it
    assert made.download_bytes == 761_643_545
    text = made.describe()
    for words in (
        "torch==2.13.0",
        "transformers==5.14.1",
        "onnx==1.19.0",
        "726.36 MiB to download",
        "'tensorrt-edgellm[export]==0.11.0'",  # a pattern to some shells
    ):
        assert words in text


@pytest.mark.parametrize(
    ("device", "base", "advice"),
    [
        (
            "agx-thor-jetpack-7",
            BASE,
            ["builds and runs engines here with its libraries for JetPack"],
        ),
        (
            "agx-orin-jetpack-6",
            BASE,
            ["runs no engine: Edge-LLM's wheel holds no libraries for Jetso"],
        ),
        ("agx-thor-jetpack-7", None, ["Edge-LLM needs Python 3.10, 3.11, 3.12, and none of them"]),
        ("container", BASE, []),
    ],
)
def test_doctor_says_what_it_will_do_on_a_board_before_it_is_installed(
    device: str, base: Mapping[str, Any] | None, advice: list[str], recorded: Recorded,
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.delenv("EDGEKIT_EDGELLM_PYTHON", raising=False)
    board = recorded(device)
    monkeypatch.setattr("edgekit.device.read_device", lambda: board)
    monkeypatch.setattr(installer, "run_program", answering(base))
    told = BACKEND.advice()
    assert len(told) == len(advice)
    for line, words in zip(told, advice, strict=True):
        assert line.startswith("Edge-LLM 0.11.0, once installed: ")
        assert words in line


def test_a_machine_without_the_gpu_exports(recorded: Recorded, tmp_path: Path) -> None:
    base = {**BASE, "machine": "x86_64", "libc": "2.36", "python": "3.11"}
    made = plan(recorded("rtx-4090"), tmp_path, answering(base))
    assert "--system-site-packages" not in made.commands[0]
    [note] = made.notes
    assert note.startswith("exports checkpoints here and runs no engine: Edge-LLM's wheel holds no")


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (None, "needs Python 3.10, 3.11, 3.12, and none of them"),
        ({**BASE, "python": "3.13"}, "needs Python 3.10, 3.11, 3.12, and none of them"),
        ({**BASE, "system": "Darwin"}, "not for Darwin on aarch64"),
        ({**BASE, "machine": "riscv64"}, "not for Linux on riscv64"),
        ({**BASE, "libc": "2.35"}, "for aarch64 needs glibc 2.39 or later, this is 2.35"),
        ({**BASE, "libc": ""}, "this is another library"),
    ],
)
def test_no_wheel_for_this_machine_is_said_before(
    base: Mapping[str, Any] | None, message: str, recorded: Recorded, tmp_path: Path
) -> None:
    with pytest.raises(MissingBackendError, match=message):
        plan(recorded("container"), tmp_path, answering(base))


def test_what_is_there_already_is_not_made_again(recorded: Recorded, tmp_path: Path) -> None:
    inner = tmp_path / "edgekit" / "edge-llm" / "bin" / "python"
    inner.parent.mkdir(parents=True)
    inner.write_text("")
    inner.chmod(0o755)
    assert plan(recorded("container"), tmp_path, answering(BASE, SAID)).is_done
    for half in ({**SAID, "edgellm": None}, {**SAID, "torch": None}, {**SAID, "edgellm": "0.11.1"}):
        assert not plan(recorded("container"), tmp_path, answering(BASE, half)).is_done


def test_steps_run_in_order_and_the_first_that_fails_ends_it(
    recorded: Recorded, tmp_path: Path
) -> None:
    made = plan(recorded("container"), tmp_path, answering(BASE))
    ran: list[Sequence[str]] = []

    def execute(command: Sequence[str], environ: Mapping[str, str]) -> int:
        ran.append(command)
        return len(ran) - 1

    with pytest.raises(BackendError, match="ended with exit code 1") as told:
        run_installation(made, {}, execute=execute)
    assert ran == list(made.commands)
    assert "what was downloaded is kept" in str(told.value.hint)


def test_an_environment_that_lacks_something_is_no_success(
    recorded: Recorded, tmp_path: Path
) -> None:
    made = plan(recorded("container"), tmp_path, answering(BASE))
    (made.directory / "bin").mkdir(parents=True)
    (made.directory / "bin" / "python").write_text("")
    (made.directory / "bin" / "python").chmod(0o755)
    with pytest.raises(BackendError, match="without all that its export needs"):
        finish_installation(made, environ={}, run=answering(BASE, {**SAID, "onnx": None}))
    assert finish_installation(made, environ={}, run=answering(BASE, SAID)).version == "0.11.0"


def test_doctor_asks_before_it_installs(
    run_cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    base = {**BASE, "machine": "x86_64"}
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setattr(installer, "run_program", answering(base))
    result = run_cli("doctor", "--install", "edge-llm")
    assert result.exit_code == 2
    assert "nobody is here to say yes" in result.stderr
    assert "tensorrt-edgellm[export]==0.11.0" in result.stderr
    assert not list(tmp_path.iterdir())


def test_only_what_edgekit_installs_can_be_asked_for(run_cli: Callable[..., Result]) -> None:
    result = run_cli("doctor", "--install", "onnxruntime")
    assert result.exit_code == 2
    assert "edgekit does not install this: onnxruntime" in result.stderr
    assert "it installs edge-llm" in result.stderr
