"""Finding TensorRT-LLM: real processes that answer as interpreters and container tools do."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from edgekit.backends import interpreter
from edgekit.backends.interpreter import Finished, read_answer, run_program
from edgekit.backends.tensorrt_llm import runtime as module
from edgekit.backends.tensorrt_llm.container import Mount
from edgekit.backends.tensorrt_llm.kinds import CHECKPOINT, ENGINE, KINDS, kind_of
from edgekit.backends.tensorrt_llm.runtime import (
    OPTION,
    VARIABLE,
    Runtime,
    find_runtime,
)
from edgekit.errors import BackendError, InputError, MissingBackendError

VERSIONS = {
    "tensorrt_llm": "1.2.1", "tensorrt": "10.14.1.48", "cuda": "13.0.96", "modelopt": "0.37.0",
    "torch": "2.9.1", "python": "3.12", "machine": "x86_64", "system": "Linux",
}  # fmt: skip
MakeScript = Callable[..., Path]


def answer(**changes: Any) -> str:
    """Shell lines that print what the probe does, among noise."""
    import json

    text = json.dumps({**VERSIONS, **changes})
    return f"echo 'NVIDIA Release 25.12'\necho 'warning' >&2\necho\necho 'edgekit-runtime:{text}'\n"


@pytest.fixture
def make_script(tmp_path: Path) -> MakeScript:
    """`make(name, lines)`: a shell script in its own directory."""

    def make(name: str, lines: str) -> Path:
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{lines}", encoding="utf-8")
        path.chmod(0o755)
        return path

    return make


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "HOME": str(tmp_path)}


def test_an_interpreter_says_what_it_has(make_script: MakeScript, environ: dict[str, str]) -> None:
    python = make_script("python", answer())
    found = find_runtime(str(python), environ=environ)
    assert found.kind == "interpreter"
    assert found.version == "1.2.1"
    assert found.words() == (str(python),)
    assert found.details["tensorrt"] == "10.14.1.48"
    assert found.details["python"] == "3.12"
    assert found.makes_engines
    assert found.stop_words("any") == ()
    assert not found.notes


def test_the_probe_is_a_program_that_runs() -> None:
    # this interpreter has no TensorRT-LLM: the answer says so, and which Python it is
    done = subprocess.run(
        [sys.executable, "-c", module._PROBE], capture_output=True, text=True, check=True
    )
    said = read_answer(Finished(returncode=0, stdout=done.stdout))
    assert said is not None
    assert said["tensorrt_llm"] is None
    assert said["python"] == f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert set(said) == set(VERSIONS)


def test_the_option_comes_before_the_variable(
    make_script: MakeScript, environ: dict[str, str]
) -> None:
    first = make_script("first", answer(tensorrt_llm="1.2.0"))
    second = make_script("second", answer())
    environ[VARIABLE] = str(second)
    assert find_runtime(None, environ=environ).version == "1.2.1"
    assert find_runtime(str(first), environ=environ).version == "1.2.0"


def test_a_directory_or_a_name_on_the_path_is_enough(
    make_script: MakeScript, environ: dict[str, str], tmp_path: Path
) -> None:
    python = make_script("python", answer())
    assert find_runtime(str(tmp_path), environ=environ).python == (str(python),)
    assert find_runtime("python", environ=environ).python == (str(python),)


def test_this_environment_is_asked_last(
    environ: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    information = tmp_path / "site" / "tensorrt_llm-1.2.1.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text("Name: tensorrt_llm\nVersion: 1.2.1\n")
    with pytest.raises(MissingBackendError, match="was not found") as caught:
        find_runtime(None, environ=environ)
    assert caught.value.hint is not None
    assert "tensorrt-llm==1.2.1" in caught.value.hint
    assert OPTION in caught.value.hint
    monkeypatch.syspath_prepend(information.parent)
    environ["PYTHONPATH"] = str(information.parent)
    found = find_runtime(None, environ=environ)
    assert found.is_own
    assert found.version == "1.2.1"


def test_another_interpreter_does_not_see_this_ones_packages(
    make_script: MakeScript, environ: dict[str, str]
) -> None:
    python = make_script("python", f'test -z "$PYTHONPATH" || exit 9\n{answer()}')
    environ["PYTHONPATH"] = "/of/this/environment"
    assert find_runtime(str(python), environ=environ).version == "1.2.1"


@pytest.mark.parametrize(
    ("changes", "expected", "hint"),
    [
        ({"tensorrt_llm": None}, "is not installed in", "-m pip install tensorrt-llm==1.2.1"),
        ({"tensorrt_llm": None, "python": "3.11"}, "no TensorRT-LLM for Python 3.11", "python3.12"),
        ({"tensorrt_llm": None, "python": "3.10", "machine": "aarch64"}, "aarch64", "python3.12"),
        ({"tensorrt_llm": None, "system": "Darwin"}, "on Darwin", "docker:"),
        ({"tensorrt_llm": "0.21.0"}, "0.21.0, edgekit needs 1.0", "1.2.1"),
        ({"tensorrt_llm": "main"}, "unknown version: main", None),
    ],
)
def test_an_environment_without_a_usable_version_is_refused(
    make_script: MakeScript,
    environ: dict[str, str],
    changes: dict[str, str | None],
    expected: str,
    hint: str | None,
) -> None:
    python = make_script("python", answer(**changes))
    with pytest.raises(BackendError, match=expected) as caught:
        find_runtime(str(python), environ=environ)
    assert caught.value.exit_code == 4
    assert "\n" not in str(caught.value)
    if hint is not None:
        assert caught.value.hint is not None
        assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("version", "has_engines"),
    [
        ("1.0.0", True),
        ("1.1.0", True),
        ("1.2.0rc4", True),
        ("1.2.1", True),
        ("1.2.1+cu130", True),
        ("1.3.0rc5", False),
        ("1.3.0", False),
        ("1.4.0rc4", False),
        ("2.0.0", False),
    ],
)
def test_the_version_decides_which_kind_it_has(version: str, has_engines: bool) -> None:
    found = Runtime(kind="interpreter", python=("python",), version=version, details={})
    assert found.makes_engines == has_engines
    assert kind_of(found) is (ENGINE if has_engines else CHECKPOINT)
    assert [kind for kind in KINDS if kind.is_of(found)] == [kind_of(found)]


@pytest.mark.parametrize(("modelopt", "count"), [("0.43.0", 0), ("0.44.0", 1), ("0.47.1", 1)])
def test_a_newer_modelopt_is_a_note(modelopt: str, count: int) -> None:
    details = {"modelopt": modelopt}
    found = Runtime(kind="interpreter", python=("p",), version="1.2.1", details=details)
    assert len(found.notes) == count


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("echo 'Illegal option -c' >&2; exit 2", "Illegal option -c"),
        ("exit 3", "exit code 3"),
        ("echo 'edgekit-runtime:{broken'", "edgekit-runtime"),
        ("printf '\\377\\376\\000'", "does not answer"),
    ],
)
def test_what_does_not_answer_is_refused(
    make_script: MakeScript, environ: dict[str, str], lines: str, expected: str
) -> None:
    python = make_script("python", lines)
    with pytest.raises(BackendError, match=expected):
        find_runtime(str(python), environ=environ)


def test_a_path_that_is_no_interpreter_is_refused(environ: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(MissingBackendError, match="is not there"):
        find_runtime(str(tmp_path / "none"), environ=environ)
    (tmp_path / "text").write_text("x")
    with pytest.raises(MissingBackendError, match="cannot be run"):
        find_runtime(str(tmp_path / "text"), environ=environ)


def test_a_program_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interpreter, "_TIMEOUT_S", 0.2)
    finished = run_program(["sleep", "30"], dict(os.environ))
    assert finished.returncode == 124
    assert "no answer" in finished.stderr


DOCKER = """
case "$1" in
  image) INSPECT ;;
  run) shift; echo "$@" > "$HOME/started"; RUN ;;
