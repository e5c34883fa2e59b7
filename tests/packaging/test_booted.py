"""The unit under a real systemd, booted in a container over this machine's own root."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.packaging.conftest import EDGEKIT

pytestmark = pytest.mark.slow

DATA = Path(__file__).parent / "data"


def typed_in_readme(readme: Path) -> list[str]:
    """The commands of "As a service", for root; all but the first, which installs edgekit."""
    section = readme.read_text().split("### As a service\n")[1].split("```")[1]
    commands = [line.removeprefix("$ ") for line in section.splitlines() if line[:2] == "$ "]
    assert "pip install" in commands[0]
    assert len(commands) == 6
    return [command.replace("sudo ", "") for command in commands[1:]]


@pytest.fixture(scope="module")
def seen(
    tool: Callable[[str], str],
    packaging: Path,
    store: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Any:
    """What probe.py saw."""
    tool("systemd-nspawn")
    if os.getuid() != 0:
        pytest.skip("booting a container needs root")
    scratch: Path = tmp_path_factory.mktemp("boot")
    setup = scratch / "setup"
    source = setup / "src"  # where the commands of README are typed
    shutil.copytree(store, source / "engines")
    shutil.copytree(packaging / "systemd", source / "packaging" / "systemd")
    (source / "keys").write_text("secret\n")
    lines = ["set -e", "cd /src", *typed_in_readme(packaging.parent / "README.md")]
    units = setup / "etc/systemd/system"
    (units / "edgekit-serve.service.d").mkdir(parents=True)
    # only for the test: no minute of waiting, and Python wherever it is
    (units / "edgekit-serve.service.d" / "test.conf").write_text(
        "[Service]\nWatchdogSec=3\nRestartSec=0\nProtectHome=read-only\n"
    )
    program = setup / "opt/edgekit/bin/edgekit"
    program.parent.mkdir(parents=True)
    (program.parent / "install").write_text("\n".join(lines) + "\n")
    root, python = Path(__file__).parents[2], "/opt/edgekit/environment/bin/python"
    program.write_text(
        f'#!/bin/sh\nPYTHONPATH=/opt/edgekit/code exec {python} -c "{EDGEKIT[2]}" "$@"\n'
    )
    program.chmod(0o755)
    probe = setup / "opt/edgekit/probe"
    there = "/opt/edgekit/code" / (DATA / "probe.py").relative_to(root)
    probe.write_text(f'#!/bin/sh\nexec {python} {there} "$@"\n')
    probe.chmod(0o755)
    (scratch / "results").mkdir()
    done = subprocess.run(
        [DATA / "boot", scratch, "/opt/edgekit/probe", root, sys.prefix],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    found = scratch / "results" / "seen.json"
    journal = scratch / "results" / "journal"
    assert found.is_file(), (
        done.stdout[-3000:] + done.stderr + (journal.read_text() if journal.is_file() else "")
    )
    return json.loads(found.read_text()) | {"journal": journal.read_text()}


def test_it_starts_when_it_can_answer(seen: Any) -> None:
    assert (seen["start"], seen["state"]) == (0, "active"), seen["journal"]
    assert seen["text"] == "serving tiny"
    assert seen["health"] == 200


def test_it_is_a_user_of_its_own_without_any_capability(seen: Any) -> None:
    process = seen["process"]
    uid = int(process["Uid"].split("\t")[0])
    assert 61184 <= uid <= 65519  # systemd's range of dynamic users
    assert int(process["CapEff"], 16) == int(process["CapBnd"], 16) == 0
    assert process["NoNewPrivs"].strip() == "1"
    assert process["Seccomp"].strip() == "2"  # a filter


def test_the_key_is_its_own_and_asked_for(seen: Any) -> None:
    assert seen["key_mode"] == "0o400"
    assert seen["without_key"] == 401
    assert seen["models"][0] == 200
    assert "tiny" in seen["models"][1]


def test_it_comes_back_when_killed_or_silent(seen: Any) -> None:
    assert seen["after_kill"], seen["journal"]
    assert seen["after_stop"], seen["journal"]
    assert seen["restarts"] == "2"
    assert "Watchdog timeout" in seen["journal"]


def test_stopping_it_finishes_the_answer_in_work(seen: Any) -> None:
    assert seen["was_busy"]
    status, text = seen["answer"]
    assert status == 200
    assert text.rstrip().endswith("data: [DONE]")
    assert (seen["stop"], seen["result"]) == (0, "success")
