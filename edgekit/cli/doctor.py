"""`edgekit doctor`: what is this machine, and what is missing?"""

from __future__ import annotations

import json
from pathlib import Path

import click

from edgekit.cli import options
from edgekit.cli.doctor_text import describe
from edgekit.device import read_device, run_tool
from edgekit.doctor import diagnose, require_backend


@click.command("doctor", epilog="Example: edgekit doctor --json")
@options.store
@options.trtllm
@options.as_json
def command(store: Path, as_json: bool) -> None:
    """Say what this machine is, which backends work on it, and what to install.

    Exit code 4 when nothing can run.
    """
    diagnosis = diagnose(read_device(run=run_tool), store)
    click.echo(json.dumps(diagnosis.to_dict(), indent=2) if as_json else describe(diagnosis))
    require_backend(diagnosis)
