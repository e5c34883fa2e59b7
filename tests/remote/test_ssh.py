"""Connections, words that arrive as they are, and stages that travel, over a real sshd."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgekit.errors import (
    BackendError,
    BudgetError,
    EdgekitError,
    EngineError,
    InputError,
    MissingBackendError,
    RemoteError,
)
from edgekit.progress import no_progress
from edgekit.remote import Address
from edgekit.remote.drive import drive
from edgekit.remote.send import send_stage
from edgekit.remote.ssh import Ssh, open_ssh
from tests.pack.conftest import contents
from tests.remote.conftest import Server, tool, wait_until

STRANGE = [
    "two words", "it's", '"quoted"', "$HOME", "$(touch harm)", "`touch harm`", "a;touch harm",
    "a\nb", "*", "~", "", "-n", "a\\b", "&", "größe", "!x", "|", "'\"'\"'",
]  # fmt: skip


@pytest.fixture
def ssh(server: Server) -> Iterator[Ssh]:
    with open_ssh(server.address()) as connection:
        yield connection


def test_words_arrive_as_they_are_and_one_connection_serves_all(ssh: Ssh, server: Server) -> None:
    log = server.directory / "log"
    before = log.read_text().count("Accepted publickey")
    done = ssh.run("printf", "<%s>", *STRANGE)
    assert done.stdout.decode() == "".join(f"<{word}>" for word in STRANGE)
    assert ssh.run("sh", "-c", "exit 7").returncode == 7
    assert log.read_text().count("Accepted publickey") == before
    assert ssh.has_rsync


@pytest.mark.parametrize("shell", ["sh", "dash", "bash", "zsh", "fish"])
def test_words_mean_the_same_to_every_shell(shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    command = shlex.join(["printf", "<%s>", *STRANGE])
    done = subprocess.run([shell, "-c", command], capture_output=True, check=True)
    assert done.stdout.decode() == "".join(f"<{word}>" for word in STRANGE)


@pytest.mark.parametrize(
    "host",
    [
        "",
        "-oProxyCommand=touch harm",
        "a b",
        "host:path",
        "a/b",
        "u@-x",
        "u@",
        "@h",
        "a'b",
        "u@h\n",
    ],
)
def test_what_ssh_could_take_for_something_else_is_no_host(host: str) -> None:
    with pytest.raises(InputError, match="no name of a machine"):
        Address(host=host)


@pytest.mark.parametrize("host", ["jetson", "me@jetson.local", "ubuntu@192.168.55.1", "a_b-c"])
def test_hosts(host: str) -> None:
    assert Address(host=host).host == host


def test_options_and_paths_are_checked() -> None:
    with pytest.raises(InputError, match="no option of ssh"):
        Address(host="h", options=("-oPort=2",))
    with pytest.raises(InputError, match="no path"):
        Address(host="h", store="")
    address = Address(host="h", edgekit="~/venv/bin/edgekit", store="-rf")
    assert (address.command, address.path(address.store)) == ("./venv/bin/edgekit", "./-rf")
    assert Address(host="h").command == "edgekit"


def refused(address: Address) -> RemoteError:
    with pytest.raises(RemoteError) as caught, open_ssh(address):
        pass
    return caught.value


def test_a_machine_that_cannot_be_reached_is_one_sentence_with_its_remedy(
    server: Server, tmp_path: Path
) -> None:
    def changed(**options: str) -> Address:
        words = dict(option.split("=", 1) for option in server.options) | options
        return Address(host=server.host, options=tuple(f"{k}={v}" for k, v in words.items()))

    other = server.directory / "other_key"
    exc = refused(changed(IdentityFile=str(other)))
    assert "Permission denied (publickey)" in str(exc)
    assert f"ssh-copy-id {server.host}" in str(exc.hint)
    exc = refused(changed(UserKnownHostsFile=str(tmp_path / "none")))
    assert "Host key verification failed" in str(exc)
    assert "accept its key" in str(exc.hint)
    exc = refused(changed(Port="1"))
    assert "Connection refused" in str(exc)
    exc = refused(Address(host="nobody@no-such-host.invalid"))
    assert "resolve" in str(exc).lower()


def fake_edgekit(path: Path, code: int, *lines: str) -> str:
    said = "\n".join(f"echo {shlex.quote(line)} >&2" for line in lines)
    path.write_text(f"#!/bin/sh\n{said}\nexit {code}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("code", "kind"),
    [(1, EdgekitError), (2, InputError), (3, BudgetError), (4, BackendError), (5, EngineError)],
)
def test_its_errors_are_ours_with_their_exit_code(
    code: int, kind: type[EdgekitError], server: Server, tmp_path: Path
) -> None:
    lines = ["compile: 50 %", '{"progress": ["compile", 1, 2]}', "error: it broke", "", "hint: try"]
    command = fake_edgekit(tmp_path / "edgekit", code, *lines)
    reports: list[tuple[str, int, int]] = []
    words: list[str] = []
    with open_ssh(server.address(edgekit=command)) as ssh, pytest.raises(EdgekitError) as caught:
        drive(ssh, ["compile"], report=lambda *r: reports.append(r), say=words.append)
    assert type(caught.value) is kind
    assert caught.value.exit_code == code
    assert (str(caught.value), caught.value.hint) == (f"on {server.host}: it broke", "there: try")
    assert reports == [(f"{server.host}: compile", 1, 2)]
    assert words == [f"{server.host}: compile: 50 %"]


def test_other_ends(server: Server, tmp_path: Path) -> None:
    def run(command: str) -> str:
        with open_ssh(server.address(edgekit=command)) as ssh:
            return drive(ssh, [], report=no_progress, say=lambda text: None)

    with pytest.raises(KeyboardInterrupt):
        run(fake_edgekit(tmp_path / "a", 130))
    with pytest.raises(EdgekitError, match=r"edgekit ended with 9: Killed"):
        run(fake_edgekit(tmp_path / "b", 9, "Killed"))
    with pytest.raises(MissingBackendError, match=r"edgekit is not on"):
        run(str(tmp_path / "none"))


def test_a_connection_that_breaks_while_it_works_says_so(server: Server, tmp_path: Path) -> None:
    script = tmp_path / "edgekit"
    script.write_text(f"#!/bin/sh\necho $$ > '{tmp_path}/pid'\nexec cat\n")
    script.chmod(0o755)

    def cut() -> None:
        wait_until((tmp_path / "pid").exists)
        server.drop()

    threading.Thread(target=cut, daemon=True).start()
    with open_ssh(server.address(edgekit=str(script))) as ssh, pytest.raises(RemoteError) as caught:
        drive(ssh, [], report=no_progress, say=lambda text: None)
    assert str(caught.value).startswith(f"the connection to {server.host} broke")
    assert "run the same command again" in str(caught.value.hint)
    # what ran there saw the end of its stdin
    pid = int((tmp_path / "pid").read_text())
    wait_until(lambda: not Path(f"/proc/{pid}").exists())


def test_rsync_goes_on_where_it_was_cut_off(
    server: Server, big_stage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = tmp_path / "slow"
    slow.mkdir()
    (slow / "rsync").write_text(f'#!/bin/sh\nexec {tool("rsync")} --bwlimit=4000 "$@"\n')
    (slow / "rsync").chmod(0o755)
    there = tmp_path / "it's there" / "x.stage"
    part = there / "source" / "rank0.safetensors"
    steps: list[tuple[str, int, int]] = []

    def cut() -> None:
        wait_until(lambda: part.exists() and part.stat().st_size > 2**20)
        server.drop()

    with open_ssh(server.address()) as ssh, monkeypatch.context() as patch:
        patch.setenv("PATH", f"{slow}:{os.environ['PATH']}")
        threading.Thread(target=cut, daemon=True).start()
        with pytest.raises(RemoteError, match="stopped") as caught:
            send_stage(big_stage, ssh, str(there), report=no_progress)
    assert "run the same command again" in str(caught.value.hint)
    arrived = part.stat()
    assert 2**20 < arrived.st_size < 12 * 2**20
    with open_ssh(server.address()) as ssh:
        send_stage(big_stage, ssh, str(there), report=lambda *r: steps.append(r))
    assert part.stat().st_ino == arrived.st_ino  # gone on with, not begun anew
    assert contents(there) == contents(big_stage)
    assert steps[-1] == (f"send to {server.host} (rsync)", 100, 100)


@pytest.mark.usefixtures("without_rsync")
def test_a_pack_that_was_cut_off_leaves_nothing_there_and_is_sent_again(
    server: Server, big_stage: Path, tmp_path: Path, edgekit_there: Callable[..., str]
) -> None:
    there = tmp_path / "it's there" / "x.stage"
    scratch = there.with_name(f".building-{there.name}")

    def cut(step: str, done: int, total: int) -> None:
        if done > 2**20 and not scratch.exists():
            wait_until(scratch.exists)
            server.drop()

    with (
        open_ssh(server.address(edgekit=edgekit_there())) as ssh,
        pytest.raises(RemoteError, match="stopped"),
    ):
        send_stage(big_stage, ssh, str(there), report=cut)
    wait_until(lambda: not scratch.exists())
    assert not there.exists()
    for _ in range(2):  # the second time it is there already
        with open_ssh(server.address(edgekit=edgekit_there())) as ssh:
            assert not ssh.has_rsync
            send_stage(big_stage, ssh, str(there), report=no_progress)
    assert contents(there) == contents(big_stage)


def test_a_place_that_cannot_be_written_is_said(server: Server, big_stage: Path) -> None:
    with open_ssh(server.address()) as ssh, pytest.raises(EdgekitError, match="cannot keep it"):
        send_stage(big_stage, ssh, "/proc/none/x", report=no_progress)
