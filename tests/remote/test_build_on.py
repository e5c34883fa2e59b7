"""`edgekit build --on`: a checkpoint here becomes an engine there, over a real sshd."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner, Result

from edgekit.cli import main
from edgekit.engine import list_engines, open_manifest
from tests.commands import ok
from tests.remote.conftest import Server, tool, wait_until
from tests.test_edgellm_engine import use_thor

SHAPE = {"hidden_size": 128, "intermediate_size": 192, "num_key_value_heads": 2}
Run = Callable[..., Result]


def words(
    model: Path, here: Path, there: Path, server: Server, command: str, *more: str | Path
) -> list[str]:
    said = ["build", "--model", model, "--store", here, "--precision", "int8", "--context", "256",
            "--calibration-tokens", "64", "--on", server.host, "--on-edgekit", command,
            "--on-store", there]  # fmt: skip
    for option in server.options:
        said += ["--ssh-option", option]
    return [str(word) for word in (*said, *more)]


@pytest.fixture(scope="module")
def model(make_tiny: Callable[..., Path]) -> Path:
    return make_tiny("llama", **SHAPE)


@pytest.fixture(scope="module")
def here(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the stage for `cpu`, so that a build here is done in a moment."""
    store: Path = tmp_path_factory.mktemp("here") / "store"
    said = ["build", "--model", model, "--store", store, "--precision", "int8", "--profile", "cpu"]
    said += ["--context", "256", "--calibration-tokens", "64", "--stage", "checkpoint", "--json"]
    result = CliRunner().invoke(main, [str(word) for word in said], prog_name="edgekit")
    assert result.exit_code == 0, result.stderr
    made = json.loads(result.stdout)
    assert made["quality"]["measured_on"] == "twin"
    return store


@pytest.fixture
def there(tmp_path: Path) -> Path:
    return tmp_path / "over there; it's"


