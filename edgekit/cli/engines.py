"""`edgekit engines`: what is in the store."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from edgekit.cli import options
from edgekit.cli.show import describe_engine
from edgekit.engine import find_engine, list_manifests, read_manifest, remove_engine


@click.group(
    "engines", invoke_without_command=True, epilog="Example: edgekit engines show int4_awq"
)
@options.store
@options.as_json
@click.pass_context
def command(ctx: click.Context, store: Path, as_json: bool) -> None:
    """List, show and remove engines."""
    # what is said before a subcommand holds for it as well
    said = {"store": store, "as_json": as_json}
    ctx.default_map = dict.fromkeys(("list", "show", "rm"), said)
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_command, store=store, as_json=as_json)


@command.command("list")
@options.store
@options.as_json
def list_command(store: Path, as_json: bool) -> None:
    """List the engines of the store, newest first."""
    found, damaged = list_manifests(store)
    if as_json:
        click.echo(json.dumps([{"engine": str(p), **asdict(m)} for p, m in found], indent=2))
    elif not found and not damaged:
        click.echo(f"no engines in {store}; build one with `edgekit build`", err=True)
    for path, manifest in [] if as_json else found:
        click.echo(describe_engine(path, manifest, as_json=False))
    for problem in damaged:
        click.echo(f"warning: {problem}", err=True)


@command.command("show")
@click.argument("engine", required=False)
@options.store
@options.as_json
def show_command(engine: str | None, store: Path, as_json: bool) -> None:
    """Show one engine's manifest."""
    path = find_engine(store, engine)
    click.echo(describe_engine(path, read_manifest(path), as_json=as_json))


@command.command("rm")
@click.argument("engine")
@options.store
def rm_command(engine: str, store: Path) -> None:
    """Remove an engine."""
    path = find_engine(store, engine, is_exact=True)
    remove_engine(path, store)
    click.echo(f"removed {path}", err=True)
