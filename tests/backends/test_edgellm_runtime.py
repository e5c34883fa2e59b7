"""Edge-LLM is found, asked and judged; nothing of its version is assumed."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from edgekit.backends.edge_llm.runtime import VARIABLE, find_runtime, is_named
from edgekit.backends.interpreter import MARK, Finished, release_of, run_program
from edgekit.errors import BackendError, MissingBackendError

SAID: dict[str, Any] = {
    "edgellm": "0.11.0", "scripts": ["tensorrt-edgellm-build", "tensorrt-edgellm-export"],
    "tensorrt": "10.16.0", "torch": "2.13.0", "transformers": "5.14.1", "onnx": "1.19.0",
    "python": "3.12", "machine": "aarch64", "system": "Linux", "libc": "glibc 2.39",
    "variants": None,
}  # fmt: skip


@pytest.fixture
def python(tmp_path: Path) -> Path:
    path = tmp_path / "venv" / "bin" / "python"
    path.parent.mkdir(parents=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def runner(said: Mapping[str, Any] | None, *, stderr: str = "") -> Any:
    def run(words: Sequence[str], environ: Mapping[str, str]) -> Finished:
        assert "PYTHONPATH" not in environ
        assert environ["PYTHONSAFEPATH"] == "1"
        out = "" if said is None else f"noise\n{MARK}{json.dumps(said)}\n"
        return Finished(returncode=0 if said is not None else 1, stdout=out, stderr=stderr)

    return run


def find(python: Path, changes: Mapping[str, Any]) -> Any:
    environ = {"HOME": str(python.parent), "PYTHONPATH": "/elsewhere"}
    return find_runtime(str(python), environ=environ, run=runner({**SAID, **changes}))


def test_versions_and_commands_are_what_it_says(python: Path) -> None:
    runtime = find(python, {})
    assert (runtime.version, runtime.has_trtedge, runtime.can_export) == ("0.11.0", False, True)
    assert runtime.python == (str(python),)
    assert "variants" not in runtime.details


def test_trtedge_is_seen_by_its_script_not_by_its_version(python: Path) -> None:
    assert find(python, {"edgellm": "0.11.1", "scripts": ["trtedge"]}).has_trtedge
    assert not find(python, {"edgellm": "0.12.0", "scripts": []}).has_trtedge


@pytest.mark.parametrize("name", ["torch", "transformers", "onnx"])
def test_without_its_export_extra_it_exports_nothing(name: str, python: Path) -> None:
    assert not find(python, {name: None}).can_export


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"edgellm": "0.10.1"}, BackendError, "has Edge-LLM 0.10.1, edgekit needs 0.11.0"),
        ({"edgellm": "soon"}, BackendError, "an Edge-LLM of an unknown version: soon"),
        ({"edgellm": None}, MissingBackendError, "Edge-LLM is not installed in"),
        (
            {"edgellm": None, "python": "3.13"},
            MissingBackendError,
            "there is no Edge-LLM for Python 3.13 on Linux aarch64",
        ),
        ({"edgellm": None, "system": "Windows"}, MissingBackendError, "on Windows aarch64"),
    ],
)
def test_what_is_of_no_use_is_refused_with_the_reason(
    changes: dict[str, Any], error: type[Exception], message: str, python: Path
) -> None:
    with pytest.raises(error, match=message):
        find(python, changes)


def test_an_interpreter_that_does_not_answer_is_named(python: Path) -> None:
    with pytest.raises(BackendError, match="does not answer as a Python does: no such thing"):
        find_runtime(str(python), environ={}, run=runner(None, stderr="x\nno such thing\n"))


def test_the_environment_that_edgekit_made_is_found(tmp_path: Path, python: Path) -> None:
    made = tmp_path / "edgekit" / "edge-llm" / "bin"
    made.parent.mkdir(parents=True)
    python.parent.rename(made)
    environ = {"XDG_DATA_HOME": str(tmp_path)}
    assert is_named(environ)
    assert find_runtime(None, environ=environ, run=runner(SAID)).python == (str(made / "python"),)


def test_the_variable_comes_before_it_and_may_name_the_environment(python: Path) -> None:
    environ = {VARIABLE: str(python.parent.parent), "XDG_DATA_HOME": "/nowhere"}
    assert find_runtime(None, environ=environ, run=runner(SAID)).python == (str(python),)


def test_where_there_is_none_the_installer_is_named(tmp_path: Path) -> None:
    environ = {"XDG_DATA_HOME": str(tmp_path)}
    assert not is_named(environ)
    with pytest.raises(MissingBackendError, match="was not found") as told:
        find_runtime(None, environ=environ)
    assert "edgekit doctor --install edge-llm" in str(told.value.hint)


def test_an_interpreter_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingBackendError, match="--edgellm-python names an interpreter that is"):
        find_runtime(str(tmp_path / "none"), environ={})


def test_a_python_without_it_says_so_itself(tmp_path: Path) -> None:
    """The program that asks runs as it is, in this very interpreter."""
    with pytest.raises(MissingBackendError, match="Edge-LLM"):
        find_runtime(sys.executable, environ={"HOME": str(tmp_path)}, run=run_program)


@pytest.mark.parametrize(
    ("text", "release"),
    [("0.11.0", (0, 11, 0)), ("0.11.1rc2", (0, 11, 1)), ("v1.2", (1, 2, 0)), ("x", None)],
)
def test_releases(text: str, release: tuple[int, int, int] | None) -> None:
    assert release_of(text) == release
