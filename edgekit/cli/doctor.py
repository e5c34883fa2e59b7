"""`edgekit doctor`: what is this machine, and what is missing?"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from edgekit.backends import find_installable
from edgekit.cli import options
from edgekit.cli.doctor_text import describe
from edgekit.device import Device, read_device, run_tool
from edgekit.doctor import diagnose, require_backend
from edgekit.errors import InputError


@click.command("doctor", epilog="Example: edgekit doctor --json")
@options.store
@options.trtllm
@options.edge_llm
@click.option(
    "--install", metavar="BACKEND", help="Install its runtime, after saying how: edge-llm."
)
@click.option("--yes", is_flag=True, help="Do not ask before installing.")
@options.as_json
def command(store: Path, install: str | None, yes: bool, as_json: bool) -> None:
    """Say what this machine is, which backends work on it, and what to install.

    Exit code 4 when nothing can run.
    """
    device = read_device(run=run_tool)
    if install is not None:
        _install(install, device, asks=not yes)
        return
    diagnosis = diagnose(device, store)
    click.echo(json.dumps(diagnosis.to_dict(), indent=2) if as_json else describe(diagnosis))
    require_backend(diagnosis)


def _install(name: str, device: Device, *, asks: bool) -> None:
    backend = find_installable(name)
    plan = backend.plan_install(device)
    if not plan.is_done:
        click.echo(plan.describe(), err=True)
        if asks and not sys.stdin.isatty():
            raise InputError("nobody is here to say yes", hint="`--yes` installs without asking")
        if asks and not click.confirm("install it?", err=True):
            click.echo("nothing was installed", err=True)
            return
    click.echo(backend.install(plan))
