"""`edgekit profiles`: which devices edgekit knows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from edgekit.cli import options
from edgekit.device import read_device
from edgekit.errors import InputError
from edgekit.profile import (
    DEFAULT_PROFILE,
    Profile,
    find_profile,
    list_profiles,
    load_profiles,
)
from edgekit.target import find_target


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
    """List the profiles that can be found; `*` marks what this machine is."""
    found, problems = load_profiles()
    for problem in problems:
        click.echo(f"warning: {problem}", err=True)
        if problem.hint:
            click.echo(f"hint: {problem.hint}", err=True)
    here = _here()
    if as_json:
        click.echo(json.dumps([_row(profile, here) for profile in found], indent=2))
        return
    for profile in found:
        mark = "*" if profile.name == here else " "
        click.echo(f"{mark} {profile.name:<16}{profile.summary}")
    if here not in {DEFAULT_PROFILE, *(profile.name for profile in found)}:
        click.echo(f"* {here:<16}this machine's own GPU: see `edgekit doctor`")


def _row(profile: Profile, here: str) -> dict[str, Any]:
    return {
        "name": profile.name,
        "summary": profile.summary,
        "is_this_machine": profile.name == here,
        "sm": profile.sm,
        "memory_bytes": profile.memory_bytes,
        "bandwidth_bytes_per_s": profile.bandwidth_bytes_per_s,
        "backends": profile.backends,
        "precisions": profile.precisions,
        "kv_precisions": list(profile.kv),
    }


def _here() -> str:
    """The profile that `--profile` means when it is left out."""
    try:
        return find_target(None, read_device()).name
    except InputError:  # a GPU that nothing here has kernels for
        return DEFAULT_PROFILE


@command.command("show")
@click.argument("name")
def show_command(name: str) -> None:
    """Print a profile's file, comments and all."""
    profile = find_profile(name)
    path = Path(name) if name.endswith(".toml") else list_profiles()[profile.name]
    click.echo(path.read_text(encoding="utf-8"), nl=False)
