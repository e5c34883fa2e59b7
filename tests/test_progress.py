"""Reports that travel as lines between two programs."""

from __future__ import annotations

import time

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from edgekit.cli.progress import ProgressLine
from edgekit.progress import progress_line, read_progress


@given(step=st.text(), done=st.integers(0), total=st.integers(1))
def test_a_report_arrives_as_it_was_sent(step: str, done: int, total: int) -> None:
    line = progress_line(step, done, total)
    assert "\n" not in line
    assert read_progress(line) == (step, done, total)


@pytest.mark.parametrize(
    "line",
    [
        "", "compile: 50 %", "{}", '{"progress":', '{"progress": 1}', '{"progress": ["a", 1]}',
        '{"progress": ["a", -1, 2]}', '{"progress": ["a", 1.5, 2]}', '{"progress": [1, 1, 2]}',
        '{"progress": ["a", true, 2]}', '{"progress": null}',
        pytest.param('{"progress": ' + "[" * 100_000, id="deep"),
    ],
)  # fmt: skip
def test_another_line_is_no_report(line: str) -> None:
    assert read_progress(line) is None


@given(line=st.text())
def test_no_line_is_too_strange(line: str) -> None:
    read_progress(line)
    read_progress('{"progress":' + line)


def test_a_driven_command_tells_both_ends_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))

    @click.group()
    @click.option("--driven", "is_driven", is_flag=True)
    def group(is_driven: bool) -> None:
        pass

    @group.command()
    def work() -> None:
        with ProgressLine() as report:
            for done in range(4):
                report("compile", done, 3)
            report.say("a word")

    lines = CliRunner().invoke(group, ["--driven", "work"]).stderr.splitlines()
    assert [read_progress(line) for line in lines[:-1]] == [("compile", n, 3) for n in range(4)]
    assert lines[-1] == "a word"