@pytest.mark.parametrize("way", ["rsync", "ssh"])
def test_a_checkpoint_here_becomes_an_engine_there(
    way: str, model: Path, here: Path, there: Path, server: Server,
    edgekit_there: Callable[..., str], run_cli: Run, request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    if way == "ssh":
        request.getfixturevalue("without_rsync")
    command = edgekit_there()
    made = ok(run_cli(*words(model, here, there, server, command, "--json")))
    [engine] = list_engines(there)
    assert (made["engine"], made["on"]) == (str(engine), server.host)
    assert engine == there / model.name / "cpu" / "int8-onnxruntime"
    assert open_manifest(engine, full=True).quality["measured_on"] == "engine"
    # nothing but the engine is left there, and no engine came to be here
    assert {p.name for p in (there / ".work").iterdir()} <= {"lock", "arriving"}
    assert not list((there / ".work").glob("arriving/*"))
    assert list_engines(here) == []
    said = run_cli("chat", engine, "--prompt", "hello", "--max-new-tokens", "4")
    assert said.exit_code == 0, said.stderr
    again = run_cli(*words(model, here, there, server, command))
    assert again.exit_code == 0, again.stderr
    assert f"this engine is on {server.host} already; nothing to do" in again.stderr
    assert again.stdout.startswith(f"{server.host}:{engine}\n")
    before = (engine / "manifest.json").stat().st_ino
    ok(run_cli(*words(model, here, there, server, command, "--force", "--json")))
    assert (engine / "manifest.json").stat().st_ino != before


def test_a_stage_carried_by_hand_becomes_the_same_engine(
    here: Path, tmp_path: Path, run_cli: Run, there: Path
) -> None:
    [stage] = here.glob("*/cpu/*.stage")
    assert run_cli("pack", stage, "-o", tmp_path / "stage.tar.zst").exit_code == 0
    arrived = json.loads(
        run_cli("unpack", tmp_path / "stage.tar.zst", "--store", there, "--json").stdout
    )
    made = ok(run_cli("compile", arrived["path"], "--store", there, "--json"))
    said = run_cli("chat", made["engine"], "--prompt", "hello", "--max-new-tokens", "4")
    assert said.exit_code == 0, said.stderr
    # and the engine travels as well
    assert run_cli("pack", made["engine"], "-o", tmp_path / "engine.tar.zst").exit_code == 0
    third = tmp_path / "third"
    assert run_cli("unpack", tmp_path / "engine.tar.zst", "--store", third).exit_code == 0
    assert run_cli("verify", "--store", third).exit_code == 0


def test_damage_on_the_way_is_found_there_and_not_kept(
    model: Path, here: Path, there: Path, server: Server,
    edgekit_there: Callable[..., str], run_cli: Run,
) -> None:  # fmt: skip
    damage = """
import pathlib, sys
if "compile" in sys.argv:
    stage = pathlib.Path(sys.argv[sys.argv.index("compile") + 1])
    [weights] = stage.glob("source/model.data")
    data = bytearray(weights.read_bytes())
    data[100] ^= 1
    weights.write_bytes(data)
"""
    result = run_cli(*words(model, here, there, server, edgekit_there(damage)))
    assert (result.exit_code, result.stdout) == (5, "")
    assert f"error: on {server.host}: engine file differs from what was built" in result.stderr
    assert list_engines(there) == []
    ok(run_cli(*words(model, here, there, server, edgekit_there(), "--json")))


def test_a_failure_there_ends_with_its_code_and_its_words(
    model: Path, here: Path, there: Path, server: Server,
    edgekit_there: Callable[..., str], run_cli: Run,
) -> None:  # fmt: skip
    code = """
from edgekit import verify
from edgekit.errors import QualityError
def fails(*arguments, **named):
    raise QualityError("it speaks garbage", hint="listen")
verify.require_quality = fails
"""
    result = run_cli(*words(model, here, there, server, edgekit_there(code)))
    assert (result.exit_code, result.stdout) == (4, "")
    assert f"error: on {server.host}: it speaks garbage\n\nhint: there: listen" in result.stderr
    assert "Traceback" not in result.stderr
    assert list_engines(there) == []


SLOW = """
import os, time
from pathlib import Path
from edgekit.backends.onnxruntime import OnnxRuntimeBackend
compiled = OnnxRuntimeBackend.compile
def slow(*arguments, **named):
    Path({pid!r}).write_text(str(os.getpid()))
    time.sleep(100)
OnnxRuntimeBackend.compile = slow
"""
ALONE = "import sys; from edgekit.cli import main; main(sys.argv[1:], prog_name='edgekit')"


@pytest.mark.parametrize("way", [signal.SIGINT, signal.SIGKILL, None], ids=["int", "kill", "net"])
def test_ctrl_c_here_and_a_lost_connection_stop_it_there(
    way: signal.Signals | None, model: Path, here: Path, there: Path, server: Server,
    edgekit_there: Callable[..., str], tmp_path: Path, run_cli: Run,
) -> None:  # fmt: skip
    pid = tmp_path / "pid"
    command = edgekit_there(SLOW.format(pid=str(pid)))
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", ALONE, *words(model, here, there, server, command)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_until(lambda: process.poll() is not None or (pid.exists() and pid.read_text()))
    assert process.poll() is None, process.communicate()
    assert list(there.glob("*/cpu/.building-*"))
    if way is None:
        server.drop()
    else:
        process.send_signal(way)
    out, err = process.communicate(timeout=60)
    wait_until(lambda: not psutil.pid_exists(int(pid.read_text())))
    assert out == ""
    if way is signal.SIGINT:
        assert process.returncode == 130
        assert err.endswith("\ninterrupted\n")
    if way is None:
        assert process.returncode == 1
        assert "error: " in err
    assert "Traceback" not in err
    assert not list(there.glob("*/cpu/*"))
    # it goes on where it was: what arrived is still there
    assert list((there / ".work" / "arriving").glob("*/stage.json"))
    ok(run_cli(*words(model, here, there, server, edgekit_there(), "--json")))


def test_ctrl_c_while_it_is_sent_keeps_what_arrived(
    model: Path, here: Path, there: Path, server: Server,
    edgekit_there: Callable[..., str], tmp_path: Path, run_cli: Run,
) -> None:  # fmt: skip
    slow = tmp_path / "slow"
    slow.mkdir()
    (slow / "rsync").write_text(f'#!/bin/sh\nexec {tool("rsync")} --bwlimit=100 "$@"\n')
    (slow / "rsync").chmod(0o755)
    said = words(model, here, there, server, edgekit_there(), "--json")
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", ALONE, *said],
        env={**os.environ, "PATH": f"{slow}:{os.environ['PATH']}"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    arriving = there / ".work" / "arriving"
    wait_until(lambda: process.poll() is not None or list(arriving.glob("*/reference/*")))
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, ""), err
    assert err.endswith("\ninterrupted\n")
    assert children
    wait_until(lambda: not [child for child in children if child.is_running()])
    assert not list(there.glob("*/cpu/*"))
    ok(run_cli(*said))
    assert not list(arriving.glob("*"))


CARD = """
import json
import edgekit.device
record = json.loads(open({record!r}).read())["nvml"]
edgekit.device.read_record = lambda root: record
"""


def test_tensorrt_llm_is_compiled_on_the_card_there(
    model: Path, tmp_path: Path, there: Path, server: Server,
    edgekit_there: Callable[..., str], run_cli: Run, use_trtllm: Callable[..., Path],
) -> None:  # fmt: skip
    """With the stand-in for its packages, in a Python that only the other machine is told of."""
    data = Path(__file__).parents[1] / "data"
    with pytest.MonkeyPatch.context() as patch:  # nothing of it is left on this machine
        python = use_trtllm(patch, tmp_path)
    record = data / "devices" / "rtx-4090" / "device.json"
    code = f"import os; os.environ['XDG_CACHE_HOME'] = {str(tmp_path / 'cache')!r}\n"
    command = edgekit_there(code + CARD.format(record=str(record)))
    said = words(model, tmp_path / "here", there, server, command, "--json")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "environ", os.environ.copy())
        made = ok(run_cli(*said, "--trtllm-python", str(python)))
    assert made["backend"] == {"name": "tensorrt-llm", "version": "1.2.1"}
    assert (made["profile"], made["quality"]["measured_on"]) == ("rtx-4090", "engine")
    assert Path(made["engine"]) == there / model.name / "rtx-4090" / "int8-tensorrt-llm"
    open_manifest(Path(made["engine"]), full=True)


