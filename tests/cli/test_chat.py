from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgekit.cli.chat import command
from edgekit.errors import EngineError, InputError


def failure(*arguments: str, stdin: str = "hi") -> BaseException | None:
    return CliRunner().invoke(command, list(arguments), input=stdin).exception


def test_help_shows_every_option() -> None:
    result = CliRunner().invoke(command, ["--help"])
    assert result.exit_code == 0
    for option in ("--think", "--system", "--prompt", "--stop", "--json", "--stats", "--store"):
        assert option in result.stdout


def test_a_bad_sampling_value_is_refused_before_the_store_is_read(tmp_path: Path) -> None:
    error = failure("--temperature", "-1", "--store", str(tmp_path))
    assert isinstance(error, InputError)
    assert "temperature must be from 0 to 100: -1.0" in str(error)


@pytest.mark.parametrize(
    "arguments", [["--max-new-tokens", "0"], ["--context", "1"], ["--think", "maybe"]]
)
def test_a_flag_out_of_range_is_a_usage_error(arguments: list[str]) -> None:
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 2
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--think-budget", "-2"], "a thinking budget is a number of tokens: -2"),
        (["--think", "off", "--think-budget", "5"], "a thinking budget of 5 without thinking"),
        (["--schema", "{"], "the schema is not JSON"),
        (["--schema", "missing.json"], "cannot read the schema file missing.json"),
        (["--grammar", "missing.lark"], "cannot read the grammar file missing.lark"),
        (["--schema", "{}", "--regex", "a"], "give one of"),
        (["--tools", "missing.json"], "missing.json"),
        (["--load", "missing.jsonl"], "missing.jsonl"),
    ],
)
def test_what_cannot_be_is_refused_before_the_store_is_read(
    arguments: list[str], reason: str, tmp_path: Path
) -> None:
    error = failure(*arguments, "--store", str(tmp_path / "none"))
    assert isinstance(error, InputError)
    assert reason in str(error)
    assert "no engine" not in str(error)


def test_an_empty_store_is_refused(tmp_path: Path) -> None:
    error = failure("--store", str(tmp_path))
    assert isinstance(error, InputError)
    assert "no engine in the store" in str(error)


def test_a_directory_that_is_no_engine_is_refused(tmp_path: Path) -> None:
    assert isinstance(failure(str(tmp_path)), EngineError)


def test_an_empty_pipe_without_prompt_is_refused(tmp_path: Path) -> None:
    error = failure("--store", str(tmp_path), stdin="")
    assert isinstance(error, InputError)
    assert "stdin is empty" in str(error)


def test_the_command_imports_no_heavy_library() -> None:
    code = (
        "import sys, edgekit.cli.chat; "
        "heavy = {'torch', 'transformers', 'onnx', 'onnxruntime', 'modelopt'}; "
        "sys.exit(sorted(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
