"""The group: names, messages, exit codes, and which stream a word goes to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
from click.testing import Result

from edgekit import __version__

Run = Callable[..., Result]


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_by_both_flags(run_cli: Run, flag: str) -> None:
    for command in ([], ["plan"], ["engines", "list"]):
        result = run_cli(*command, flag)
        assert (result.exit_code, result.stderr) == (0, "")
        assert result.stdout.startswith("Usage: edgekit")


def test_the_version_is_the_packages(run_cli: Run) -> None:
    assert run_cli("--version").stdout == f"edgekit, version {__version__}\n"
    assert metadata.version("edgekit") == __version__


@pytest.mark.parametrize(
    ("typed", "meant"), [("buld", "build"), ("benhc", "bench"), ("engine", "engines")]
)
def test_a_mistyped_command_is_met_with_the_nearest(run_cli: Run, typed: str, meant: str) -> None:
    result = run_cli(typed)
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"No such command '{typed}'. Did you mean `{meant}`?" in result.stderr


def test_a_command_that_resembles_none_gets_no_guess(run_cli: Run) -> None:
    result = run_cli("xyzzy")
    assert result.exit_code == 2
    assert "Did you mean" not in result.stderr


# arguments, exit code, first line of the error, part of the hint
MISTAKES: list[tuple[list[str], int, str, str]] = [
    (["plan", "--model", "llama"], 2, "unknown model: llama", "known are "),
    (["plan", "--model", "./nowhere"], 2, "no such file or directory: ./nowhere", "a known model"),
    (["plan", "--profile", "rtx"], 2, "unknown profile: rtx", "known are "),
    (["plan", "--profile", "no.toml"], 2, "cannot read no.toml: ", "check the name"),
    (["plan", "--backend", "no"], 2, "the profile `cpu` has no backend no", "onnxruntime"),
    (["plan", "--precision", "fp8"], 2, "fp8 is not possible on `cpu`: ", "it has "),
    (["build", "--model", "./nowhere"], 2, "no such file or directory: ./nowhere", "a hub id"),
    (["build", "--model", "./a.gguf"], 2, "no such file or directory: ./a.gguf", "a hub id"),
    (["build"], 2, "which model?", "downloads 16 GB"),
    (["quantize", "--out", "q"], 2, "which model?", "--model"),
    (["chat", "--prompt", "hi"], 2, "no engine in the store: engines", "edgekit build"),
    (["bench"], 2, "no engine in the store: engines", "edgekit build"),
    (["verify", "gone"], 2, "no engine in the store: engines", "edgekit build"),
    (["verify", "."], 5, "not an engine directory: .", "edgekit engines"),
    (["chat", ".", "--prompt", "hi"], 5, "not an engine directory: .", "edgekit engines"),
    (["engines", "rm", "gone"], 2, "no engine in the store: engines", ""),
    (["engines", "rm", "."], 5, "not an engine directory: .", ""),
    (["compile", "."], 2, "not a checkpoint that edgekit quantized: .", "edgekit quantize"),
]


@pytest.mark.parametrize(
    ("arguments", "code", "message", "hint"), MISTAKES, ids=[" ".join(row[0]) for row in MISTAKES]
)
def test_a_mistake_is_a_sentence_and_a_hint_on_stderr(
    run_cli: Run,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    arguments: list[str],
    code: int,
    message: str,
    hint: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run_cli(*arguments)
    assert (result.exit_code, result.stdout) == (code, "")
    first, *rest = result.stderr.splitlines()
    assert first.startswith(f"error: {message}")
    assert not first.endswith(".") or message.endswith(".")
    assert hint in "\n".join(rest)
    assert not rest or rest[-1].startswith("hint: ")
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["plan", "--precision", "int3"],
        ["plan", "--context", "0"],
        ["plan", "--batch", "0"],
        ["plan", "--no-such-flag"],
        ["build", "--calibration-tokens", "1"],
        ["quantize"],
        ["compile", "no-such-directory"],
        ["engines", "rm"],
    ],
    ids=" ".join,
)
def test_a_wrong_flag_is_a_usage_error(run_cli: Run, arguments: list[str]) -> None:
    result = run_cli(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("Usage: edgekit ")


def test_an_unknown_precision_lists_the_known(run_cli: Run) -> None:
    assert "'int4_awq'" in run_cli("plan", "--precision", "int3").stderr


def test_a_bug_of_ours_keeps_its_traceback(tmp_path: Path) -> None:
    code = (
        "import edgekit.planning, edgekit.cli\n"
        "edgekit.planning.find_targets = lambda *_: 1 / 0\n"
        "edgekit.cli.main(['plan'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "ZeroDivisionError" in done.stderr


def test_ctrl_c_is_130_and_one_word(tmp_path: Path) -> None:
    """A FIFO for a profile: the command waits in the middle of its work until it is interrupted."""
    fifo = tmp_path / "wait.toml"
    os.mkfifo(fifo)
    code = "from edgekit.cli import main; main(['plan', '--profile', 'wait.toml'])"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    # opening this end returns when the command has opened its own; closing it wakes a command that
    # was told just before it began to read
    with process:
        with fifo.open("w"):
            process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "")
    assert err == "\ninterrupted\n"