THOR = """
import json
import edgekit.bench.watch
import edgekit.device
from edgekit.device import Jetson
record = json.loads(open({record!r}).read())["nvml"]
board = Jetson(board="NVIDIA Jetson AGX Thor Developer Kit", l4t="38.2.0", jetpack="7.0",
               power_mode="120W")
edgekit.device.read_record = lambda root: record
edgekit.device.read_jetson = lambda root, run: board
edgekit.device.read_memory = lambda root, cgroup: (131_881_062_400, 10**11)
"""


@pytest.mark.slow
def test_edge_llm_is_compiled_on_the_thor_there(
    make_tiny: Callable[..., Path], tmp_path: Path, there: Path, server: Server,
    edgekit_there: Callable[..., str], run_cli: Run,
) -> None:  # fmt: skip
    """With the stand-in for its wheel, in a Python that only the other machine is told of."""
    with pytest.MonkeyPatch.context() as patch:  # nothing of it is left on this machine
        python = use_thor(patch, tmp_path / "own")
    record = Path(__file__).parents[1] / "data" / "devices" / "agx-thor-jetpack-7" / "device.json"
    code = f"import os; os.environ['XDG_CACHE_HOME'] = {str(tmp_path / 'cache')!r}\n"
    command = edgekit_there(code + THOR.format(record=str(record)))
    model = make_tiny("llama", **(SHAPE | {"intermediate_size": 256}))
    said = words(model, tmp_path / "here", there, server, command, "--json")
    said[said.index("int8")] = "fp8"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "environ", os.environ.copy())
        made = ok(run_cli(*said, "--edgellm-python", str(python)))
    assert made["backend"]["name"] == "edge-llm"
    assert made["profile"] == "jetson-thor"
    assert made["quality"]["measured_on"].startswith("engine, ")
    assert Path(made["engine"]) == there / model.name / "jetson-thor" / "fp8-edge-llm"
    open_manifest(Path(made["engine"]), full=True)


def test_a_dry_run_prints_what_both_machines_would_do(
    model: Path, here: Path, there: Path, server: Server,
    edgekit_there: Callable[..., str], run_cli: Run,
) -> None:  # fmt: skip
    said = words(model, here, there, server, edgekit_there(), "--dry-run", "--json")
    result = run_cli(*said)
    assert result.exit_code == 0, result.stderr
    makes, sends, compiles = json.loads(result.stdout)["commands"]
    arrived = f"{there}/.work/arriving/{model.name}--cpu--int8-onnxruntime.stage"
    assert shlex.split(shlex.split(makes)[-1]) == ["mkdir", "-p", "--", arrived]
    assert shlex.split(sends)[-1] == f"{server.host}:{arrived}/"
    assert shlex.split(sends)[-2] == f"{here}/{model.name}/cpu/int8-onnxruntime.stage/"
    assert shlex.split(shlex.split(compiles)[-1])[1:3] == ["compile", arrived]
    assert not there.exists()
