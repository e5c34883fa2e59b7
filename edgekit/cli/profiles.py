"""`edgekit profiles`: which devices edgekit knows."""

from __future__ import annotations

import json
from pathlib import Path

import click

from edgekit.cli import options
from edgekit.profile import find_profile, list_profiles


@click.group("profiles", invoke_without_command=True, epilog="Example: edgekit profiles show cpu")
@options.as_json
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> None:
    """List and show target devices."""
    ctx.default_map = {"list": {"as_json": as_json}}  # said before a subcommand, it holds as well
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_command, as_json=as_json)


@command.command("list")
@options.as_json
def list_command(as_json: bool) -> None:
    """List the profiles that can be found."""
    found = [find_profile(str(path)) for path in list_profiles().values()]
    if as_json:
        click.echo(json.dumps([{"name": p.name, "summary": p.summary} for p in found], indent=2))
        return
    for profile in found:
        click.echo(f"{profile.name:<16}{profile.summary}")


@command.command("show")
@click.argument("name")
def show_command(name: str) -> None:
    """Print a profile's file, comments and all."""
    profile = find_profile(name)
    path = Path(name) if name.endswith(".toml") else list_profiles()[profile.name]
    click.echo(path.read_text(encoding="utf-8"), nl=False)