esac
"""


def docker(make_script: MakeScript, *, inspect: str = "echo sha256:1", run: str = "") -> Path:
    return make_script("docker", DOCKER.replace("INSPECT", inspect).replace("RUN", run))


def test_an_image_is_asked_inside_a_container(
    make_script: MakeScript, environ: dict[str, str], tmp_path: Path
) -> None:
    tool = docker(make_script, run=answer().replace("\n", ";").rstrip(";"))
    found = find_runtime("docker:nvcr.io/x:1.2.1", environ=environ)
    assert found.kind == "container"
    assert found.details["image"] == "nvcr.io/x:1.2.1"
    started = (tmp_path / "started").read_text().split()
    assert started[started.index("--gpus") + 1] == "all"
    assert "--pull=never" in started
    assert found.python[0] == str(tool)
    words = found.words(
        mounts=[Mount(path=Path("/a")), Mount(path=Path("/b"), is_writable=True)],
        settings={"X": "1"}, name="n",
    )  # fmt: skip
    assert words[-2:] == ("nvcr.io/x:1.2.1", "python3")
    text = " ".join(words)
    assert "--mount type=bind,source=/a,target=/a,readonly --mount" in text
    assert "--mount type=bind,source=/b,target=/b -e X=1" in text
    assert "--name n" in text
    assert f"--user {os.getuid()}:{os.getgid()}" in text
    assert found.stop_words("n") == (str(tool), "rm", "--force", "n")


def test_podman_keeps_its_user(make_script: MakeScript, environ: dict[str, str]) -> None:
    docker(make_script, run=answer().replace("\n", ";").rstrip(";")).rename(
        Path(environ["HOME"]) / "bin" / "podman"
    )
    words = find_runtime("podman:x:1", environ=environ).words()
    assert "nvidia.com/gpu=all" in words
    assert "--user" not in words


@pytest.mark.parametrize(
    ("inspect", "run", "expected", "hint"),
    [
        ("echo 'Error: No such image: x:1' >&2; exit 1", "", "no such image", "docker pull x:1"),
        (
            "echo 'Cannot connect to the Docker daemon at unix:///var/run/docker.sock. "
            "Is the docker daemon running?' >&2; exit 1",
            "", "does not answer", "systemctl start docker",
        ),
        (
            "echo 'permission denied while trying to connect to the Docker daemon socket' >&2; "
            "exit 1", "", "may not use docker", "usermod",
        ),
        ("echo 'strange' >&2; exit 7", "", "cannot look at the image", "inspect"),
        (
            "true",
            "echo 'docker: Error response from daemon: could not select device driver \"\" with "
            "capabilities: [[gpu]].' >&2; exit 125",
            "cannot give the GPU", "nvidia-ctk",
        ),
        ("true", "echo 'exec: python3: not found' >&2; exit 127", "does not start Python", "run"),
    ],
)  # fmt: skip
def test_what_a_container_tool_cannot_do_is_said(
    make_script: MakeScript,
    environ: dict[str, str],
    inspect: str,
    run: str,
    expected: str,
    hint: str,
) -> None:
    docker(make_script, inspect=inspect, run=run or "true")
    with pytest.raises(BackendError, match=expected) as caught:
        find_runtime("docker:x:1", environ=environ)
    assert caught.value.hint is not None
    assert hint in caught.value.hint


def test_an_image_without_it_is_told_of_the_right_one(
    make_script: MakeScript, environ: dict[str, str]
) -> None:
    said = answer(tensorrt_llm=None).replace("\n", ";").rstrip(";")
    docker(make_script, run=said)
    with pytest.raises(MissingBackendError, match="not installed in the image x:1") as caught:
        find_runtime("docker:x:1", environ=environ)
    assert "docker:nvcr.io" in str(caught.value.hint)


def test_a_tool_that_is_not_installed_is_named(environ: dict[str, str]) -> None:
    environ["PATH"] = environ["HOME"]
    with pytest.raises(MissingBackendError, match="docker, which is not installed"):
        find_runtime("docker:x:1", environ=environ)


@pytest.mark.parametrize("said", ["docker:", "docker:--privileged"])
def test_an_image_that_is_none_is_a_wrong_flag(said: str, environ: dict[str, str]) -> None:
    def refuse(words: Sequence[str], variables: Mapping[str, str]) -> Finished:
        raise AssertionError(words)

    with pytest.raises(InputError, match="names no image"):
        find_runtime(said, environ=environ, run=refuse)
